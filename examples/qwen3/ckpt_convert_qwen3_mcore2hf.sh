#!/usr/bin/env bash
# The latest checkpoint of a run, in whatever layout -> a Hugging Face folder that transformers loads.
# Needs: LOAD (the SAVE folder of a tune script). Prints: what was written where.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
LOAD="${LOAD:-$ROOT/output/qwen3_8b}"
HF_OUTPUT="${HF_OUTPUT:-$ROOT/output/qwen3_8b_hf}"
need_path LOAD "the SAVE folder of a tune script"
run_tool convert_ckpt --load-model-type mg --save-model-type hf --load-dir "$LOAD" --save-dir "$HF_OUTPUT" "$@"
