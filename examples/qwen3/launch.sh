#!/usr/bin/env bash
# Shared by the scripts of this folder (source it; it runs nothing by itself).
# Gives: ROOT, PYTHON, need_path, run_tool, run_ranks, run_training, tune, generate and evaluate.
# Reads: PYTHON, DEVICES, MASTER_ADDR, MASTER_PORT, NNODES, NODE_RANK, MAX_RESTARTS, LOG_DIR, and DRY_RUN=1 (print, do not run).
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x "$ROOT/.venv/bin/python" ] && PYTHON="$ROOT/.venv/bin/python"
fi
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
export TOKENIZERS_PARALLELISM=false CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"
# On the host, glibc gives each freed buffer of some MB back to the system and faults it in again at its next use.
export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"
LOG_DIR="${LOG_DIR:-logs}"

_missing() {  # an error; in a dry run only a remark
    if [ "${DRY_RUN:-0}" = 1 ]; then
        echo "missing: $1" >&2
    else
        echo "error: $1" >&2
        exit 2
    fi
}

need_path() {  # need_path VARIABLE WHAT: the path in VARIABLE must exist
    [ -e "${!1:-}" ] || _missing "$1='${!1:-}' does not exist; set $1 to $2"
}

need_dataset() {  # need_dataset VARIABLE: an indexed dataset with this prefix must exist
    [ -e "${!1:-}_packed_input_ids_document.idx" ] ||
        _missing "no dataset at $1='${!1:-}'; set $1 to the OUTPUT_PREFIX of data_convert_qwen3_instruction.sh"
}

count_devices() {  # accelerators of this machine, 0 on CPU
    "$PYTHON" -c 'from mindspeed_ift.devices.device import current, count; print(count() if current().asynchronous else 0)'
}

logged() {  # become a command whose output is kept in LOG_DIR: a signal to the script is one to the command
    local name="$1"
    shift
    mkdir -p "$LOG_DIR"
    # What is said after a signal is kept too.
    exec "$@" > >(trap '' INT TERM && exec tee "$LOG_DIR/$name.log") 2>&1
}

stoppable() {  # as logged, for what saves when it is told to stop: it gets this script's SIGTERM and Ctrl-C as SIGTERM
    local name="$1" out log command code told=1
    shift
    mkdir -p "$LOG_DIR"
    exec {out}> >(trap '' INT TERM && exec tee "$LOG_DIR/$name.log")
    log=$!
    "$@" >&"$out" 2>&1 &
    command=$!
    exec {out}>&-
    trap 'told=1; kill -TERM "$command" 2>/dev/null || true' INT TERM
    while [ "$told" = 1 ]; do  # a signal ends the waiting, not the command
        told=0 code=0
        wait "$command" || code=$?
    done
    trap - INT TERM
    wait "$log" || true
    return "$code"
}

dry_run() {  # dry_run TOOL COMMAND...: print the command and the configuration that the tool makes of its flags
    local tool="$1"
    shift
    printf '%q ' "$@"
    printf '\n'
    while [ "$1" != "$tool" ]; do shift; done
    "$PYTHON" "$@" --dry-run
}

_torchrun() {  # _torchrun: the words that start DEVICES processes on each node, into RANKS
    local meeting=(--standalone)  # one machine finds a free port by itself, so that two runs do not collide
    if [ "${NNODES:-1}" != 1 ]; then
        [ -n "${MASTER_ADDR:-}" ] && [ -n "${NODE_RANK:-}" ] ||
            _missing "NNODES=$NNODES: set MASTER_ADDR to the first machine's name, and NODE_RANK to 0 there, 1 on the next"
    fi
    if [ "${NNODES:-1}" != 1 ] || [ -n "${MASTER_PORT:-}" ]; then
        meeting=(--nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" --master_addr "${MASTER_ADDR:-localhost}"
            --master_port "${MASTER_PORT:-6000}")
    fi
    # Processes that are killed start again together, as often, and go on from what they have saved.
    [ -z "${MAX_RESTARTS:-}" ] || meeting+=(--max_restarts "$MAX_RESTARTS")
    RANKS=("$PYTHON" -m mindspeed_ift.cli.torchrun --nproc_per_node "$DEVICES" "${meeting[@]}")
}

