#!/usr/bin/env bash
# Tunes all weights of Qwen3-30B-A3B on samples of their own length, on 16 devices: two machines of 8 (NNODES=2), TP 4, PP 2, EP 8.
# Needs: HF_MODEL (Hugging Face folder of Qwen3-30B-A3B) and DATA_PATH (from data_convert_qwen3_instruction.sh).
# On each machine: MASTER_ADDR (name of the first) and NODE_RANK (0 on the first, 1 on the second, and so on).
# Prints: one line a step; checkpoints, metrics.jsonl and loss.png appear in SAVE, from where it goes on when run again.
# SMOKE=1 trains a tiny model of the same shape from fresh weights; DRY_RUN=1 prints the command line.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
LR="${LR:-1.25e-5}"
NNODES="${NNODES:-2}"
DATASET=qwen3 DEFAULT_EP=8
tune 30b-a3b 4 2 1 --no-pad-to-seq-lengths "$@"
