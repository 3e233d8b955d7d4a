#!/usr/bin/env bash
# Runs the tests that meet what versions change (model, checkpoints, training, Hugging Face parity, two ranks, resume,
# generation) on each set of versions of ci/compatibility.py, in a fresh virtual environment under build/compatibility.
# Usage: bash ci/compatibility.sh [--sets NAME ...] [--reuse] [--keep] [--output FILE]     --help says more
# Needs: Python 3.11 and 3.12 as python3.11 and python3.12 (or PYTHON_3_11=PATH, PYTHON_3_12=PATH) with venv, a package index
# that pip reaches, up to 8 GB of disk a set with a CUDA build of torch, some ten minutes of two CPU cores a set.
# Prints: a table; build/compatibility/results.json has the same and the versions found; exit code 0 when every set passed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python3}" ci/compatibility.py "$@"
