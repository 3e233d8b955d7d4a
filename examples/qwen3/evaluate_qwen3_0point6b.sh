#!/usr/bin/env bash
# Is a tuned Qwen3-0.6B better? Losses and answers on held-out records, on the devices of a machine, each with the whole model: DP.
# Needs: LOAD (the SAVE folder of a tune script, or a Hugging Face folder) and INPUT (records it was not tuned on).
# BASELINE (the model before tuning) is put beside; TOKENIZER if LOAD names none; METRICS="exact_match" needs no extra.
# Prints: a table; RESULT.json has all figures and answers, RESULT.html the answers side by side. --tasks at the end adds benchmarks.
# SMOKE=1 measures a tiny model in one process; DRY_RUN=1 prints the command line.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
evaluate 1 1 "$@"
