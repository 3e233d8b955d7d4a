#!/usr/bin/env bash
# Tunes all weights of Qwen3-4B on packed rows of 32K tokens, each sample apart, on the 8 devices of a machine: TP 2, DP 4.
# Needs: HF_MODEL (Hugging Face folder of Qwen3-4B) and DATA_PATH (from data_convert_qwen3_instruction_pack.sh).
# Prints: one line a step; checkpoints, metrics.jsonl and loss.png appear in SAVE, from where it goes on when run again.
# SEQ_LENGTH is that of the dataset, 32768 in both scripts unless you set it.
# SMOKE=1 trains a tiny model of the same shape from fresh weights; DRY_RUN=1 prints the command line.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
DATASET=qwen3_pack
DEFAULT_SEQ_LENGTH=32768 DEFAULT_GBS=8
tune 4b 2 1 1 --reset-attention-mask --reset-position-ids --neat-pack \
    --recompute-granularity full --recompute-method uniform --recompute-num-layers 1 "$@"
