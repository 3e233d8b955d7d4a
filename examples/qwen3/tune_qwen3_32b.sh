#!/usr/bin/env bash
# Tunes all weights of Qwen3-32B on samples of their own length, on 16 devices: two machines of 8 (NNODES=2), TP 8, PP 2.
# Needs: HF_MODEL (Hugging Face folder of Qwen3-32B) and DATA_PATH (from data_convert_qwen3_instruction.sh).
# On each machine: MASTER_ADDR (name of the first) and NODE_RANK (0 on the first, 1 on the second).
# Prints: one line a step; checkpoints, metrics.jsonl and loss.png appear in SAVE, from where it goes on when run again.
# SMOKE=1 trains a tiny model of the same shape from fresh weights; DRY_RUN=1 prints the command line.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
NNODES="${NNODES:-2}"
DATASET=qwen3
tune 32b 8 2 1 --no-pad-to-seq-lengths "$@"
