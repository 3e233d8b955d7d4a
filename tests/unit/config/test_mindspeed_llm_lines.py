"""Command lines as people bring them from MindSpeed-LLM's Qwen3 scripts: they run, or one line says what is missing.

What is checked is that nothing is lost on the way: each flag either reaches the configuration, or is told to change
nothing; and the model that all the sizes spell out is the known one.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mindspeed_ift.cli import convert, evaluate, generate, preprocess, tune
from mindspeed_ift.config import accepted
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import Option, Parsed, options, parse_with_origins
from mindspeed_ift.config.layout import Layout, layout_of
from mindspeed_ift.config.resolve import resolve_architecture
from mindspeed_ift.config.rules import check_flags, check_layout, num_micro_batches
from mindspeed_ift.config.tuning import TuneConfig

# What the scripts say alike, in the order of the alphabet.
SAME = """
--adam-beta1 0.9 --adam-beta2 0.95 --attention-dropout 0 --attention-softmax-in-fp32 --bf16 --ckpt-format torch
--clip-grad 1.0 --data-path data/alpaca --disable-bias-linear --distributed-backend nccl --enable-hf2mg-convert
--eval-iters 0 --finetune --group-query-attention --handler-name AlpacaStyleInstructionHandler --hidden-dropout 0
--is-instruction-dataset --kv-channels 128 --load weights --log-interval 1 --lr 1.25e-6 --make-vocab-size-divisible-by 1
--micro-batch-size 1 --min-lr 1.25e-7 --model-type-hf qwen3 --no-gradient-accumulation-fusion --no-load-optim
--no-load-rng --no-masked-softmax-fusion --norm-epsilon 1e-6 --normalization RMSNorm --num-query-groups 8
--padded-vocab-size 151936 --position-embedding-type rope --prompt-type qwen3 --qk-layernorm --rotary-base 1000000
--save output --seed 42 --spec mindspeed_llm.tasks.models.spec.qwen3_spec layer_spec --split 100,0,0 --stage sft --swiglu
--tokenizer-name-or-path tokenizer --tokenizer-type PretrainedFromHF --train-iters 2000 --transformer-impl local
--use-flash-attn --use-mcore-models --use-rotary-position-embeddings --weight-decay 1e-1
"""
DYNAMIC = "--no-pad-to-seq-lengths --exit-on-missing-checkpoint"
LARGE = """
--init-method-std 0.01 --initial-loss-scale 4096 --lr-decay-style cosine --lr-warmup-fraction 0.01 --no-shared-storage
--tokenizer-not-use-fast --use-distributed-optimizer --use-fused-rmsnorm --use-fused-rotary-pos-emb --use-fused-swiglu
--untie-embeddings-and-output-weights --eval-interval 2000 --save-interval 2000
"""
PACKED = """
--attention-mask-type general --enable-thinking true --neat-pack --pack --reset-attention-mask --workers 4
--log-throughput --recompute-granularity full --recompute-method uniform --recompute-num-layers 1 --use-ascend-mc2
"""
SIZES = {
    "qwen3-0.6b": "--num-layers 28 --hidden-size 1024 --ffn-hidden-size 3072 --num-attention-heads 16",
    "qwen3-1.7b": "--num-layers 28 --hidden-size 2048 --ffn-hidden-size 6144 --num-attention-heads 16",
    "qwen3-4b": "--num-layers 36 --hidden-size 2560 --ffn-hidden-size 9728 --num-attention-heads 32",
    "qwen3-8b": "--num-layers 36 --hidden-size 4096 --ffn-hidden-size 12288 --num-attention-heads 32",
    "qwen3-14b": "--num-layers 40 --hidden-size 5120 --ffn-hidden-size 17408 --num-attention-heads 40",
    "qwen3-32b": "--num-layers 64 --hidden-size 5120 --ffn-hidden-size 25600 --num-attention-heads 64",
    "qwen3-30b-a3b": "--num-layers 48 --hidden-size 2048 --ffn-hidden-size 6144 --num-attention-heads 32",
    "qwen3-235b-a22b": "--num-layers 94 --hidden-size 4096 --ffn-hidden-size 12288 --num-attention-heads 64",
}

EXPERTS = """
--model-type-hf qwen3-moe --num-experts 128 --moe-router-topk 8 --norm-topk-prob --moe-grouped-gemm --num-query-groups 4
--moe-permutation-async-comm --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.001
"""


@dataclass(frozen=True)
class Script:
    """One tuning script.

    Attributes:
        model: preset it must come to.
        own: flags beside `SAME` and the sizes.
        layout: it must come to.
        micro_batches: of a step.
    """

    model: str
    own: str
    layout: Layout
    micro_batches: int


def _parallel(tensor: int, pipeline: int) -> str:
    return f"--tensor-model-parallel-size {tensor} --pipeline-model-parallel-size {pipeline}"


SCRIPTS = {
    "tune_qwen3_0point6b_4K_full": Script(
        "qwen3-0.6b",
        f"{_parallel(1, 1)} --sequence-parallel --seq-length 8192 --max-position-embeddings 32768 --global-batch-size 16 "
        f"--lr-warmup-fraction 0.01 --log-throughput --save-interval 2000 --eval-interval 2000 {DYNAMIC}",
        Layout(1, 1, 8),
        2,
    ),
    "tune_qwen3_1point7b_4K_full": Script(
        "qwen3-1.7b",
        f"{_parallel(1, 1)} --sequence-parallel --seq-length 4096 --max-position-embeddings 4096 --global-batch-size 32 "
        f"--lr-warmup-fraction 0.01 --log-throughput {DYNAMIC}",
        Layout(1, 1, 8),
        4,
    ),
    "tune_qwen3_4b_4K_full": Script(
        "qwen3-4b",
        f"{_parallel(1, 1)} --sequence-parallel --use-distributed-optimizer --seq-length 4096 "
        f"--max-position-embeddings 32768 --global-batch-size 16 --initial-loss-scale 4096 {DYNAMIC}",
        Layout(1, 1, 8),
        2,
    ),
    "tune_qwen3_8b_4K_full": Script(
        "qwen3-8b",
        f"{_parallel(1, 2)} --sequence-parallel --use-distributed-optimizer --untie-embeddings-and-output-weights "
        f"--seq-length 4096 --max-position-embeddings 32768 --global-batch-size 16 --initial-loss-scale 4096 "
        f"--enable-thinking true --prompt-type qwen3 --workers 4 {DYNAMIC}",
        Layout(1, 2, 4),
        4,
    ),
    "tune_qwen3_8b_4K_full, as it was with --variable-seq-lengths": Script(
        "qwen3-8b",
        f"{_parallel(1, 2)} --sequence-parallel --use-distributed-optimizer --untie-embeddings-and-output-weights "
        "--seq-length 4096 --max-position-embeddings 32768 --global-batch-size 16 --variable-seq-lengths",
        Layout(1, 2, 4),
        4,
    ),
    "tune_qwen3_14b_4K_full": Script(
        "qwen3-14b",
        f"{_parallel(8, 1)} --sequence-parallel --untie-embeddings-and-output-weights --seq-length 4096 "
        f"--max-position-embeddings 40960 --global-batch-size 16 --lr-warmup-fraction 0.01 {DYNAMIC}",
        Layout(8, 1, 1, True),
        16,
    ),
    "tune_qwen3_32b_4K_full": Script(
        "qwen3-32b",
        f"{_parallel(8, 2)} {LARGE} --seq-length 4096 --max-position-embeddings 4096 --global-batch-size 16 {DYNAMIC}",
        Layout(8, 2, 1),
        16,
    ),
    "tune_qwen3_32b_32K_full_pack, without context and virtual pipeline parallelism": Script(
        "qwen3-32b",
        f"{_parallel(4, 2)} --sequence-parallel {LARGE} {PACKED} --seq-length 32768 --max-position-embeddings 32768 "
        "--global-batch-size 32",
        Layout(4, 2, 4, True),
        8,
    ),
    "tune_qwen3_32b_256K_full_pack, without context parallelism": Script(
        "qwen3-32b",
        f"{_parallel(8, 1)} --sequence-parallel {LARGE} {PACKED} --recompute-method block --recompute-num-layers 48 "
        "--use-ascend-coc --coc-fused-kernel --seq-length 262144 --max-position-embeddings 262144 --global-batch-size 32",
        Layout(8, 1, 16, True),
        2,
    ),
    "tune_qwen3_30b_a3b_4K_full": Script(
        "qwen3-30b-a3b",
        f"{_parallel(4, 2)} --sequence-parallel {LARGE} {EXPERTS} --moe-ffn-hidden-size 768 --seq-length 4096 "
        "--max-position-embeddings 4096 --global-batch-size 16 --expert-model-parallel-size 2 --moe-layer-freq -1 "
        "--first-k-dense-replace -1 --moe-token-dispatcher-type alltoall_seq",
        Layout(4, 2, 2, True, expert=2),
        8,
    ),
    "tune_qwen3_30b_a3b_4K_lora, without adapters": Script(
        "qwen3-30b-a3b",
        f"{_parallel(4, 1)} --sequence-parallel {LARGE} {EXPERTS} --moe-ffn-hidden-size 768 --seq-length 4096 "
        "--max-position-embeddings 4096 --global-batch-size 16 --expert-model-parallel-size 1 "
        "--moe-alltoall-overlap-comm --use-fused-moe-token-permute-and-unpermute",
        Layout(4, 1, 2, True),
        8,
    ),
    "tune_qwen3_235b_a22b_64K_full_pack": Script(
        "qwen3-235b-a22b",
        f"{_parallel(4, 8)} --sequence-parallel {LARGE} {EXPERTS} {PACKED} --moe-ffn-hidden-size 1536 --seq-length 65536 "
        "--max-position-embeddings 65536 --global-batch-size 32 --expert-model-parallel-size 32 --context-parallel-size 4 "
        "--context-parallel-algo ulysses_cp_algo --expert-tensor-parallel-size 1 --moe-layer-freq 1 "
        "--first-k-dense-replace 0 --moe-token-dispatcher-type alltoall --moe-fb-overlap --moe-permute-fusion "
        "--num-layers 96 --noop-layers 94,95 --num-layers-per-virtual-pipeline-stage 4",
        Layout(4, 8, 2, True, 4, 4, expert=32, expert_tensor=1, chunk_layers=4, noop_layers=(94, 95)),
        16,
    ),
}


def line_of(script: Script) -> list[str]:
    return f"{SAME} {SIZES[script.model]} {script.own}".split()


def read(line: list[str]) -> Parsed:
    return parse_with_origins(TuneConfig, line, program="posttrain_gpt.py", accepted=accepted.ACCEPTED)


def flags_of(line: list[str]) -> set[str]:
    return {word for word in line if word.startswith("--")}


def assert_nothing_is_lost(line: list[str], parsed: Parsed, known: list[Option]) -> None:
    """Every flag of the line either has reached the configuration, or stands among the ignored ones."""
    reached = {flag for one in known if parsed.origins[one.name] == "flag" for flag in one.spellings}
    ignored = {text.split()[0] for text in parsed.ignored}
    assert flags_of(line) - reached == ignored
    assert all(" changes nothing here: " in text for text in parsed.ignored)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_pasted_tuning_line_comes_to_the_known_model(name: str) -> None:
    script = SCRIPTS[name]
    parsed = read(line_of(script))
    config: TuneConfig = parsed.config
    check_flags(config)
    layout = layout_of(config.layout, script.layout.world)
    known = Architecture.from_preset(script.model)
    for loaded in ({}, {"--load weights": known}):
        architecture, _ = resolve_architecture(config.model, loaded, 151669, len(layout.noop_layers))
        check_layout(config, architecture, layout)
        free = {"max_position_embeddings", "init_method_std"} if not loaded else set()
        assert {k: v for k, v in vars(architecture).items() if k not in free} == {
            k: v for k, v in vars(known).items() if k not in free
        }
    assert layout == script.layout
    assert num_micro_batches(config, layout) == script.micro_batches
    assert_nothing_is_lost(line_of(script), parsed, options(TuneConfig))


def test_what_the_line_of_the_8b_asks_for_is_what_is_done() -> None:
    config: TuneConfig = read(line_of(SCRIPTS["tune_qwen3_8b_4K_full"])).config
    optimizer, data, run = config.optimizer, config.data, config.run
    assert (optimizer.lr, optimizer.min_lr, optimizer.weight_decay, optimizer.clip_grad) == (1.25e-6, 1.25e-7, 0.1, 1.0)
    assert (optimizer.adam_beta1, optimizer.adam_beta2, optimizer.seed, optimizer.bf16) == (0.9, 0.95, 42, True)
    assert optimizer.lr_decay_style == "linear", "the line does not say; Megatron's default"
    assert (data.pad_to_seq_lengths, data.seq_length, data.prompt_type) == (False, 4096, "qwen3")
    assert data.enable_thinking == "true"
    assert (run.finetune, run.enable_hf2mg_convert, run.load_optim, run.load_rng) == (True, True, False, False)
    assert (run.eval_iters, run.distributed_backend, config.model.qk_layernorm) == (0, "nccl", True)


def test_what_the_line_leaves_out_has_megatrons_default() -> None:
    """Values of megatron/training/arguments.py where ours has the same meaning."""
    optimizer = TuneConfig().optimizer
    assert (optimizer.lr_decay_style, optimizer.min_lr, optimizer.lr_warmup_iters) == ("linear", 0.0, 0)
    assert (optimizer.adam_beta1, optimizer.adam_beta2, optimizer.adam_eps) == (0.9, 0.999, 1e-8)
    assert (optimizer.weight_decay, optimizer.clip_grad, optimizer.seed) == (0.01, 1.0, 1234)
    assert (TuneConfig().run.eval_interval, TuneConfig().data.pad_to_multiple_of) == (1000, 8)
    assert not any(vars(TuneConfig().layout)[name] for name in ("sequence_parallel", "use_distributed_optimizer"))


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ("--fp8-format hybrid", "--fp8-format is not supported"),
        ("--attention-dropout 0.1", "--attention-dropout 0.1 is not supported: only 0"),
        ("--hidden-dropout 0.1", "--hidden-dropout 0.1 is not supported: only 0"),
        ("--moe-expert-capacity-factor 1.0", "--moe-expert-capacity-factor is not supported: experts are chosen by"),
        ("--moe-tp-extend-ep", "--moe-tp-extend-ep is not supported: give --expert-tensor-parallel-size 1"),
        ("--moe-intermediate-size 8", "--moe-intermediate-size is not supported: give --moe-ffn-hidden-size"),
        ("--moe-token-dispatcher-type flex", "--moe-token-dispatcher-type flex is not supported: only alltoall"),
        ("--moe-layer-freq 2", "--moe-layer-freq 2 is not supported: only 1 or -1"),
        ("--moe-router-load-balancing-type sinkhorn", "invalid choice 'sinkhorn'"),
        ("--moe-shared-expert-intermediate-size 8", "--moe-shared-expert-intermediate-size is not supported"),
        ("--add-qkv-bias", "--add-qkv-bias is not supported: Qwen3 has no biases"),
        ("--multi-latent-attention", "--multi-latent-attention is not supported"),
        ("--mtp-num-layers 1", "--mtp-num-layers is not supported"),
        ("--lora-r 8 --lora-alpha 16", "--lora-r needs --lora-target-modules"),
        ("--lu-lora-lr 1e-6", "--lu-lora-lr is not supported: all adapters have one learning rate"),
        ("--qat-scheme w4a4-mxfp4", "--qat-scheme is not supported: weights are trained in the type that they have"),
        ("--fix-router", "--fix-router is not supported: each token goes to the experts that the router chooses"),
        ("--qlora", "--qlora is not supported: frozen weights are not quantized"),
        ("--rope-scaling-type yarn", "--rope-scaling-type is not supported: positions are not scaled"),
        ("--use-rope-scaling", "--use-rope-scaling is not supported"),
        ("--rotary-percent 0.5", "--rotary-percent 0.5 is not supported: only 1.0"),
        ("--position-embedding-type alibi", "--position-embedding-type alibi is not supported: only rope"),
        ("--normalization LayerNorm", "--normalization LayerNorm is not supported: only RMSNorm"),
        ("--model-type-hf qwen25", "--model-type-hf qwen25 is not supported: only qwen3"),
        ("--spec mindspeed_llm.tasks.models.spec.gemma2_spec layer_spec", "gemma2_spec layer_spec is not supported"),
        ("--ckpt-format zarr", "invalid choice 'zarr' for argument '--ckpt-format'"),
        ("--dataloader-type cyclic", "--dataloader-type cyclic is not supported: only single"),
        ("--tokenizer-padding-side left", "--tokenizer-padding-side left is not supported: only right"),
        ("--tokenizer-type Llama2Tokenizer", "invalid choice 'Llama2Tokenizer' for argument '--tokenizer-type'"),
        ("--stage dpo", "invalid choice 'dpo' for argument '--stage'"),
        ("--is-pairwise-dataset", "--is-pairwise-dataset is not supported"),
        ("--train-samples 100", "--train-samples is not supported: give --train-iters"),
        ("--rampup-batch-size 8 8 100", "--rampup-batch-size is not supported"),
        ("--use-torch-fsdp2", "--use-torch-fsdp2 is not supported: give --use-distributed-optimizer"),
        ("--no-save-optim", "--no-save-optim is not supported"),
        ("--use-swanlab", "--use-swanlab is not supported: give --swanlab-project"),
        ("--report-to wandb", "name a tracker by --wandb-project, --swanlab-project or --tensorboard-dir"),
        ("--swap-optimizer", "give --optimizer-cpu-offload to keep the optimizer's state on the host"),
        ("--cpu-offloading", "activations can be kept on the host only by TransformerEngine"),
        ("--fine-grained-activation-offloading", "only by TransformerEngine"),
        ("--use-precision-aware-optimizer", "it needs TransformerEngine's Adam"),
        ("--lr-decay-style inverse-square-root", "invalid choice"),
    ],
)
def test_what_means_something_else_is_refused_not_ignored(added: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        check_flags(read([*line_of(SCRIPTS["tune_qwen3_8b_4K_full"]), *added.split()]).config)
    assert expected in str(caught.value)


# Data preparation

_DATA = (
    "--input data/train-00000-of-00001.parquet --output-prefix dataset/alpaca --tokenizer-type PretrainedFromHF "
    "--tokenizer-name-or-path weights --workers 4 --log-interval 1000"
)


@pytest.mark.parametrize(
    "line",
    [
        f"{_DATA} --handler-name AlpacaStyleInstructionHandler --enable-thinking true --prompt-type qwen3",
        f"{_DATA} --handler-name GeneralPretrainHandler --json-keys text",
        f"{_DATA} --handler-name AlpacaStyleInstructionHandler --prompt-type qwen --seq-length 4096 --append-eod --pack "
        "--neat-pack --overwrite-cache --tokenizer-not-use-fast --pad-vocab-size-to 152064 --vocab-file vocab.json "
        "--merge-file merges.txt --keep-newlines",
        f"{_DATA} --handler-name SharegptStyleInstructionHandler --prompt-type qwen3 --cache-dir cache --n-subs 4",
        f"{_DATA} --handler-name AlpacaStyleInstructionHandler --prompt-type qwen "
        '--map-keys {"prompt":"instruction","query":"input","response":"output"}',
    ],
)
def test_a_pasted_line_of_data_preparation_is_taken(line: str) -> None:
    words = line.split()
    parsed = parse_with_origins(
        PreprocessConfig, words, program="preprocess_data.py", accepted=accepted.PREPARATION_ACCEPTED
    )
    parsed.config.check()
    assert_nothing_is_lost(words, parsed, options(PreprocessConfig))


# Checkpoint conversion


@pytest.mark.parametrize(
    "line",
    [
        "--load-model-type hf --save-model-type mg --target-tensor-parallel-size 1 --target-pipeline-parallel-size 8 "
        "--load-dir weights --save-dir megatron --model-type-hf qwen3",
        "--load-model-type mg --save-model-type hf --load-dir megatron --save-dir weights --hf-cfg-dir original "
        "--model-type-hf qwen3",
        "--use-mcore-models --model-type GPT --load-model-type hf --save-model-type mg --target-tensor-parallel-size 1 "
        "--target-pipeline-parallel-size 8 --target-expert-parallel-size 1 --load-dir weights --save-dir megatron "
        "--spec mindspeed_llm.tasks.models.spec.qwen3_spec layer_spec --tokenizer-model weights/tokenizer.json "
        "--model-type-hf qwen3",
        "--load-model-type hf --save-model-type mg --target-tensor-parallel-size 1 --target-pipeline-parallel-size 4 "
        "--target-expert-parallel-size 32 --load-dir weights --save-dir megatron --moe-grouped-gemm "
        "--expert-tensor-parallel-size 1 --model-type-hf qwen3-moe",
    ],
)
def test_a_pasted_line_of_conversion_is_taken(line: str) -> None:
    words = line.split()
    parsed = parse_with_origins(ConvertConfig, words, program="convert_ckpt.py", accepted=accepted.CONVERT_ACCEPTED)
    assert_nothing_is_lost(words, parsed, options(ConvertConfig))


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ("--moe-tp-extend-ep", "--moe-tp-extend-ep is not supported"),
        ("--model-type-hf qwen2-moe", "invalid choice 'qwen2-moe'"),
        ("--params-dtype fp16", "--params-dtype is not supported"),
    ],
)
def test_a_conversion_of_another_kind_is_refused(added: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_with_origins(ConvertConfig, added.split(), program="convert_ckpt.py", accepted=accepted.CONVERT_ACCEPTED)
    assert expected in str(caught.value)


# The tables


def test_every_command_uses_its_table() -> None:
    assert generate.ASKING_ACCEPTED is evaluate.ASKING_ACCEPTED is accepted.ASKING_ACCEPTED
    assert tune.ACCEPTED is accepted.ACCEPTED and convert.CONVERT_ACCEPTED is accepted.CONVERT_ACCEPTED
    assert preprocess.PREPARATION_ACCEPTED is accepted.PREPARATION_ACCEPTED


@pytest.mark.parametrize(
    "table", [accepted.ACCEPTED, accepted.CONVERT_ACCEPTED, accepted.ASKING_ACCEPTED, accepted.PREPARATION_ACCEPTED]
)
def test_every_accepted_flag_has_a_reason(table: accepted.Accepted) -> None:
    for flag, (arity, reason, *only) in table.items():
        assert flag.startswith("--") and arity >= 0 and len(reason.split()) > 2
        assert not only or only[0]
    assert not set(table) & set(accepted.REFUSED)
