#!/usr/bin/env bash
# Answers of a tuned model, greedy unless --temperature is given.
# Needs: LOAD (the SAVE folder of a tune script, or a Hugging Face folder) and TOKENIZER.
# Prints: each prompt and its answer. Questions: --prompt "..." (repeatable) or --input FILE.jsonl at the end.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
LOAD="${LOAD:-$ROOT/output/qwen3_8b}"
TOKENIZER="${TOKENIZER:-$ROOT/output/qwen3_tokenizer}"
need_path LOAD "the SAVE folder of a tune script, or a Hugging Face folder"
need_path TOKENIZER "a tokenizer folder"
run_tool inference --load "$LOAD" --tokenizer-name-or-path "$TOKENIZER" --max-new-tokens "${MAX_NEW_TOKENS:-256}" "$@"
