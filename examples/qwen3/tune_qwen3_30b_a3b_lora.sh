#!/usr/bin/env bash
# Tunes LoRA adapters, of each expert too, of Qwen3-30B-A3B on samples of their own length, on 8 devices: TP 4, EP 8.
# Needs: HF_MODEL (Hugging Face folder of Qwen3-30B-A3B) and DATA_PATH (from data_convert_qwen3_instruction.sh).
# Prints: one line a step; checkpoints, metrics.jsonl and loss.png appear in SAVE, from where it goes on when run again.
# ckpt_convert_qwen3_mcore2hf_lora.sh merges them into the weights.
# SMOKE=1 trains a tiny model of the same shape from fresh weights; DRY_RUN=1 prints the command line.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
LR="${LR:-1e-4}" MIN_LR="${MIN_LR:-1e-5}"
DATASET=qwen3 ADAPTERS=1 DEFAULT_EP=8
tune 30b-a3b 4 1 1 --no-pad-to-seq-lengths \
    --lora-target-modules linear_qkv linear_proj linear_fc1 linear_fc2 \
    --lora-r "${LORA_R:-16}" --lora-alpha "${LORA_ALPHA:-32}" "$@"
