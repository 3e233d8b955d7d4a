#!/usr/bin/env bash
# Tunes all weights of Qwen3-8B on packed rows: attention and positions stay within each sample, on 8 devices.
# Needs: HF_MODEL (Hugging Face folder of Qwen3-8B) and DATA_PATH (from data_convert_qwen3_instruction_pack.sh).
# Prints: one line a step; checkpoints, metrics.jsonl and loss.png appear in SAVE.
# SMOKE=1 trains a tiny model of the same shape from fresh weights; DRY_RUN=1 prints the command line.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
DATA_PATH="${DATA_PATH:-$ROOT/output/dataset/qwen3_pack}"
SAVE="${SAVE:-$ROOT/output/qwen3_8b_pack}"
need_dataset DATA_PATH
model_flags
run_training tune_qwen3_8b_pack "${MODEL[@]}" --data-path "$DATA_PATH" --reset-attention-mask --reset-position-ids --neat-pack \
    --seq-length "${SEQ_LENGTH:-4096}" --micro-batch-size "${MBS:-1}" --global-batch-size "${GBS:-8}" \
    --train-iters "${TRAIN_ITERS:-2000}" --lr "${LR:-1.25e-6}" --min-lr "${MIN_LR:-1.25e-7}" \
    --lr-decay-style cosine --lr-warmup-fraction "${WARMUP:-0.01}" --weight-decay 1e-1 --clip-grad 1.0 \
    --adam-beta1 0.9 --adam-beta2 0.95 --save "$SAVE" --save-interval "${SAVE_INTERVAL:-1000}" \
    --stage sft --is-instruction-dataset "$@"