run_ranks() {  # run_ranks NAME FLAGS...: tools/NAME.py on DEVICES processes of each node; one needs no torchrun
    local name="$1" tool="$ROOT/tools/$1.py" RANKS=("$PYTHON")
    shift
    [ "$((DEVICES * ${NNODES:-1}))" -eq 1 ] || _torchrun
    if [ "${DRY_RUN:-0}" = 1 ]; then
        WORLD_SIZE="$((DEVICES * ${NNODES:-1}))" dry_run "$tool" "${RANKS[@]}" "$tool" "$@"
    else
        logged "$name" "${RANKS[@]}" "$tool" "$@"
    fi
}

run_tool() {  # run_tool NAME FLAGS...: one process of tools/NAME.py
    local DEVICES=1 NNODES=1
    run_ranks "$@"
}

run_training() {  # run_training LOG FLAGS...: tools/posttrain_gpt.py on DEVICES processes of each node
    local name="$1" tool="$ROOT/tools/posttrain_gpt.py" RANKS
    shift
    _torchrun
    local command=("${RANKS[@]}" "$tool" "$@")
    if [ "${DRY_RUN:-0}" = 1 ]; then
        WORLD_SIZE="$((DEVICES * ${NNODES:-1}))" dry_run "$tool" "${command[@]}"
    else
        local code=0
        stoppable "$name" "${command[@]}" || code=$?
        # Not after a flag to mend (2), nor after a signal.
        if [ "$code" != 0 ] && [ "$code" != 2 ] && [ "$code" -lt 128 ]; then
            echo "the doctor looks for the cause; a report begins with what it says, kept in $LOG_DIR/$name.doctor.log" >&2
            WORLD_SIZE="$((DEVICES * ${NNODES:-1}))" "$PYTHON" -m mindspeed_ift.cli.main doctor "$@" 2>&1 |
                tee "$LOG_DIR/$name.doctor.log" >&2 || true
        fi
        return "$code"
    fi
}

# The model of LOAD over TP x PP devices, into ASKED; in a trial (SMOKE=1) in one process.
_asked() {  # _asked TP PP
    local tp="$1" pp="$2"
    LOAD="${LOAD:-$ROOT/output/$(basename "$0" .sh | cut -d _ -f 2-)}"
    need_path LOAD "the SAVE folder of a tune script, or a Hugging Face folder"
    [ -z "${TOKENIZER:-}" ] || need_path TOKENIZER "a tokenizer folder, or to nothing"
    [ "${SMOKE:-0}" != 1 ] || tp=1 pp=1 NNODES=1 DEVICES="${DEVICES:-1}"
    TP="${TP:-$tp}" PP="${PP:-$pp}"
    ASKED=(--load "$LOAD" ${TOKENIZER:+--tokenizer-name-or-path "$TOKENIZER"}
        --tensor-model-parallel-size "$TP" --pipeline-model-parallel-size "$PP" --max-new-tokens "${MAX_NEW_TOKENS:-256}")
}

generate() {  # generate TP PP FLAGS...: answers of the model of LOAD, on TP x PP processes
    local ASKED
    _asked "$1" "$2"
    shift 2
    DEVICES="$((TP * PP / ${NNODES:-1}))"
    run_ranks inference "${ASKED[@]}" "$@"
}

evaluate() {  # evaluate TP PP FLAGS...: the model of LOAD on INPUT, against BASELINE, on all devices; TP x PP hold it once
    local ASKED
    _asked "$1" "$2"
    shift 2
    INPUT="${INPUT:-$ROOT/examples/data/heldout.jsonl}"
    need_path INPUT "held-out records"
    [ "${BASELINE:-fresh}" = fresh ] || need_path BASELINE "the model before tuning, to fresh, or to nothing"
    RESULT="${RESULT:-$ROOT/output/$(basename "$0" .sh)}"
    DEVICES="${DEVICES:-$(count_devices)}"
    [ "$DEVICES" -gt 0 ] || DEVICES="$((TP * PP / ${NNODES:-1}))"
    run_ranks evaluation "${ASKED[@]}" --input "$INPUT" ${BASELINE:+--baseline "$BASELINE"} \
        --metrics ${METRICS:-exact_match rouge_l chrf} --output "$RESULT.json" --html "$RESULT.html" "$@"
}

