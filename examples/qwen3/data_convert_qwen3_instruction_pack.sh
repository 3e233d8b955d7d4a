#!/usr/bin/env bash
# Raw instruction records -> indexed dataset, rows of SEQ_LENGTH (32768) tokens that hold several conversations (neat-pack).
# Needs: INPUT (parquet, json, jsonl, csv or arrow) and TOKENIZER (a Hugging Face tokenizer folder).
# Prints: progress, the ledger of kept, cut and dropped records, and the files OUTPUT_PREFIX_packed_*_document.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
export OUTPUT_PREFIX="${OUTPUT_PREFIX:-$ROOT/output/dataset/qwen3_pack}"
exec bash "$ROOT/examples/qwen3/data_convert_qwen3_instruction.sh" \
    --pack --neat-pack --seq-length "${SEQ_LENGTH:-32768}" "$@"
