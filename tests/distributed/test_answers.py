"""A model that lies on several ranks gives the answers of one rank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mindspeed_ift.checkpoint.convert import convert
from mindspeed_ift.cli.generate import main as generate
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.parallel import groups as process_groups
from tests.distributed.worlds import run
from tests.tiny_tokenizer import make_tiny_tokenizer
from tests.training_runs import make_hugging_face_model

QUESTIONS = ["add 3 and 6", "subtract 2 from 40 please", "quickly"]
WAYS = {
    "greedy": ["--repetition-penalty", "1.1"],
    "drawn": ["--temperature", "1.5", "--top-k", "20", "--repetition-penalty", "1.2"],
}


@pytest.mark.distributed
def test_answers_of_tensor_and_pipeline_ranks(tmp_path: Path) -> None:
    """From a Hugging Face folder and from a checkpoint of another layout; of a mixture of experts too."""
    make_tiny_tokenizer(tmp_path / "tokenizer")
    folder = make_hugging_face_model(tmp_path / "hf", tied=False, vocab_size=401, layers=4)
    convert(ConvertConfig("hf", "mg", folder, tmp_path / "mg", target_pipeline_parallel_size=2))
    experts = {"num_experts": 4, "mlp_only_layers": [1]}
    mixed = make_hugging_face_model(tmp_path / "experts", tied=False, vocab_size=401, layers=4, experts=experts)
    convert(ConvertConfig("hf", "mg", mixed, tmp_path / "mg_experts", target_expert_parallel_size=2))
    (tmp_path / "questions.jsonl").write_text(
        "".join(json.dumps({"prompt": text}) + "\n" for text in QUESTIONS), encoding="utf-8"
    )

    def line(name: str, load: Path, way: str, *layout: str) -> list[str]:
        words = ["--load", str(load), "--input", str(tmp_path / "questions.jsonl"), "--output", str(tmp_path / name)]
        words += ["--tokenizer-name-or-path", str(tmp_path / "tokenizer"), "--max-new-tokens", "12"]
        return [*words, *WAYS[way], *layout]

    for name, load, way in [("one", folder, way) for way in WAYS] + [("mixed", mixed, "greedy")]:
        generate(line(f"{name} {way}", load, way))
        process_groups.parallel_state.destroy_model_parallel()
    four = ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"]
    lines = [line(f"{load.name} {way}", load, way, *four) for load in (folder, tmp_path / "mg") for way in WAYS]
    lines += [line(f"{load.name} greedy", load, "greedy", *four) for load in (mixed, tmp_path / "mg_experts")]
    run(lines, 4, "answer_worker")
    for way in WAYS:
        expected = (tmp_path / f"one {way}").read_text(encoding="utf-8")
        assert len({json.loads(line)["answer"] for line in expected.splitlines()}) == 3
        for name in ("hf", "mg"):
            assert (tmp_path / f"{name} {way}").read_text(encoding="utf-8") == expected, (name, way)
    for name in ("experts", "mg_experts"):
        assert (tmp_path / f"{name} greedy").read_text(encoding="utf-8") == (tmp_path / "mixed greedy").read_text(
            "utf-8"
        )
