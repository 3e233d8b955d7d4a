"""What is decided before a run begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mindspeed_ift.cli.merge_datasets import main as merge_datasets
from mindspeed_ift.cli.repack_dataset import main as repack
from mindspeed_ift.cli.verify_template import main as verify_template
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.tuning import TuneConfig
from mindspeed_ift.data.balanced_order import BalancedOrder, Dealing
from mindspeed_ift.data.batch import Packed
from mindspeed_ift.data.boundaries import EndOfDocument
from mindspeed_ift.data.costs import attention_costs
from mindspeed_ift.training.preview import preview
from mindspeed_ift.training.sources import Sources
from tests.planned import MODEL, planned, prepare
from tests.tiny_tokenizer import make_tiny_tokenizer


def test_samples_that_will_be_cut_are_counted_in_the_training_range(data: Path) -> None:
    prefix = prepare(data, "cut")
    lengths = planned(prefix).dataset.lengths
    limit = int(lengths[6])
    whole = planned(prefix, "--seq-length", str(limit))
    assert whole.cut_samples == 3 and "3 samples are longer" in whole.describe()
    assert planned(prefix, "--seq-length", str(limit), "--split", "80,20,0").cut_samples == 1
    with pytest.raises(UserError, match="--no-cut-token"):
        planned(prefix, "--seq-length", str(limit), "--no-cut-token")


def test_packed_rows_are_never_cut(data: Path) -> None:
    prefix = prepare(data, "neat", "--pack", "--neat-pack", "--seq-length", "128")
    assert planned(prefix, "--seq-length", "128", "--reset-attention-mask").cut_samples == 0
    with pytest.raises(UserError, match="a packed row cannot be cut"):
        planned(prefix, "--seq-length", "100", "--reset-attention-mask")


def test_the_certificate_of_the_template_is_read(data: Path) -> None:
    prefix = prepare(data, "certified")
    told = planned(prefix)
    assert "writes 10 of 10 records otherwise than --prompt-type qwen" in told.describe()
    assert told.token_facts["template_certificate"]["verdict"] == "prompts equal"
    other = data / "other"
    config = make_tiny_tokenizer(other) / "tokenizer_config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("{%-", "{%"), encoding="utf-8")
    assert "verify-template compares it" in planned(prefix, "--tokenizer-name-or-path", str(other)).describe()
    words = ["--input", str(data / "records.jsonl"), "--tokenizer", str(other), "--data-path", prefix]
    assert verify_template(words) == 1
    assert "writes 10 of 10" in planned(prefix, "--tokenizer-name-or-path", str(other)).describe()
    manifest = json.loads((data / "certified.manifest.json").read_text(encoding="utf-8"))
    manifest["template_certificate"]["verdict"] = "equal"
    (data / "certified.manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match="certificate of .*certified is not about its template"):
        planned(prefix)
    del manifest["template_certificate"]
    (data / "certified.manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert "certificate" not in planned(prefix).describe()


@pytest.mark.parametrize("template", ["qwen", "qwen_lf", "qwen3"])
def test_the_template_tells_how_documents_end_where_no_manifest_does(data: Path, template: str) -> None:
    """qwen3 closes a turn with a line break after the token, so the doubled token of --append-eod is not adjacent."""
    packing = ["--pack", "--append-eod", "--seq-length", "160", "--prompt-type", template]
    known = prepare(data, f"known_{template}", *packing)
    foreign = prepare(data, f"foreign_{template}", *packing, manifest=False)
    flags = ["--seq-length", "160", "--reset-attention-mask", "--reset-position-ids"]
    tokenizer = ["--tokenizer-name-or-path", str(data / "tokenizer")]
    expected = planned(known, *flags).mode
    found = planned(foreign, *flags, *tokenizer, "--prompt-type", template).mode
    assert found == expected
    assert isinstance(found, Packed) and isinstance(found.boundaries, EndOfDocument) and len(found.boundaries.mark) > 1
    with pytest.raises(UserError, match="--tokenizer-name-or-path is needed"):
        planned(foreign, *flags)


def test_joined_datasets(data: Path, tmp_path: Path) -> None:
    """Joined, they are planned as one; with one of MindSpeed-LLM, as one of MindSpeed-LLM."""
    packing = ["--pack", "--neat-pack", "--seq-length", "128", "--prompt-type", "qwen3"]
    parts = [prepare(data, f"joined_{name}", *packing) for name in ("a", "b")]
    flags = ["--seq-length", "128", "--reset-attention-mask"]
    one, whole = planned(parts[0], *flags), str(tmp_path / "whole")
    assert merge_datasets(["--input", *parts, "--output-prefix", whole]) == 0
    joined = planned(whole, *flags)
    assert len(joined.dataset) == 2 * len(one.dataset)
    certificate, twice = (found.token_facts.pop("template_certificate") for found in (one, joined))
    assert joined.mode == one.mode and joined.token_facts == one.token_facts
    assert twice["records"] == 2 * certificate["records"] and twice["verdict"] == certificate["verdict"]
    (data / "joined_b.manifest.json").unlink()
    assert merge_datasets(["--input", *parts, "--output-prefix", whole]) == 0
    with pytest.raises(UserError, match="whole has no manifest, so --tokenizer-name-or-path is needed"):
        planned(whole, *flags)
    told = planned(whole, *flags, "--tokenizer-name-or-path", str(data / "tokenizer"), "--prompt-type", "qwen3")
    assert told.mode == one.mode


def test_dynamic_length_rounds_packed_rows_too(data: Path) -> None:
    prefix = prepare(data, "rows", "--pack", "--neat-pack", "--seq-length", "128")
    flags = ["--seq-length", "256", "--reset-attention-mask"]
    fixed, dynamic = planned(prefix, *flags), planned(prefix, *flags, "--no-pad-to-seq-lengths")
    lengths = [p.training_samples(0, False).take(0, 1)[0].tokens.shape[1] for p in (fixed, dynamic)]
    assert lengths == [256, 128]


def test_packing_at_the_start_is_packing_beforehand(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By --pack, and by an index that repack_dataset.py wrote."""
    plain, packed = prepare(data, "single"), prepare(data, "neatly", "--pack", "--neat-pack", "--seq-length", "80")
    flags = ["--seq-length", "80", "--reset-attention-mask", "--reset-position-ids"]
    expected, now = planned(packed, *flags, "--pack"), planned(plain, *flags, "--pack")
    assert f"{packed} is packed already: --pack changes nothing" in expected.describe()
    assert "10 samples packed into" in now.describe() and " cut to fit a row" in now.describe()
    assert repack(["--data-path", plain, "--seq-length", "80"]) == 0
    said = capsys.readouterr().out
    (index,) = data.glob("single.pack_80_*.npz")
    assert f"--pack-index {index}" in said and "10 samples packed into" in said
    stored = planned(plain, *flags, "--pack-index", str(index))
    for found in (now, stored):
        assert len(found.dataset) == len(expected.dataset) == len(found.train)
        ours, theirs = (one.training_samples(0, True).take(0, 4) for one in (found, expected))
        for batch, other in zip(ours, theirs):
            assert batch.tokens.equal(other.tokens) and batch.labels.equal(other.labels)
            assert batch.position_ids.equal(other.position_ids) and batch.boundaries.equal(other.boundaries)
    with pytest.raises(UserError, match="at least the --seq-length"):
        planned(plain, "--seq-length", "64", "--reset-attention-mask", "--pack-index", str(index))


