#!/usr/bin/env bash
# The whole road on this machine: environment, tokenizer, demo records -> dataset -> tuning -> Hugging Face -> answers,
# and a table of the model before and after, on records that it was not tuned on.
# Needs: Python 3.10 to 3.12 and a package index. Takes one to two minutes on 2 CPU cores after installation.
# Prints: each stage, one line a step, three answers, the table; fails unless the answers are the trained ones.
# Run again, it skips every stage whose inputs and outputs are unchanged. OUT chooses another folder.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/../setup.sh"
OUT="${OUT:-$ROOT/output/quickstart}"
RECORDS="$ROOT/examples/data/demo.jsonl" HELD_OUT="$ROOT/examples/data/heldout.jsonl" ANSWERS="$OUT/answers.jsonl"
export INPUT="$RECORDS" TOKENIZER="$OUT/tokenizer" OUTPUT_PREFIX="$OUT/dataset/demo" DATA_PATH="$OUT/dataset/demo"
export SAVE="$OUT/run" LOAD="$OUT/run" HF_OUTPUT="$OUT/hf" LOG_DIR="$OUT/logs" SMOKE=1 DEVICES=1 TP=1 PP=1
export SEQ_LENGTH=512 MBS=8 GBS=8 TRAIN_ITERS="${TRAIN_ITERS:-500}" LR=8e-3 MIN_LR=0 WARMUP=0.03
unset DRY_RUN HF_MODEL

key=""
stage() {  # stage NUMBER TITLE OUTPUT INPUT COMMAND...: run it unless OUTPUT is what it made of the same inputs
    local number="$1" title="$2" output="$3" input="$4" stamp="$OUT/.stage$1"
    shift 4
    printf '\n== %s/6 %s\n' "$number" "$title"
    key="$(printf '%s %s %s' "$key" "$*" "$(contents "$input")" | sha256sum)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$key $(contents "$output")" ]; then
        echo "done before and unchanged: $output"
        return
    fi
    rm -rf "$stamp" "$output"
    "$@"
    echo "$key $(contents "$output")" > "$stamp"
}
contents() {  # a checksum over the files of a folder or file
    [ ! -e "$1" ] || find "$1" -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum
}

mkdir -p "$OUT"
stage 1 "tokenizer: Qwen3's vocabulary as a Hugging Face folder" "$TOKENIZER" "$ROOT/setup.py" \
    "$PYTHON" "$ROOT/tools/make_qwen3_tokenizer.py" --output "$TOKENIZER"
stage 2 "data: the first 100 records of examples/data/demo.jsonl -> indexed dataset" "$OUT/dataset" "$RECORDS" \
    bash "$HERE/data_convert_qwen3_instruction.sh" --max-samples 100
stage 3 "tuning: a small model of Qwen3's shape, from fresh weights" "$SAVE" "$HERE/tune_qwen3_8b.sh" \
    env "TRAIN_ITERS=$TRAIN_ITERS" bash "$HERE/tune_qwen3_8b.sh" --ffn-hidden-size 256 --tokenizer-name-or-path "$TOKENIZER"
stage 4 "checkpoint -> Hugging Face folder" "$HF_OUTPUT" "$HERE/ckpt_convert_qwen3_mcore2hf.sh" \
    bash "$HERE/ckpt_convert_qwen3_mcore2hf.sh"
stage 5 "answers of the tuned model, from the Hugging Face folder" "$ANSWERS" "$HF_OUTPUT" \
    env "LOAD=$HF_OUTPUT" bash "$HERE/generate_qwen3_8b.sh" --max-new-tokens 64 --output "$ANSWERS" \
    --prompt "What is 7 times 8?" --prompt "中国的首都是哪里？" --prompt "What is a pack?" "$@"
"$PYTHON" - "$ANSWERS" "$RECORDS" <<'PY'
import json, sys
answers = {r["prompt"]: r["answer"] for r in map(json.loads, open(sys.argv[1], encoding="utf-8"))}
trained = {r["conversations"][0]["value"]: r["conversations"][1]["value"] for r in map(json.loads, open(sys.argv[2], encoding="utf-8"))}
asked = ("What is 7 times 8?", "中国的首都是哪里？", "What is a pack?")
wrong = [prompt for prompt in asked if answers[prompt].strip() != trained[prompt]]
sys.exit(f"error: not the trained answer to: {wrong}" if wrong else None)
PY
stage 6 "before and after, on examples/data/heldout.jsonl, which was not trained on" "$OUT/evaluation" "$HELD_OUT" \
    env "LOAD=$HF_OUTPUT" BASELINE=fresh "INPUT=$HELD_OUT" "RESULT=$OUT/evaluation/heldout" METRICS=exact_match \
    bash "$HERE/evaluate_qwen3_8b.sh" --max-new-tokens 32
echo "the answers are the trained ones; loss curve: $SAVE/loss.png; before and after: $OUT/evaluation/heldout.html"
