"""--loss-reduction: every reduction is that of a plain computation with Hugging Face's model, however samples are divided."""

from __future__ import annotations

import json
import math
from itertools import groupby
from pathlib import Path

import pytest
import torch

from mindspeed_ift.cli.preprocess import main as preprocess
from mindspeed_ift.data.dataset import InstructionDataset
from tests.distributed.worlds import run
from tests.tiny_tokenizer import make_tiny_tokenizer
from tests.tolerances import LAYOUT_LOSS, TWENTY_STEPS_LOSS, TWENTY_STEPS_WEIGHTS
from tests.training_runs import MODES, gradient_norms, losses, make_hugging_face_model, of_steps

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STEPS = 2
SEQ_LENGTH = 384
SAMPLES, ROWS = 16, 4
RING = "--context-parallel-size 2"
# Reduction -> name of the run -> ranks, sequence mode, rows of a micro-batch, flags. Each step takes all samples. That
# per token changes in no layout is shown in test_layouts.py.
DIVIDED = {
    "token": {
        "one by one": (1, "dynamic", 1, ""),
        "packed ring2": (2, "packed", 2, RING),
    },
    "sample": {
        "four at once": (1, "dynamic", 4, ""),
        "packed": (1, "packed", 1, ""),
        "dp2": (2, "dynamic", 2, ""),
        "packed ring2": (2, "packed", 2, RING),
        "gather2": (2, "dynamic", 16, f"{RING} --context-parallel-algo kvallgather_cp_algo"),
    },
    "turn": {
        "all at once": (1, "fixed", 16, ""),
        "packed": (1, "packed", 4, ""),
        "packed dp2": (2, "packed", 1, "--use-distributed-optimizer"),
        "packed pp2": (2, "packed", 1, "--pipeline-model-parallel-size 2"),
        "packed ulysses2": (2, "packed", 1, f"{RING} --context-parallel-algo ulysses_cp_algo"),
    },
    "micro-batch": {
        "four at once": (1, "dynamic", 4, ""),
        "dp2": (2, "dynamic", 4, ""),
        "ring2": (2, "dynamic", 4, RING),
    },
}
CASES = [(reduction, name) for reduction, runs in DIVIDED.items() for name in runs]


