#!/usr/bin/env bash
# Is a tuned Qwen3-235B-A22B better? Losses and answers on held-out records, on 16 devices, two machines of 8: TP 4, PP 4.
# Needs: LOAD (the SAVE folder of a tune script, or a Hugging Face folder) and INPUT (records it was not tuned on).
# BASELINE (the model before tuning) is put beside; TOKENIZER if LOAD names none; METRICS="exact_match" needs no extra.
# On each machine: MASTER_ADDR (name of the first) and NODE_RANK (0 on the first, 1 on the second).
# Prints: a table; RESULT.json has all figures and answers, RESULT.html the answers side by side. --tasks at the end adds benchmarks.
# SMOKE=1 measures a tiny model in one process; DRY_RUN=1 prints the command line.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
NNODES="${NNODES:-2}"
evaluate 4 4 "$@"
