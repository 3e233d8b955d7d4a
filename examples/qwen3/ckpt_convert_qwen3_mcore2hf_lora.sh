#!/usr/bin/env bash
# The latest adapters of a LoRA run, merged into the weights they were trained on -> a Hugging Face folder.
# Needs: LOAD (the SAVE folder of a tune_*_lora.sh) and HF_MODEL (its Hugging Face folder). Prints: what was written where.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
LOAD="${LOAD:-$ROOT/output/qwen3_8b_lora}"
HF_OUTPUT="${HF_OUTPUT:-$ROOT/output/qwen3_8b_lora_hf}"
need_path LOAD "the SAVE folder of a tune_*_lora.sh"
HF_MODEL="${HF_MODEL:-Qwen3-8B}"
need_path HF_MODEL "the Hugging Face folder that was tuned"
run_tool convert_ckpt --load-model-type hf --save-model-type hf --load-dir "$HF_MODEL" --lora-load "$LOAD" \
    --save-dir "$HF_OUTPUT" "$@"
