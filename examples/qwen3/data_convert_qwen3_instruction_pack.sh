#!/usr/bin/env bash
# Raw instruction records -> indexed dataset, rows of SEQ_LENGTH (32768) tokens that hold several conversations (neat-pack).
# Needs: INPUT (parquet, json, jsonl, csv or arrow) and TOKENIZER (a Hugging Face tokenizer folder).
# Prints: progress, the ledger of kept, cut and dropped records, and the files OUTPUT_PREFIX_packed_*_document.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
INPUT="${INPUT:-$ROOT/examples/data/demo.jsonl}"
TOKENIZER="${TOKENIZER:-$ROOT/output/qwen3_tokenizer}"
OUTPUT_PREFIX="${OUTPUT_PREFIX:-$ROOT/output/dataset/qwen3_pack}"
need_path INPUT "your file of records"
need_path TOKENIZER "a tokenizer folder (make one: python tools/make_qwen3_tokenizer.py --output DIR)"
[ "${DRY_RUN:-0}" = 1 ] || mkdir -p "$(dirname "$OUTPUT_PREFIX")"
run_tool preprocess_data --input "$INPUT" --output-prefix "$OUTPUT_PREFIX" --tokenizer-type PretrainedFromHF \
    --tokenizer-name-or-path "$TOKENIZER" --handler-name "${HANDLER:-auto}" --prompt-type "${PROMPT_TYPE:-qwen3}" \
    --enable-thinking "${THINKING:-none}" --workers "${WORKERS:-2}" \
    --pack --neat-pack --seq-length "${SEQ_LENGTH:-32768}" "$@"
