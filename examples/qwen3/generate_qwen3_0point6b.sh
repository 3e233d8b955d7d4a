#!/usr/bin/env bash
# Answers of a tuned Qwen3-0.6B, on one device; greedy unless --temperature is given.
# Needs: LOAD (the SAVE folder of a tune script, or a Hugging Face folder); TOKENIZER if LOAD names none.
# Prints: each prompt and its answer. Questions: --prompt "..." (repeatable) or --input FILE.jsonl at the end.
# SMOKE=1 asks a tiny model in one process; DRY_RUN=1 prints the command line.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
generate 1 1 "$@"
