#!/usr/bin/env bash
# A Hugging Face folder of Qwen3 -> a Megatron checkpoint, cut for TP x PP devices (and experts for EP). Tuning needs none: it reads the folder.
# Needs: HF_MODEL (a Hugging Face folder). TP is 8 unless it is set, of which a mixture of experts takes at most 4.
# Prints: what was written where.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
SAVE="${SAVE:-$ROOT/output/qwen3_8b_mcore}"
HF_MODEL="${HF_MODEL:-Qwen3-8B}"
need_path HF_MODEL "a Hugging Face folder of Qwen3"
run_tool convert_ckpt --load-model-type hf --save-model-type mg --load-dir "$HF_MODEL" --save-dir "$SAVE" \
    --target-tensor-parallel-size "${TP:-8}" --target-pipeline-parallel-size "${PP:-1}" \
    ${EP:+--target-expert-parallel-size "$EP" --expert-tensor-parallel-size 1} "$@"
