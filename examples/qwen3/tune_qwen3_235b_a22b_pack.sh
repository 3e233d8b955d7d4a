#!/usr/bin/env bash
# Tunes all weights of Qwen3-235B-A22B on packed rows of 32K tokens, each sample apart, on 128 devices: 16 machines of 8 (NNODES=16), TP 4, PP 8, EP 16.
# Needs: HF_MODEL (Hugging Face folder of Qwen3-235B-A22B) and DATA_PATH (from data_convert_qwen3_instruction_pack.sh).
# On each machine: MASTER_ADDR (name of the first) and NODE_RANK (0 on the first, 1 on the second, and so on).
# Prints: one line a step; checkpoints, metrics.jsonl and loss.png appear in SAVE, from where it goes on when run again.
# SEQ_LENGTH is that of the dataset, 32768 in both scripts unless you set it.
# SMOKE=1 trains a tiny model of the same shape from fresh weights; DRY_RUN=1 prints the command line.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
LR="${LR:-1.25e-5}"
NNODES="${NNODES:-16}"
DATASET=qwen3_pack DEFAULT_EP=16
DEFAULT_SEQ_LENGTH=32768 DEFAULT_GBS=32
[ "${SMOKE:-0}" = 1 ] || set -- --num-layer-list 11,12,12,12,12,12,12,11 "$@"  # the ends have embeddings to hold
tune 235b-a22b 4 8 1 --reset-attention-mask --reset-position-ids --neat-pack \
    --recompute-granularity full --recompute-method uniform --recompute-num-layers 1 "$@"
