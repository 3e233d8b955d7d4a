#!/usr/bin/env bash
# Tunes all weights of Qwen3-235B-A22B on samples of their own length, on 128 devices: 16 machines of 8 (NNODES=16), TP 4, PP 8, EP 16.
# Needs: HF_MODEL (Hugging Face folder of Qwen3-235B-A22B) and DATA_PATH (from data_convert_qwen3_instruction.sh).
# On each machine: MASTER_ADDR (name of the first) and NODE_RANK (0 on the first, 1 on the second, and so on).
# Prints: one line a step; checkpoints, metrics.jsonl and loss.png appear in SAVE, from where it goes on when run again.
# SMOKE=1 trains a tiny model of the same shape from fresh weights; DRY_RUN=1 prints the command line.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
LR="${LR:-1.25e-5}"
NNODES="${NNODES:-16}"
DATASET=qwen3 DEFAULT_EP=16 DEFAULT_GBS=64
# The ends have embeddings to hold; layers are recomputed.
[ "${SMOKE:-0}" = 1 ] || set -- --num-layer-list 11,12,12,12,12,12,12,11 \
    --recompute-granularity full --recompute-method uniform --recompute-num-layers 1 "$@"
tune 235b-a22b 4 8 1 --no-pad-to-seq-lengths "$@"
