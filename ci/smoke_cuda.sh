#!/usr/bin/env bash
# ci/smoke.sh on the CUDA devices of this machine.
# Usage: bash ci/smoke_cuda.sh [--processes N] [--quick] [--output FOLDER]
# Needs: NVIDIA's driver and a torch built for CUDA. Prints and returns what ci/smoke.sh does.
set -euo pipefail
DEVICE=cuda exec bash "$(dirname "${BASH_SOURCE[0]}")/smoke.sh" "$@"
