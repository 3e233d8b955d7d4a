#!/usr/bin/env bash
# Tunes all weights of Qwen3-32B on packed rows of 256K tokens, each sample apart, on 32 devices: four machines of 8 (NNODES=4), TP 8, CP 4.
# Needs: HF_MODEL (Hugging Face folder of Qwen3-32B) and DATA_PATH (from SEQ_LENGTH=262144 bash data_convert_qwen3_instruction_pack.sh).
# On each machine: MASTER_ADDR (name of the first) and NODE_RANK (0 on the first, 1 on the next, and so on).
# Prints: one line a step; checkpoints, metrics.jsonl and loss.png appear in SAVE, from where it goes on when run again.
# CP_ALGO chooses how devices share a row: megatron_cp_algo (ring), ulysses_cp_algo, hybrid_cp_algo or kvallgather_cp_algo.
# SMOKE=1 trains a tiny model of the same shape from fresh weights; DRY_RUN=1 prints the command line.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
NNODES="${NNODES:-4}"
DATASET=qwen3_pack
DEFAULT_SEQ_LENGTH=262144 DEFAULT_GBS=4
tune 32b 8 1 4 --reset-attention-mask --reset-position-ids --neat-pack \
    --recompute-granularity full --recompute-method uniform --recompute-num-layers 1 "$@"
