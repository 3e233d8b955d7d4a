"""A model that lies on several ranks, and ranks that share the records, give the answers and the losses of one rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mindspeed_ift.checkpoint.convert import convert
from mindspeed_ift.cli.evaluate import main as evaluate
from mindspeed_ift.cli.generate import main as generate
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.parallel import groups as process_groups
from tests.distributed.worlds import run
from tests.tiny_tokenizer import make_tiny_tokenizer
from tests.tolerances import LAYOUT_LOSS
from tests.training_runs import make_hugging_face_model

QUESTIONS = ["add 3 and 6", "subtract 2 from 40 please", "quickly"]
WAYS = {
    "greedy": ["--repetition-penalty", "1.1"],
    "drawn": ["--temperature", "1.5", "--top-k", "20", "--repetition-penalty", "1.2"],
}
RECORDS = [{"instruction": text, "output": f"It is {text}."} for text in [*QUESTIONS, "add 1", "you add"]]
LAYOUTS = [(2, 2), (1, 2), (2, 1)]  # tensor and pipeline parallel sizes; what is left of four ranks shares the records
BENCHMARK = """
task: tiny
dataset_path: json
dataset_kwargs: {data_files: {test: RECORDS}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{output}}"
metric_list: [{metric: bits_per_byte}]
"""


@pytest.mark.distributed
def test_answers_of_tensor_and_pipeline_ranks(tmp_path: Path) -> None:
    """From a Hugging Face folder and from a checkpoint of another layout; of a mixture of experts too. And measured, one
    against the other, by ranks that share the model, the records, or both, once on a benchmark too."""
    make_tiny_tokenizer(tmp_path / "tokenizer")
    folder = make_hugging_face_model(tmp_path / "hf", tied=False, vocab_size=401, layers=4)
    convert(ConvertConfig("hf", "mg", folder, tmp_path / "mg", target_pipeline_parallel_size=2))
    experts = {"num_experts": 4, "mlp_only_layers": [1]}
    mixed = make_hugging_face_model(tmp_path / "experts", tied=False, vocab_size=401, layers=4, experts=experts)
    convert(ConvertConfig("hf", "mg", mixed, tmp_path / "mg_experts", target_expert_parallel_size=2))
    (tmp_path / "questions.jsonl").write_text(
        "".join(json.dumps({"prompt": text}) + "\n" for text in QUESTIONS), encoding="utf-8"
    )

    for name, load, way in [("one", folder, way) for way in WAYS] + [("mixed", mixed, "greedy")]:
        generate(_ask(tmp_path, f"{name} {way}", load, way))
        process_groups.parallel_state.destroy_model_parallel()
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, RECORDS)), encoding="utf-8")
    benchmark = tmp_path / "tiny.yaml"
    benchmark.write_text(BENCHMARK.replace("RECORDS", str(tmp_path / "records.jsonl")), encoding="utf-8")
    evaluate([*_measure(tmp_path, "measured one", folder, mixed, 1, 1), "--tasks", str(benchmark)])
    process_groups.parallel_state.destroy_model_parallel()
    four = ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"]
    lines = [
        _ask(tmp_path, f"{load.name} {way}", load, way, *four) for load in (folder, tmp_path / "mg") for way in WAYS
    ]
    lines += [_ask(tmp_path, f"{load.name} greedy", load, "greedy", *four) for load in (mixed, tmp_path / "mg_experts")]
    commands = [["generate", *words] for words in lines]
    mg, mg_experts = tmp_path / "mg", tmp_path / "mg_experts"
    commands += [["evaluate", *_measure(tmp_path, f"measured {sizes}", mg, mg_experts, *sizes)] for sizes in LAYOUTS]
    commands[-1] += ["--tasks", str(benchmark)]
    run(commands, 4, "tests.distributed.answer_worker")
    for way in WAYS:
        expected = (tmp_path / f"one {way}").read_text(encoding="utf-8")
        assert len({json.loads(line)["answer"] for line in expected.splitlines()}) == 3
        for name in ("hf", "mg"):
            assert (tmp_path / f"{name} {way}").read_text(encoding="utf-8") == expected, (name, way)
    for name in ("experts", "mg_experts"):
        assert (tmp_path / f"{name} greedy").read_text(encoding="utf-8") == (tmp_path / "mixed greedy").read_text(
            "utf-8"
        )
    _measured_alike(tmp_path)


def _ask(folder: Path, name: str, load: Path, way: str, *layout: str) -> list[str]:
    words = ["--load", str(load), "--input", str(folder / "questions.jsonl"), "--output", str(folder / name)]
    words += ["--tokenizer-name-or-path", str(folder / "tokenizer"), "--max-new-tokens", "12"]
    return [*words, *WAYS[way], *layout]


def _measure(folder: Path, name: str, load: Path, baseline: Path, tensor: int, pipeline: int) -> list[str]:
    words = ["--load", str(load), "--baseline", str(baseline), "--input", str(folder / "records.jsonl")]
    words += ["--tokenizer-name-or-path", str(folder / "tokenizer"), "--output", str(folder / name)]
    words += ["--tensor-model-parallel-size", str(tensor), "--pipeline-model-parallel-size", str(pipeline)]
    return [*words, *"--metrics exact_match --seq-length 64 --max-new-tokens 6 --micro-batch-size 2".split()]


def _measured_alike(folder: Path) -> None:
    expected = _figures(folder / "measured one")
    assert len(expected["losses"]) == 2 * len(RECORDS) and len(set(expected["answers"])) == 2 * len(RECORDS)
    for sizes in LAYOUTS:
        found = _figures(folder / f"measured {sizes}")
        assert found["answers"] == expected["answers"], sizes
        assert found["losses"] == pytest.approx(expected["losses"], **LAYOUT_LOSS), sizes
        for model, figures in zip(found["totals"], expected["totals"], strict=True):
            same = {name: figures[name] for name in model}
            assert model == pytest.approx(same, **LAYOUT_LOSS) and len(model) >= 4, sizes
    assert "tiny bits_per_byte" in found["totals"][1]


def _figures(result: Path) -> dict[str, Any]:
    content = json.loads(result.read_text(encoding="utf-8"))
    of_items = [model for item in content["items"] for model in item["models"]]
    return {
        "totals": [{name: figure for name, figure in model.items() if name != "name"} for model in content["models"]],
        "losses": [each["loss"] for each in of_items],
        "answers": [each["answer"] for each in of_items],
    }
