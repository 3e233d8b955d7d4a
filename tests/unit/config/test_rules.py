"""Every rule, by the flags that break it; and flags that look odd but are fine."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest

from mindspeed_ift.config import rules
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.layout import Layout, layout_of
from mindspeed_ift.config.rules import check_flags, check_layout, num_micro_batches
from mindspeed_ift.config.tuning import TuneConfig

GOOD = "--data-path data --train-iters 100"

# Flags beside GOOD -> what the message must say.
BROKEN = [
    (
        "--moe-router-load-balancing-type none --moe-aux-loss-coeff 0.1",
        "--moe-router-load-balancing-type none and --moe-aux-loss-coeff exclude each other",
    ),
    ("--moe-aux-loss-coeff -1", "--moe-aux-loss-coeff -1.0 must not be negative"),
    ("--num-experts 0", "--num-experts 0 must be at least 1"),
    ("--expert-tensor-parallel-size 0", "--expert-tensor-parallel-size 0 must be at least 1"),
    ("--lora-target-modules q_proj", "--lora-target-modules q_proj is no module; give some of: linear_qkv"),
    ("--lora-target-modules linear_qkv --lora-r 0", "--lora-r 0 and --lora-alpha 32 must be at least 1"),
    ("--lora-target-modules linear_qkv --lora-dropout 1", "--lora-dropout 1.0 must be at least 0 and less than 1"),
    (
        "--lora-target-modules linear_qkv --lora-modules-to-save embed_tokens",
        "--lora-modules-to-save embed_tokens is no module; give some of: word_embeddings output_layer",
    ),
    (
        "--lora-target-modules linear_qkv --lora-modules-to-save linear_qkv",
        "--lora-modules-to-save linear_qkv has adapters; give some of: word_embeddings",
    ),
    ("--optimizer-cpu-offload --bf16", "--optimizer-cpu-offload needs --bf16 and --use-distributed-optimizer"),
    ("--optimizer-cpu-offload --use-distributed-optimizer", "--optimizer-cpu-offload needs --bf16"),
    ("--optimizer-offload-fraction 0.5", "--optimizer-offload-fraction needs --optimizer-cpu-offload"),
    (
        "--optimizer-cpu-offload --bf16 --use-distributed-optimizer --optimizer-offload-fraction 1.5",
        "--optimizer-offload-fraction 1.5 must be over 0 and at most 1",
    ),
    ("--profile-level level1", "--profile-level needs --profile"),
    ("--save x --profile --profile-step-end 10", "--profile-step-end 10 must be over --profile-step-start 10"),
    ("--save x --profile --profile-step-start 101 --profile-step-end 102", "is over --train-iters 100"),
    ("--profile", "--profile needs --save, or --profile-save-path"),
    ("--lora-ckpt-filter", "--lora-ckpt-filter needs --lora-target-modules"),
    ("--use-dora", "--use-dora needs --lora-target-modules"),
    ("--lora-load x", "--lora-load needs --lora-target-modules"),
    ("--no-is-instruction-dataset", "--no-is-instruction-dataset is not supported"),
    ("--no-qk-layernorm", "--no-qk-layernorm is not supported"),
    ("--group-query-attention", "--group-query-attention needs --num-query-groups"),
    ("--no-group-query-attention --num-query-groups 2 --num-attention-heads 4", "exclude each other"),
    ("--data-path 0.5 a b", "--data-path 0.5 a b: not every dataset has its weight"),
    ("--valid-data-path 0 a 1 b", "--valid-data-path: the weight 0 is not over 0"),
    ("--data-path a b --pack-index x.npz", "--pack-index is of one dataset, --data-path names 2"),
    ("--data-path a b --balance-packs", "--balance-packs deals the rows of one dataset, --data-path names 2"),
    ("--train-iters 0", "--train-iters 0 must be at least 1"),
    ("--micro-batch-size 0", "--micro-batch-size 0 must be at least 1"),
    ("--global-batch-size 0", "--global-batch-size 0 must be at least 1"),
    ("--lr-decay-iters 0", "--lr-decay-iters 0 must be at least 1"),
    ("--recompute-granularity full --recompute-method uniform --recompute-num-layers 0", "must be at least 1"),
    ("--loss-chunk-size -1", "--loss-chunk-size -1 must be at least 1"),
    ("--seq-length 0", "--seq-length 0 must be at least 1"),
    ("--pad-to-multiple-of 0", "--pad-to-multiple-of 0 must be at least 1"),
    ("--log-interval 0", "--log-interval 0 must be at least 1"),
    ("--eval-interval 0", "--eval-interval 0 must be at least 1"),
    ("--save x --save-interval 0", "--save-interval 0 must be at least 1"),
    ("--exit-interval 0", "--exit-interval 0 must be at least 1"),
    ("--distributed-timeout-minutes 0", "--distributed-timeout-minutes 0 must be at least 1"),
    ("--padded-vocab-size 0", "--padded-vocab-size 0 must be at least 1"),
    ("--make-vocab-size-divisible-by 0", "--make-vocab-size-divisible-by 0 must be at least 1"),
    ("--context-parallel-size 0", "--context-parallel-size 0 must be at least 1"),
    ("--expert-model-parallel-size -1", "--expert-model-parallel-size -1 must be at least 1"),
    ("--min-lr -1", "--min-lr -1.0 must not be negative"),
    ("--lr-warmup-init -1", "--lr-warmup-init -1.0 must not be negative"),
    ("--lr-warmup-iters -1", "--lr-warmup-iters -1 must not be negative"),
    ("--weight-decay -0.1", "--weight-decay -0.1 must not be negative"),
    ("--clip-grad -1", "--clip-grad -1.0 must not be negative"),
    ("--eval-iters -1", "--eval-iters -1 must not be negative"),
    ("--keep-last 0 --save x", "--keep-last 0 must be at least 1"),
    ("--save-best", "--save-best needs --save"),
    ("--early-stopping-patience 0", "--early-stopping-patience 0 must be at least 1"),
    ("--keep-last 2", "--keep-last needs --save"),
    ("--max-skipped-steps -1", "--max-skipped-steps -1 must not be negative"),
    ("--seed -1", "--seed -1 must not be negative"),
    ("--lr 0", "--lr 0.0 must be over 0"),
    ("--lr -1", "--lr -1.0 must be over 0"),
    ("--adam-eps 0", "--adam-eps 0.0 must be over 0"),
    ("--adam-beta1 1", "--adam-beta1 1.0 must be at least 0 and less than 1"),
    ("--adam-beta2 -0.1", "--adam-beta2 -0.1 must be at least 0 and less than 1"),
    ("--lr-warmup-fraction 0.1 --lr-warmup-iters 5", "exclude each other; give one"),
    ("--lr-warmup-fraction 1", "--lr-warmup-fraction 1.0 must be at least 0 and less than 1"),
    ("--lr-warmup-fraction -0.1", "--lr-warmup-fraction -0.1 must be at least 0 and less than 1"),
    ("--lr 1e-5 --min-lr 2e-5", "--min-lr 2e-05 is over --lr 1e-05"),
    ("--lr 1e-5 --lr-warmup-init 2e-5 --lr-warmup-iters 5", "--lr-warmup-init 2e-05 is over --lr 1e-05"),
    ("--lr-warmup-init 1e-7", "--lr-warmup-init needs --lr-warmup-iters"),
    ("--lr-warmup-iters 100", "--lr-warmup-iters 100 must be less than the 100 decay steps"),
    ("--lr-warmup-iters 10 --lr-decay-iters 10", "must be less than the 10 decay steps"),
    ("--overlap-param-gather --overlap-grad-reduce", "--overlap-param-gather needs --use-distributed-optimizer"),
    ("--overlap-param-gather --use-distributed-optimizer", "--overlap-param-gather needs --overlap-grad-reduce"),
    ("--neat-pack", "--neat-pack needs --reset-attention-mask"),
    ("--pack --pack-index rows.npz", "--pack and --pack-index exclude each other"),
    ("--packing-algorithm best-fit", "--packing-algorithm is about rows that are made now; give --pack"),
    ("--pack-index rows.npz --max-segments 8", "--max-segments is about rows that are made now; give --pack"),
    ("--balance-packs", "--balance-packs is about packed rows"),
    ("--balance-packs --reset-attention-mask --no-shuffle", "--balance-packs and --no-shuffle exclude each other"),
    ("--pack --max-segments 1", "--max-segments 1 must be at least 2"),
    ("--recompute-granularity full", "--recompute-granularity full needs --recompute-method"),
    ("--recompute-method uniform", "--recompute-method needs --recompute-granularity full"),
    ("--recompute-granularity selective --recompute-method block", "needs --recompute-granularity full"),
    ("--recompute-num-layers 2", "--recompute-num-layers needs --recompute-granularity full"),
    ("--loss-chunk-size 512", "--loss-chunk-size needs --loss-compute-mode chunk"),
    ("--ulysses-degree-in-cp 2", "--ulysses-degree-in-cp needs --context-parallel-size over 1"),
    ("--enable-hf2mg-convert", "--enable-hf2mg-convert needs --load"),
    ("--finetune", "--finetune needs --load"),
    ("--save-interval 5", "--save-interval needs --save"),
]
# Rules that look at what GOOD gives.
MISSING = [
    ("--train-iters 100", "--data-path is missing"),
    ("--data-path data", "--train-iters is missing"),
]
FINE = [
    "",
    "--clip-grad 0 --weight-decay 0 --min-lr 0 --eval-iters 0 --seed 0 --adam-beta1 0",
    "--lr 1e-5 --min-lr 1e-5",
    "--lr-warmup-fraction 0",
    "--lr-warmup-fraction 0.99 --lr-warmup-init 1e-7",
    "--sequence-parallel",
    "--group-query-attention --num-query-groups 2",
    "--group-query-attention --preset qwen3-8b",
    "--no-group-query-attention --num-query-groups 4 --num-attention-heads 4",
    "--neat-pack --reset-attention-mask",
    "--pack --packing-algorithm sequential --max-segments 2",
    "--pack-index rows.npz",
    "--balance-packs --reset-attention-mask",
    "--reset-position-ids",
    "--recompute-granularity selective",
    "--recompute-granularity full --recompute-method block --recompute-num-layers 4",
    "--load x --finetune --enable-hf2mg-convert --save y --save-interval 10",
    "--context-parallel-size 1 --context-parallel-algo ulysses_cp_algo --expert-model-parallel-size 1",
    "--num-experts 8 --moe-router-topk 2 --moe-ffn-hidden-size 8 --moe-aux-loss-coeff 0.001",
    "--moe-router-load-balancing-type none --expert-tensor-parallel-size 1",
    "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather",
]


def config(flags: str) -> TuneConfig:
    return parse(TuneConfig, flags.split(), program="test")


@pytest.mark.parametrize(("flags", "expected"), [(f"{GOOD} {flags}", text) for flags, text in BROKEN] + MISSING)
def test_what_does_not_go_together_is_refused(flags: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        check_flags(config(flags))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("flags", FINE)
def test_what_goes_together_is_taken(flags: str) -> None:
    check_flags(config(f"{GOOD} {flags}"))


def test_every_rule_is_in_the_list_and_broken_by_some_flags() -> None:
    listed = set(rules._FLAG_RULES)
    written = {
        function
        for name, function in vars(rules).items()
        if inspect.isfunction(function) and list(inspect.signature(function).parameters) == ["config"]
    }
    assert written - listed == {check_flags}
    configs = [config(f"{GOOD} {flags}") for flags, _ in BROKEN] + [config(flags) for flags, _ in MISSING]
    idle = {rule.__name__ for rule in listed if not any(refuses(rule, one) for one in configs)}
    assert not idle


def refuses(rule: object, one: TuneConfig) -> bool:
    try:
        rule(one)  # type: ignore[operator]
    except UserError:
        return True
    return False


# Rules that need the layout


SMALL = Architecture(4, 64, 128, 8, 4, 8, 1000)


def check(flags: str, world: int = 8, architecture: Architecture = SMALL) -> None:
    given = config(f"{GOOD} {flags}")
    check_layout(given, architecture, layout_of(given.layout, world))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--tensor-model-parallel-size 8", "does not divide 4 query groups"),
        ("--pipeline-model-parallel-size 8", "4 layers do not divide over --pipeline-model-parallel-size 8"),
        ("--global-batch-size 12", "must be a multiple of --micro-batch-size 1 x data parallel size 8 = 8"),
        (
            "--recompute-granularity full --recompute-method uniform --recompute-num-layers 3",
            "--recompute-num-layers 3 does not divide the 4 layers of a pipeline stage",
        ),
        (
            "--pipeline-model-parallel-size 2 --num-layer-list 1,3 --recompute-granularity full --recompute-method uniform "
            "--recompute-num-layers 3",
            "--recompute-num-layers 3 does not divide the 1 layers",
        ),
        ("--profile --profile-ranks 7 8", "--profile-ranks 8 is no rank: give some of 0 to 7, or -1 for all"),
        ("--micro-batch-size 2 --global-batch-size 8", "must be a multiple of --micro-batch-size 2"),
        ("--padded-vocab-size 999", "--padded-vocab-size 999 is less than the 1000 rows of the model"),
        ("--padded-vocab-size 1001 --tensor-model-parallel-size 2", "--padded-vocab-size 1001 must divide by 2"),
        ("--padded-vocab-size 1100 --make-vocab-size-divisible-by 128", "must divide by 128"),
        (
            "--context-parallel-size 4 --context-parallel-algo ulysses_cp_algo --tensor-model-parallel-size 4",
            "Ulysses over 4 devices does not divide 2 attention heads a device (8 / tensor parallel 4)",
        ),
        (
            "--context-parallel-size 8 --context-parallel-algo hybrid_cp_algo --ulysses-degree-in-cp 4 "
            "--tensor-model-parallel-size 4",
            "Ulysses over 4 devices does not divide 2 attention heads",
        ),
    ],
)
def test_what_does_not_fit_the_layout_is_refused(flags: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        check(flags, world=32 if "context" in flags else 8)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        (Architecture(4, 64, 128, 9, 9, 8, 1000), "does not divide 9 attention heads"),
        (Architecture(4, 64, 129, 8, 4, 8, 1000), "does not divide 129 feed-forward columns"),
    ],
)
def test_tensor_parallel_must_divide_every_matrix(architecture: Architecture, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        check("--tensor-model-parallel-size 2", 8, architecture)


MIXED = replace(SMALL, num_experts=6, moe_router_topk=2, moe_ffn_hidden_size=9)
TWO = "--tensor-model-parallel-size 2 --sequence-parallel"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--expert-model-parallel-size 4", "--expert-model-parallel-size 4 does not divide 6 experts"),
        (TWO, "--expert-tensor-parallel-size 2 does not divide 9 columns of an expert"),
        (
            "--tensor-model-parallel-size 2 --expert-tensor-parallel-size 1",
            "a mixture of experts with --tensor-model-parallel-size 2 needs --sequence-parallel",
        ),
        (
            "--tensor-model-parallel-size 4 --sequence-parallel --expert-tensor-parallel-size 2 --lora-target-modules"
            " linear_fc1",
            "adapters of experts (linear_fc1, linear_fc2) need --expert-tensor-parallel-size 1, or 4",
        ),
        ("--lora-target-modules linear_fc2 --use-dora", "--use-dora is not supported for experts"),
    ],
)
def test_what_does_not_fit_experts_is_refused(flags: str, expected: str) -> None:
    architecture = replace(MIXED, moe_ffn_hidden_size=8) if "lora" in flags else MIXED
    with pytest.raises(UserError) as caught:
        check(flags, architecture=architecture)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "flags",
    [
        "--expert-model-parallel-size 2",
        f"{TWO} --expert-tensor-parallel-size 2",
        "--moe-aux-loss-coeff 0.1",
        f"{TWO} --lora-modules-to-save router",
    ],
)
def test_experts_of_a_dense_model_are_refused(flags: str) -> None:
    flags += " --lora-target-modules linear_qkv" if "lora" in flags else ""
    with pytest.raises(UserError, match="is for a mixture of experts, and this model is dense; leave it out"):
        check(flags)


def test_what_fits_experts_is_taken() -> None:
    check(f"{TWO} --expert-tensor-parallel-size 1 --expert-model-parallel-size 2", architecture=MIXED)
    check("--expert-model-parallel-size 2 --lora-target-modules linear_fc1 linear_qkv", architecture=MIXED)


def test_the_output_layer_of_a_tied_model_is_its_embedding() -> None:
    flags = "--lora-target-modules linear_qkv --lora-modules-to-save output_layer"
    check(flags)
    with pytest.raises(UserError, match="its embedding; give word_embeddings"):
        check(flags, architecture=replace(SMALL, tied=True))


@pytest.mark.parametrize(
    "flags",
    [
        "--tensor-model-parallel-size 4 --pipeline-model-parallel-size 2 --sequence-parallel",
        "--padded-vocab-size 1024 --make-vocab-size-divisible-by 128 --tensor-model-parallel-size 4",
        "--seq-length 4097",
        "--sequence-parallel --seq-length 4097",
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 2",
        "--recompute-granularity full --recompute-method block --recompute-num-layers 3",
        "--profile --profile-ranks 0 7",
        "--profile --profile-ranks -1",
        "--tensor-model-parallel-size 4 --sequence-parallel --seq-length 4098",
        "--context-parallel-size 8 --seq-length 4097",
        "--context-parallel-size 8 --context-parallel-algo ulysses_cp_algo",
        "--context-parallel-size 4 --context-parallel-algo hybrid_cp_algo --ulysses-degree-in-cp 2",
        "--context-parallel-size 8 --context-parallel-algo kvallgather_cp_algo",
    ],
)
def test_what_fits_the_layout_is_taken(flags: str) -> None:
    check(flags)


@pytest.mark.parametrize(
    ("flags", "data", "expected"),
    [
        ("", 8, 1),
        ("--global-batch-size 16", 8, 2),
        ("--micro-batch-size 2", 4, 1),
        ("--micro-batch-size 2 --global-batch-size 48", 4, 6),
    ],
)
def test_micro_batches_of_a_step(flags: str, data: int, expected: int) -> None:
    assert num_micro_batches(config(f"{GOOD} {flags}"), Layout(data=data)) == expected
