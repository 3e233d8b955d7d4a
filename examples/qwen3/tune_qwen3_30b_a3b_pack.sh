#!/usr/bin/env bash
# Tunes all weights of Qwen3-30B-A3B on packed rows of 32K tokens, each sample apart, on 16 devices: two machines of 8 (NNODES=2), TP 4, PP 2, EP 8.
# Needs: HF_MODEL (Hugging Face folder of Qwen3-30B-A3B) and DATA_PATH (from data_convert_qwen3_instruction_pack.sh).
# On each machine: MASTER_ADDR (name of the first) and NODE_RANK (0 on the first, 1 on the second, and so on).
# Prints: one line a step; checkpoints, metrics.jsonl and loss.png appear in SAVE, from where it goes on when run again.
# SEQ_LENGTH is that of the dataset, 32768 in both scripts unless you set it.
# SMOKE=1 trains a tiny model of the same shape from fresh weights; DRY_RUN=1 prints the command line.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
LR="${LR:-1.25e-5}"
NNODES="${NNODES:-2}"
DATASET=qwen3_pack DEFAULT_EP=8
DEFAULT_SEQ_LENGTH=32768 DEFAULT_GBS=8
tune 30b-a3b 4 2 1 --reset-attention-mask --reset-position-ids --neat-pack \
    --recompute-granularity full --recompute-method uniform --recompute-num-layers 1 "$@"
