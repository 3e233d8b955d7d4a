#!/usr/bin/env bash
# Answers of a tuned Qwen3-235B-A22B, on 16 devices, two machines of 8: TP 4, PP 4; greedy unless --temperature is given.
# Needs: LOAD (the SAVE folder of a tune script, or a Hugging Face folder); TOKENIZER if LOAD names none.
# On each machine: MASTER_ADDR (name of the first) and NODE_RANK (0 on the first, 1 on the second).
# Prints: each prompt and its answer. Questions: --prompt "..." (repeatable) or --input FILE.jsonl at the end.
# SMOKE=1 asks a tiny model in one process; DRY_RUN=1 prints the command line.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
NNODES="${NNODES:-2}"
generate 4 4 "$@"
