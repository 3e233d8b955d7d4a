#!/usr/bin/env bash
# Tunes all weights of Qwen3-14B on samples of their own length, on the 8 devices of a machine: TP 8.
# Needs: HF_MODEL (Hugging Face folder of Qwen3-14B) and DATA_PATH (from data_convert_qwen3_instruction.sh).
# Prints: one line a step; checkpoints, metrics.jsonl and loss.png appear in SAVE, from where it goes on when run again.
# SMOKE=1 trains a tiny model of the same shape from fresh weights; DRY_RUN=1 prints the command line.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
DATASET=qwen3
tune 14b 8 1 1 --no-pad-to-seq-lengths "$@"
