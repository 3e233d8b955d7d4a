"""Command lines of MindSpeed-LLM's Qwen3 scripts that ask or measure a model; others: test_mindspeed_llm_lines.py."""

from __future__ import annotations

import pytest

from mindspeed_ift.cli import generate
from mindspeed_ift.config import accepted
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.evaluation import EvaluateConfig
from mindspeed_ift.config.flags import options, parse_with_origins
from mindspeed_ift.config.inference import GenerateConfig
from tests.unit.config.test_mindspeed_llm_lines import assert_nothing_is_lost

_ASKING = (
    "--use-mcore-models --spec mindspeed_llm.tasks.models.spec.qwen3_spec layer_spec --kv-channels 128 --qk-layernorm "
    "--tensor-model-parallel-size 1 --pipeline-model-parallel-size 8 --num-layers 48 --hidden-size 2048 "
    "--ffn-hidden-size 6144 --num-attention-heads 32 --group-query-attention --num-query-groups 4 --seq-length 4096 "
    "--max-position-embeddings 40960 --norm-epsilon 1e-6 --rotary-base 1000000 --padded-vocab-size 151936 "
    "--make-vocab-size-divisible-by 1 --untie-embeddings-and-output-weights --disable-bias-linear --swiglu "
    "--use-fused-swiglu --use-fused-rmsnorm --normalization RMSNorm --position-embedding-type rope --micro-batch-size 1 "
    "--use-rotary-position-embeddings --load weights --tokenizer-name-or-path weights --tokenizer-type PretrainedFromHF "
    "--tokenizer-not-use-fast --hidden-dropout 0 --attention-dropout 0.0 --no-gradient-accumulation-fusion "
    "--attention-softmax-in-fp32 --no-masked-softmax-fusion --exit-on-missing-checkpoint --max-new-tokens 256 --seed 42 "
    "--bf16 --transformer-impl local --ckpt-format torch"
)
_ASKING_EXPERTS = (
    "--num-experts 128 --moe-router-topk 8 --moe-router-load-balancing-type softmax_topk --moe-ffn-hidden-size 768 "
    "--moe-grouped-gemm --moe-layer-freq -1 --first-k-dense-replace -1 --moe-permutation-async-comm --norm-topk-prob "
    "--moe-token-dispatcher-type allgather --moe-aux-loss-coeff 0.001 --expert-model-parallel-size 1"
)


@pytest.mark.parametrize("experts", ["", _ASKING_EXPERTS])
@pytest.mark.parametrize(
    ("kind", "own"), [(GenerateConfig, ""), (EvaluateConfig, "--no-load-rng --no-load-optim --no-chat-template")]
)
def test_a_pasted_line_of_answers_or_benchmarks_is_taken(kind: type, own: str, experts: str) -> None:
    """Without --task and --task-data-path, which are refused."""
    line = (
        f"{_ASKING} {own} {experts}"
        if kind is GenerateConfig
        else f"{_ASKING} {own} {experts}".replace("--seed 42", "")
    )
    parsed = parse_with_origins(kind, line.split(), program="program", accepted=accepted.ASKING_ACCEPTED)
    assert_nothing_is_lost(line.split(), parsed, options(kind))
    assert parsed.config.max_new_tokens == 256 and parsed.config.pipeline_model_parallel_size == 8


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ("--task mmlu", "--task is not supported: give --tasks"),
        ("--task-data-path mmlu/test", "--task-data-path is not supported: benchmarks bring their questions"),
        ("--expert-model-parallel-size 2", "--expert-model-parallel-size 2 is not supported: only 1"),
    ],
)
def test_benchmarks_of_another_kind_are_refused(added: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_with_origins(EvaluateConfig, added.split(), program="program", accepted=accepted.ASKING_ACCEPTED)
    assert expected in str(caught.value)


def test_of_a_line_that_is_asked_the_flags_without_effect_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the answers, not among them."""
    with pytest.raises(UserError, match="no-such-folder"):
        generate.main("--load no-such-folder --prompt Hello --num-layers 36".split())
    told = capsys.readouterr()
    assert (
        told.err == "--num-layers changes nothing here: the folder of --load says which model it is\n" and not told.out
    )