# tune SIZE TP PP CP FLAGS...: Qwen3-SIZE from HF_MODEL on DATA_PATH into SAVE; goes on where SAVE stopped.
# A mixture of experts sets DEFAULT_EP, over how many devices of a pipeline stage its experts are spread, each whole.
tune() {
    local name size="$1" tp="$2" pp="$3" cp="$4" ep="${DEFAULT_EP:-}" model stage
    shift 4
    name="$(basename "$0" .sh)"
    DATA_PATH="${DATA_PATH:-$ROOT/output/dataset/$DATASET}"
    SAVE="${SAVE:-$ROOT/output/${name#tune_}}"
    need_dataset DATA_PATH
    DEVICES="${DEVICES:-$(count_devices)}"
    if [ "${SMOKE:-0}" = 1 ]; then  # a tiny model of the same shape in fp32, on this machine
        model=(--num-layers 2 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4 --num-query-groups 2
            --kv-channels 16)
        [ -z "$ep" ] || model+=(--num-experts 8 --moe-router-topk 2 --moe-ffn-hidden-size 48) ep=1
        tp=1 pp=1 cp="$((cp > 1 ? 2 : 1))" NNODES=1 DEFAULT_GBS=2
    else
        model=(--preset "qwen3-$size" --bf16)
    fi
    TP="${TP:-$tp}" PP="${PP:-$pp}" CP="${CP:-$cp}" EP="${EP:-$ep}"
    # Without accelerators: as many processes as the layout asks for.
    stage="$((TP * CP > ${EP:-1} ? TP * CP : ${EP:-1}))"
    [ "$DEVICES" -gt 0 ] || DEVICES="$((stage * PP / ${NNODES:-1}))"
    model+=(--tensor-model-parallel-size "$TP" --pipeline-model-parallel-size "$PP" --use-distributed-optimizer)
    [ "$TP" -eq 1 ] || model+=(--sequence-parallel)
    [ "$CP" -eq 1 ] || model+=(--context-parallel-size "$CP" --context-parallel-algo "${CP_ALGO:-megatron_cp_algo}")
    [ -z "$EP" ] || model+=(--expert-model-parallel-size "$EP" --expert-tensor-parallel-size 1
        --moe-aux-loss-coeff "${AUX_LOSS:-0.001}")
    if [ -z "${ADAPTERS:-}" ] && [ -e "$SAVE/latest_checkpointed_iteration.txt" ]; then
        model+=(--load "$SAVE")
    elif [ -n "${HF_MODEL:-}" ]; then
        need_path HF_MODEL "a Hugging Face folder of Qwen3-${size^^}"
        model+=(--load "$HF_MODEL" --enable-hf2mg-convert)
    elif [ "${SMOKE:-0}" != 1 ]; then
        need_path HF_MODEL "a Hugging Face folder of Qwen3-${size^^}"
    fi
    # Adapters are saved without the weights that they belong to, if these lie in a folder of their own.
    [ -z "${ADAPTERS:-}" ] || model+=(--lora-load "$SAVE" ${HF_MODEL:+--lora-ckpt-filter})
    run_training "$name" "${model[@]}" --data-path "$DATA_PATH" \
        --seq-length "${SEQ_LENGTH:-${DEFAULT_SEQ_LENGTH:-4096}}" --micro-batch-size "${MBS:-1}" --global-batch-size "${GBS:-${DEFAULT_GBS:-16}}" \
        --train-iters "${TRAIN_ITERS:-2000}" --lr "${LR:-1.25e-6}" --min-lr "${MIN_LR:-1.25e-7}" \
        --lr-decay-style cosine --lr-warmup-fraction "${WARMUP:-0.01}" --weight-decay 1e-1 --clip-grad 1.0 \
        --adam-beta1 0.9 --adam-beta2 0.95 --save "$SAVE" --save-interval "${SAVE_INTERVAL:-1000}" \
        --stage sft --is-instruction-dataset "$@"
}