def test_balanced_ranks_take_each_row_once_an_epoch(data: Path) -> None:
    """Two ranks, each pass two rows of the nearest costs; validation keeps the order of the rows."""
    plain = prepare(data, "balanced")
    flags = ["--seq-length", "80", "--reset-attention-mask", "--pack", "--balance-packs", "--split", "50,50,0"]
    plan = planned(plain, *flags, world=2)
    costs = attention_costs(plan.dataset, plan.mode.boundaries, plan.train)
    rows = {plan.dataset[row].input_ids.tobytes(): row for row in plan.train}
    taken = [
        [rows[batch.tokens[0].numpy().astype("int32").tobytes()] for batch in ranks.take(0, len(plan.train) // 2)]
        for ranks in (plan.training_samples(rank, shuffle=True) for rank in range(2))
    ]
    together = sum(taken, [])
    assert len(set(together)) == len(together) == len(plan.train) // 2 * 2
    expected = BalancedOrder(costs, plan.config.optimizer.seed, 2)
    assert taken == [[expected.index(2 * number + rank) for number in range(len(taken[0]))] for rank in range(2)]
    valid = plan.validation_samples(0).take(0, 1)[0]
    assert valid.tokens[0].tolist() == plan.dataset[plan.valid.start].input_ids.tolist()


@pytest.mark.parametrize("again", [["--balance-packs"], []], ids=["balanced", "shuffled"])
def test_another_number_of_ranks_goes_on_with_the_rows_that_are_left(data: Path, again: list[str]) -> None:
    """Two ranks stop after a step; one goes on, with and without balancing."""
    plain = prepare(data, "left")
    flags = ["--seq-length", "80", "--reset-attention-mask", "--pack"]
    two, one = planned(plain, *flags, "--balance-packs", world=2), planned(plain, *flags, *again)
    rows = len(two.train)
    first, whole = (
        [two.training_samples(rank, True).take(0, steps)[step].tokens for rank in range(2) for step in range(steps)]
        for steps in (1, rows // 2)
    )
    dealing = two.training_samples(0, True).order.dealing(2)
    assert dealing == Dealing(2, 2)
    others = [batch.tokens for batch in one.training_samples(0, True, 2, dealing).take(2, rows - 2)]
    texts = [sorted(str(one.tolist()) for one in batches) for batches in ([*first, *others], whole)]
    assert len(set(texts[0])) == rows and set(texts[1]) <= set(texts[0])
    assert one.training_samples(0, True, rows, dealing).order.dealing(rows) == (Dealing(1, 1, rows) if again else None)


def test_tells_what_balancing_comes_to(data: Path) -> None:
    plain = prepare(data, "told")
    flags = ["--seq-length", "80", "--reset-attention-mask", "--pack", "--balance-packs"]

    def told(*more: str, world: int = 2) -> str | None:
        plan = planned(plain, *flags, *more, world=world)
        return plan.describe_balance(plan.training_samples(0, True).order)

    greedy = ["--packing-algorithm", "greedy-knapsack"]
    said = told(*greedy)
    assert said is not None and said.startswith("data: --balance-packs: in a step the costliest of 2 ranks computes")
    assert said.endswith("pack the samples with --packing-algorithm balanced")
    assert "--packing-algorithm" not in str(told("--packing-algorithm", "balanced"))
    assert told() == told("--packing-algorithm", "balanced"), "what is packed now is packed for it"
    assert "waits for no other" in str(told(world=1))
    assert told("--no-balance-packs") is None
    line = [*MODEL, "--data-path", plain, "--train-iters", "4", *flags, *greedy]
    assert preview(parse(TuneConfig, line, program="test"), 2).endswith(said)


def test_rows_divide_by_what_flag_and_layout_need(data: Path) -> None:
    prefix = prepare(data, "multiple")
    flags = ["--no-pad-to-seq-lengths", "--pad-to-multiple-of", "6", "--tensor-model-parallel-size", "4"]
    mode = planned(prefix, *flags, "--sequence-parallel", "--num-query-groups", "4", world=4).mode
    assert mode.multiple == 12


def test_another_tokenizer_is_refused(data: Path, tmp_path: Path) -> None:
    prefix = prepare(data, "tokenized")
    other = json.loads((data / "tokenizer/tokenizer.json").read_text(encoding="utf-8"))
    other["model"]["merges"] = other["model"]["merges"][:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(other), encoding="utf-8")
    config = (data / "tokenizer/tokenizer_config.json").read_bytes()
    (tmp_path / "tokenizer_config.json").write_bytes(config)
    planned(prefix, "--tokenizer-name-or-path", str(data / "tokenizer"))
    with pytest.raises(UserError, match="another tokenizer"):
        planned(prefix, "--tokenizer-name-or-path", str(tmp_path))


@pytest.mark.parametrize(("flag", "value"), [("--prompt-type", "qwen3"), ("--enable-thinking", "true")])
def test_flags_that_contradict_the_manifest_are_refused(data: Path, flag: str, value: str) -> None:
    prefix = prepare(data, "contradicted", "--prompt-type", "qwen")
    with pytest.raises(UserError, match=f"{flag} {value}"):
        planned(prefix, flag, value)


def test_an_empty_save_folder_is_a_first_start_unless_a_checkpoint_is_insisted_on(data: Path, tmp_path: Path) -> None:
    prefix = prepare(data, "first")
    both = ["--load", str(tmp_path), "--save", str(tmp_path)]
    assert planned(prefix, *both).sources == Sources()
    with pytest.raises(UserError, match="holds no Megatron checkpoint"):
        planned(prefix, *both, "--exit-on-missing-checkpoint")


def test_a_dataset_of_its_own_to_evaluate_on(data: Path) -> None:
    """Its boundaries are its own; where rows are made in the run, its rows are made too."""
    packed = prepare(data, "to_train", "--pack", "--neat-pack", "--seq-length", "128")
    single = prepare(data, "to_evaluate")
    flags = ["--seq-length", "128", "--valid-data-path"]
    found = planned(packed, "--reset-attention-mask", *flags, single)
    assert found.dataset.prefix == packed and found.valid_dataset.prefix == single and len(found.valid) == 10
    assert f"{single}: 10 samples to evaluate on" in found.describe()
    batch = found.validation_samples(0).take(0, 1)[0]
    assert batch.tokens[0, : found.valid_dataset.lengths[0]].tolist() == found.valid_dataset[0].input_ids.tolist()
    assert batch.boundaries is not None and len(batch.boundaries) == 3, "the sample and the pads"
    both = planned(single, "--reset-attention-mask", "--pack", *flags, single)
    assert len(both.valid) == len(both.train) < 10 and both.valid_dataset.has_segments


def test_what_a_dataset_to_evaluate_on_does_not_go_with(data: Path, tmp_path: Path) -> None:
    single = prepare(data, "evaluated")
    with pytest.raises(
        UserError, match="--valid-data-path and the validation share of --split 90,10 exclude each other"
    ):
        planned(single, "--valid-data-path", single, "--split", "90,10")
    other = prepare(data, "evaluated_otherwise")
    path = data / "evaluated_otherwise.manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(manifest | {"tokenizer_sha256": "0"}), encoding="utf-8")
    with pytest.raises(UserError, match="--valid-data-path .* was made with another tokenizer than --data-path"):
        planned(single, "--valid-data-path", other)
    with pytest.raises(UserError, match="no such dataset file"):
        planned(single, "--valid-data-path", str(tmp_path / "none"))
    line = [*MODEL, "--data-path", single, "--train-iters", "4", "--valid-data-path", str(tmp_path / "none")]
    told = preview(parse(TuneConfig, line, program="test"), 1)
    assert f"--valid-data-path {tmp_path / 'none'} is not here" in told


@pytest.mark.parametrize("flags", [["--early-stopping-patience", "2"], ["--save-best", "--save", "run"]])
def test_what_follows_from_evaluations_needs_some(data: Path, flags: list[str]) -> None:
    single = prepare(data, "never_evaluated")
    with pytest.raises(UserError, match=f"{flags[0]} needs evaluations: give --valid-data-path"):
        planned(single, *flags)
    with pytest.raises(UserError, match=f"{flags[0]} needs evaluations, which --eval-iters 0 turns off"):
        planned(single, *flags, "--split", "80,20", "--eval-iters", "0")
    planned(single, *flags, "--split", "80,20")


def test_what_counts_alike_in_the_loss(data: Path) -> None:
    """Every mode takes it; samples of a row are told apart or refused; evaluation knows no micro-batches."""
    single = prepare(data, "reduced")
    packed = prepare(data, "reduced_pack", "--pack", "--neat-pack", "--seq-length", "128")
    reset = ["--reset-attention-mask", "--seq-length", "128"]
    for prefix, flags in ((single, []), (single, ["--no-pad-to-seq-lengths"]), (packed, reset)):
        for reduction in ("token", "sample", "turn"):
            found = planned(prefix, *flags, "--split", "50,50", "--loss-reduction", reduction)
            assert found.mode.loss_reduction == found.valid_mode.loss_reduction == reduction
        for evaluated in (["--split", "50,50"], ["--valid-data-path", prefix]):
            found = planned(prefix, *flags, *evaluated, "--loss-reduction", "micro-batch")
            assert (found.mode.loss_reduction, found.valid_mode.loss_reduction) == ("micro-batch", "token")
    with pytest.raises(UserError, match="--loss-reduction sample: the rows of .*reduced_pack hold several samples"):
        planned(packed, "--seq-length", "128", "--loss-reduction", "sample")
