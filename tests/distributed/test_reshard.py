"""Stopped in one layout and gone on in another = never stopped: the same samples, and losses within rounding."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_ift.checkpoint import megatron
from tests.distributed.worlds import run
from tests.tolerances import LAYOUT_LOSS
from tests.training_runs import MODES, make_datasets, make_hugging_face_model, records

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

TENSOR = "--tensor-model-parallel-size 2 --sequence-parallel"
PIPELINE = "--pipeline-model-parallel-size 2"
DISTRIBUTED = "--use-distributed-optimizer"
# Name -> ranks, flags.
LAYOUTS = {
    "one": (1, ""),
    "one do": (1, DISTRIBUTED),
    "tp2 sp": (2, TENSOR),
    "pp2 vpp2": (2, f"{PIPELINE} --num-layers-per-virtual-pipeline-stage 1"),
    "pp2 1+3": (2, f"{PIPELINE} --num-layer-list 1,3"),
    "dp2 do": (2, f"{DISTRIBUTED} --overlap-grad-reduce --overlap-param-gather"),
    "cp2 do": (2, f"--context-parallel-size 2 {DISTRIBUTED}"),
    "tp2 pp2": (4, f"{TENSOR} {PIPELINE}"),
    "tp2 dp2 do": (4, f"{TENSOR} {DISTRIBUTED}"),
    "ep2 do": (2, f"--expert-model-parallel-size 2 {DISTRIBUTED}"),
    "tp2 etp2 ep2": (4, f"{TENSOR} --expert-model-parallel-size 2"),
    "pp2 ep2": (4, f"{PIPELINE} --expert-model-parallel-size 2"),
}
ADAPTERS = "--lora-target-modules linear_qkv linear_proj linear_fc1 linear_fc2 --lora-r 4"
# All of a model; adapters (and the tied embedding, which the last stage has too); a mixture of experts.
KINDS = {
    "whole": "",
    "adapters": f"{ADAPTERS} --use-dora --lora-modules-to-save word_embeddings",
    "experts": "",
    "adapted experts": ADAPTERS,
}
# Kind, layout that stops after two steps, layout that goes on.
CASES = [
    ("whole", "one", "tp2 sp"),
    ("whole", "one", "pp2 vpp2"),
    ("whole", "one", "cp2 do"),
    ("whole", "dp2 do", "tp2 dp2 do"),
    ("whole", "pp2 1+3", "tp2 pp2"),
    ("whole", "tp2 dp2 do", "one"),
    ("whole", "tp2 pp2", "one do"),
    ("adapters", "one", "tp2 pp2"),
    ("adapters", "tp2 dp2 do", "one"),
    ("experts", "ep2 do", "tp2 etp2 ep2"),
    ("experts", "tp2 etp2 ep2", "one"),
    ("adapted experts", "one", "pp2 ep2"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each kind a run of one rank without a stop, what stops, and what goes on from it."""
    folder = tmp_path_factory.mktemp("reshard")
    data = make_datasets(folder)["packed"]
    weights = {
        kind: make_hugging_face_model(
            folder / f"hf {kind}",
            tied=kind == "adapters",
            vocab_size=400,
            layers=4,
            experts={} if "experts" in kind else None,
        )
        for kind in KINDS
    }

    def line(kind: str, layout: str, name: str, *more: str) -> list[str]:
        words = ["--data-path", str(data), *MODES["packed"], "--micro-batch-size", "1", "--global-batch-size", "4"]
        # Padded vocabularies of 400 and 416 rows.
        words += ["--make-vocab-size-divisible-by", "16", "--lr", "1e-2", "--lr-warmup-iters", "1"]
        words += ["--train-iters", "4", "--save-interval", "2", "--save", str(folder / name)]
        start = [] if "--load" in more else ["--load", str(weights[kind]), "--enable-hf2mg-convert"]
        return [str(LAYOUTS[layout][0]), *words, *KINDS[kind].split(), *LAYOUTS[layout][1].split(), *start, *more]

    lines = [line(kind, "one", f"{kind} never stopped") for kind in KINDS]
    for kind, layout in dict.fromkeys((kind, layout) for kind, layout, _ in CASES):
        lines.append(line(kind, layout, f"{kind} {layout}", "--exit-interval", "2"))
    for kind, before, after in CASES:
        lines.append(line(kind, after, f"{kind} {before} to {after}", "--load", str(folder / f"{kind} {before}")))
    run(lines, 4)
    return folder


@pytest.mark.parametrize(("kind", "before", "after"), CASES)
def test_gone_on_in_another_layout_is_never_stopped(runs: Path, kind: str, before: str, after: str) -> None:
    """Losses, gradient norms, learning rates and the samples of each step."""
    never = records(runs / f"{kind} never stopped")
    gone_on = records(runs / f"{kind} {before}") + records(runs / f"{kind} {before} to {after}")
    assert [one["iteration"] for one in gone_on] == [1, 2, 3, 4]
    for mine, theirs in zip(gone_on, never, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], **LAYOUT_LOSS)
        assert mine["gradient_norm"] == pytest.approx(theirs["gradient_norm"], **LAYOUT_LOSS)
        for key in ("learning_rate", "learnt_tokens", "real_tokens", "squared_lengths"):
            assert mine[key] == theirs[key], key
    assert never[3]["loss"] < 0.9 * never[0]["loss"]


def test_a_manifest_tells_the_layout_and_the_padding_is_of_its_own(runs: Path) -> None:
    before = megatron.read_manifest(runs / "whole one/iter_0000002")
    after = megatron.read_manifest(runs / "whole one to tp2 sp/iter_0000004")
    assert before is not None and after is not None
    assert (before["padded_vocab_size"], after["padded_vocab_size"]) == (400, 416)
    assert (before["layout"]["tensor"], after["layout"]["tensor"]) == (1, 2)
