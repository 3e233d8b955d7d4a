"""Several datasets: opened, checked against each other, selected from and blended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.tuning import TuneConfig
from mindspeed_ift.training.plan import Plan, plan
from tests.planned import MODEL, prepare


def several(words: list[str], *flags: str, world: int = 1) -> Plan:
    line = [*MODEL, "--train-iters", "10", "--global-batch-size", "4", *flags, "--data-path", *words]
    return plan(parse(TuneConfig, line, program="test"), world)


def test_several_datasets_are_taken_by_weight(data: Path) -> None:
    """Each shuffled in its own epochs; rows know their samples whether a dataset stores them, packs are made in the run, or
    a sample is alone."""
    single = prepare(data, "blend_single")
    neat = prepare(data, "blend_neat", "--pack", "--neat-pack", "--seq-length", "256")
    rows = len(several([neat], "--seq-length", "256", "--reset-attention-mask").dataset)
    found = several(["0.75", single, "0.25", neat], "--seq-length", "256", "--reset-attention-mask")
    told = found.describe()
    assert f"{single}: 10 of 10 samples to train on, share 0.75, 3.00 epochs" in told
    assert f"{neat}: {rows:,} of {rows:,} samples to train on, share 0.25, {10 / rows:.2f} epochs" in told
    order = found.training_samples(0, shuffle=True).order
    taken = [order.index(position) for position in range(40)]
    assert sum(one < 10 for one in taken) == 30 and {one for one in taken if one < 10} == set(range(10))
    assert found.describe_consumed(40) == [
        f"data: {single}: 30 samples taken, 3.00 epochs",
        f"data: {neat}: 10 samples taken, {10 / rows:.2f} epochs",
    ]
    assert [one["share"] for one in found.datasets] == [0.75, 0.25] and found.data_facts["shares"] == [3, 1]
    batch = found.training_samples(0, shuffle=False).take(0, 8)
    assert {len(one.boundaries) - 1 for one in batch} > {2}, "the sample and the pads, or several samples and the pads"
    packed = several([single, neat], "--seq-length", "256", "--reset-attention-mask", "--pack")
    assert f"data: {neat} is packed already: --pack changes nothing" in packed.describe()
    assert len(packed.train) == 2 * rows and packed.datasets[0]["share"] == 0.5


def test_of_each_dataset_a_share_to_evaluate_on(data: Path) -> None:
    """By size all of it; by weight, each sample once, as much as the weights allow."""
    first, second = prepare(data, "share_a"), prepare(data, "share_b")
    found = several([first, second], "--split", "80,20")
    assert (
        len(found.train) == 16
        and len(found.valid) == 4
        and f"{first} {second}: 4 samples to evaluate on" in found.describe()
    )
    weighed = several(["3", first, "1", second], "--split", "50,50")
    assert len(weighed.train) == 10 and len(weighed.valid) in (6, 7)
    given = several([first], "--valid-data-path", "1", first, "1", second)
    assert len(given.valid) == 20 and len(given.validation_samples(0).take(0, 20)) == 20


@pytest.mark.parametrize(
    ("words", "flags", "message"),
    [
        ("0.3 A B", "", "--data-path 0.3 .*B: not every dataset has its weight"),
        ("0 A 1 A", "", "--data-path: the weight 0 is not over 0"),
        ("1 A 1 NONE", "", "no such dataset file: .*NONE_packed"),
        ("A A", "--pack-index x.npz", "--pack-index is of one dataset, --data-path names 2; give --pack"),
        ("A A", "--balance-packs --reset-attention-mask", "--balance-packs deals the rows of one dataset"),
        ("A TINY", "--split 30,70", "--split 30,70 leaves no training sample of 1 of .*TINY"),
        (
            "A TOKENIZER",
            "",
            "--data-path .*A and .*TOKENIZER were not made with the same tokenizer .* prepare one of them",
        ),
        ("A TEMPLATE", "", "--data-path .*A and .*TEMPLATE were not made with the same template .qwen and default"),
    ],
)
def test_datasets_that_cannot_be_blended(data: Path, words: str, flags: str, message: str) -> None:
    if not (data / "A.manifest.json").is_file():
        prepare(data, "A")
        prepare(data, "TINY", "--max-samples", "1")
        prepare(data, "TEMPLATE", "--prompt-type", "default")
        prepare(data, "TOKENIZER")
        path = data / "TOKENIZER.manifest.json"
        manifest = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(manifest | {"tokenizer_sha256": "0"}), encoding="utf-8")
    line = [str(data / word) if word.isalpha() else word for word in words.split()]
    with pytest.raises(UserError, match=message):
        several(line, *flags.split())
