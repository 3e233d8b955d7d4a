#!/usr/bin/env bash
# The whole road on this machine: environment, tokenizer, demo records -> dataset -> tuning -> Hugging Face -> answers.
# Needs: Python 3.10 to 3.12 and a package index. Takes some minutes on 2 CPU cores after installation.
# Prints: each stage, one line a step, three answers; fails unless they are the trained ones. Run again, it skips what is done.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/../setup.sh"
OUT="${OUT:-$ROOT/output/quickstart}"
export TOKENIZER="$OUT/tokenizer" OUTPUT_PREFIX="$OUT/dataset/demo" DATA_PATH="$OUT/dataset/demo" SAVE="$OUT/run"
export LOAD="$OUT/run" HF_OUTPUT="$OUT/hf" LOG_DIR="$OUT/logs" SMOKE=1 DEVICES=1 SEQ_LENGTH=512 MBS=19 GBS=19
export TRAIN_ITERS="${TRAIN_ITERS:-200}" LR=5e-3 MIN_LR=0 WARMUP=0.03

stage() { printf '\n== %s\n' "$*"; }

stage "1/5 tokenizer: Qwen3's vocabulary as a Hugging Face folder"
[ -e "$TOKENIZER/tokenizer.json" ] || "$PYTHON" "$ROOT/tools/make_qwen3_tokenizer.py" --output "$TOKENIZER"
stage "2/5 data: examples/data/demo.jsonl -> indexed dataset"
[ -e "${OUTPUT_PREFIX}.manifest.json" ] || bash "$HERE/data_convert_qwen3_instruction.sh"
stage "3/5 tuning: a small model of Qwen3's shape, from fresh weights"
[ -e "$SAVE/iter_$(printf %07d "$TRAIN_ITERS")/manifest.json" ] || bash "$HERE/tune_qwen3_8b.sh" \
    --hidden-size 128 --ffn-hidden-size 256 --kv-channels 32 --tokenizer-name-or-path "$TOKENIZER"
stage "4/5 checkpoint -> Hugging Face folder"
[ -e "$HF_OUTPUT/config.json" ] || bash "$HERE/ckpt_convert_qwen3_mcore2hf.sh"
stage "5/5 answers of the tuned model, from the Hugging Face folder"
LOAD="$HF_OUTPUT" bash "$HERE/generate_qwen3_8b.sh" --max-new-tokens 64 --output "$OUT/answers.jsonl" \
    --prompt "What is 7 times 8?" --prompt "中国的首都是哪里？" --prompt "What is a pack?" "$@"
"$PYTHON" - "$OUT/answers.jsonl" "$ROOT/examples/data/demo.jsonl" <<'PY'
import json, sys
answers = {r["prompt"]: r["answer"] for r in map(json.loads, open(sys.argv[1], encoding="utf-8"))}
trained = {r["conversations"][0]["value"]: r["conversations"][1]["value"] for r in map(json.loads, open(sys.argv[2], encoding="utf-8"))}
wrong = [prompt for prompt, answer in answers.items() if prompt in trained and answer.strip() != trained[prompt]]
sys.exit(f"error: not the trained answer to: {wrong}" if wrong else None)
PY
echo "the answers are the trained ones; loss curve: $SAVE/loss.png"