def records() -> list[dict]:
    """Conversations of up to three turns, of which the longest has fifteen times the tokens of the shortest; some answers
    weigh half, one is not learnt, and one conversation learns nothing."""
    made = []
    for number in range(SAMPLES):
        messages = []
        for turn in range(number % 3 + 1):
            messages.append({"role": "user", "content": f"{number} and {turn}"})
            answer = "please " * (number * (turn + 1) % 6) + f"{number + turn}"
            messages.append({"role": "assistant", "content": answer})
            if (number + turn) % 3 == 0:
                messages[-1]["weight"] = 0.5
        if number == 7:
            messages[3]["weight"] = 0
        if number == 9:
            messages[1]["weight"] = 0
        made.append({"messages": messages})
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs: a folder each of metrics and the last checkpoint."""
    folder = tmp_path_factory.mktemp("reduction")
    make_tiny_tokenizer(folder / "tokenizer")
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, records())), encoding="utf-8")
    common = ["--input", str(folder / "records.jsonl"), "--tokenizer-name-or-path", str(folder / "tokenizer")]
    common += ["--prompt-type", "qwen3"]
    preprocess([*common, "--output-prefix", str(folder / "single")])
    packing = ["--pack", "--neat-pack", "--packing-algorithm", "sequential", "--seq-length", str(SEQ_LENGTH)]
    preprocess([*common, *packing, "--output-prefix", str(folder / "packs")])
    assert len(InstructionDataset(folder / "packs")) == ROWS and InstructionDataset(folder / "single").has_weights
    model = make_hugging_face_model(folder / "hf", tied=False, vocab_size=400)
    lines: dict[int, list[list[str]]] = {1: [], 2: []}
    for reduction, name in CASES:
        ranks, mode, micro, flags = DIVIDED[reduction][name]
        data = str(folder / ("packs" if mode == "packed" else "single"))
        line = ["--data-path", data, *MODES[mode], "--seq-length", str(SEQ_LENGTH), "--valid-data-path", data]
        line += ["--load", str(model), "--enable-hf2mg-convert", "--train-iters", str(STEPS), "--no-shuffle"]
        line += ["--global-batch-size", str(ROWS if mode == "packed" else SAMPLES), "--micro-batch-size", str(micro)]
        line += ["--lr", "1e-3", "--lr-decay-style", "constant", "--weight-decay", "0.1", "--clip-grad", "1.0"]
        line += ["--loss-reduction", reduction, "--save", str(folder / reduction / name), *flags.split()]
        lines[ranks].append(line)
    for ranks, some in lines.items():
        run(some, ranks)
    return folder


def units(prefix: Path, reduction: str) -> list[list[tuple[int, int, float]]]:
    """Of each unit its learnt labels, as (sample, position of the label, weight)."""
    dataset, found = InstructionDataset(prefix), []
    for number in range(len(dataset)):
        one = dataset[number]
        assert one.loss_weights is not None
        labels = list(zip(range(1, len(one)), one.loss_weights[1:].tolist(), strict=True))
        for learnt, group in groupby(labels, lambda label: label[1] > 0):
            if learnt:
                found.append([(number, place, weight) for place, weight in group])
    if reduction == "token":
        return [[label] for turn in found for label in turn]
    if reduction == "turn":
        return found
    size = 1 if reduction == "sample" else 4
    return [[label for turn in turns for label in turn] for _, turns in groupby(found, lambda turn: turn[0][0] // size)]


class Plain:
    """Losses, gradient norms and weights of a plain loop over the samples alone, and the loss after it."""

    def __init__(self, folder: Path, reduction: str) -> None:
        from transformers import Qwen3ForCausalLM

        self.model = Qwen3ForCausalLM.from_pretrained(folder / "hf", attn_implementation="sdpa").float()
        self.dataset = InstructionDataset(folder / "single")
        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        spared = [p for p in self.model.parameters() if p.dim() == 1]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
        self.losses: list[float] = []
        self.norms: list[float] = []
        of_reduction = units(folder / "single", reduction)
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = self.loss(of_reduction)
            loss.backward()
            self.norms.append(float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)))
            optimizer.step()
            self.losses.append(float(loss.detach()))
        with torch.no_grad():
            evaluated = "token" if reduction == "micro-batch" else reduction
            self.validation = float(self.loss(units(folder / "single", evaluated)))

    def loss(self, some: list[list[tuple[int, int, float]]]) -> torch.Tensor:
        """Mean over the units of the mean over their tokens of weight times loss."""
        of_label = {}
        for number in range(len(self.dataset)):
            ids = torch.tensor(self.dataset[number].input_ids).long()[None]
            of_label[number] = (
                -self.model(input_ids=ids).logits[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
            )
        means = [
            sum(weight * of_label[number][place - 1] for number, place, weight in unit) / len(unit) for unit in some
        ]
        return torch.stack(means).mean()


@pytest.fixture(scope="module")
def plain(runs: Path) -> dict[str, Plain]:
    """One for each reduction."""
    return {reduction: Plain(runs, reduction) for reduction in ("token", "sample", "turn", "micro-batch")}


def test_the_reductions_differ(plain: dict[str, Plain]) -> None:
    """Or nothing would be shown."""
    first = sorted(one.losses[0] for one in plain.values())
    assert all(math.isfinite(one) for one in first)
    assert min(above / below - 1 for below, above in zip(first, first[1:])) > 1e-3


@pytest.mark.parametrize(("reduction", "name"), CASES, ids=[f"{reduction}-{name}" for reduction, name in CASES])
def test_losses_and_gradient_norms_are_those_of_the_plain_computation(
    runs: Path, plain: dict[str, Plain], reduction: str, name: str
) -> None:
    found, expected = runs / reduction / name, plain[reduction]
    assert losses(found) == pytest.approx(expected.losses, **TWENTY_STEPS_LOSS)
    assert gradient_norms(found) == pytest.approx(expected.norms, **LAYOUT_LOSS)
    assert of_steps(found, "validation_loss") == pytest.approx([expected.validation], **TWENTY_STEPS_LOSS)


@pytest.mark.parametrize("reduction", ["sample", "turn", "micro-batch"])
def test_weights_are_those_of_the_plain_computation(runs: Path, plain: dict[str, Plain], reduction: str) -> None:
    from mindspeed_ift.checkpoint.source import Checkpoint

    name = "four at once" if reduction == "micro-batch" else "packed"
    source = Checkpoint(runs / reduction / name / f"iter_{STEPS:07d}")
    for key, weight in plain[reduction].model.named_parameters():
        assert torch.allclose(source.tensor(key, tuple(weight.shape)), weight, **TWENTY_STEPS_WEIGHTS), key
