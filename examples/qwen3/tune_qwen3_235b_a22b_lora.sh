#!/usr/bin/env bash
# Tunes LoRA adapters, of each expert too, of Qwen3-235B-A22B on samples of their own length, on 64 devices: 8 machines of 8 (NNODES=8), TP 4, PP 8, EP 8.
# Needs: HF_MODEL (Hugging Face folder of Qwen3-235B-A22B) and DATA_PATH (from data_convert_qwen3_instruction.sh).
# On each machine: MASTER_ADDR (name of the first) and NODE_RANK (0 on the first, 1 on the second, and so on).
# Prints: one line a step; checkpoints, metrics.jsonl and loss.png appear in SAVE, from where it goes on when run again.
# ckpt_convert_qwen3_mcore2hf_lora.sh merges them into the weights.
# SMOKE=1 trains a tiny model of the same shape from fresh weights; DRY_RUN=1 prints the command line.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
LR="${LR:-1e-4}" MIN_LR="${MIN_LR:-1e-5}"
NNODES="${NNODES:-8}"
DATASET=qwen3 ADAPTERS=1 DEFAULT_EP=8 DEFAULT_GBS=64
[ "${SMOKE:-0}" = 1 ] || set -- --num-layer-list 11,12,12,12,12,12,12,11 "$@"  # the ends have embeddings to hold
tune 235b-a22b 4 8 1 --no-pad-to-seq-lengths \
    --lora-target-modules linear_qkv linear_proj linear_fc1 linear_fc2 \
    --lora-r "${LORA_R:-16}" --lora-alpha "${LORA_ALPHA:-32}" "$@"
