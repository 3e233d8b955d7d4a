"""Benchmarks in lm-evaluation-harness's format: what that library's own Hugging Face model comes to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mindspeed_ift.cli.evaluate import main as evaluate
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.evaluation import EvaluateConfig
from mindspeed_ift.evaluation.benchmarks import open_tasks
from mindspeed_ift.inference.asking import make_asking_encoder
from mindspeed_ift.inference.load import load
from mindspeed_ift.parallel import groups as process_groups
from tests.tiny_tokenizer import make_tiny_tokenizer
from tests.tolerances import TWENTY_STEPS_LOSS
from tests.training_runs import make_hugging_face_model

lm_eval = pytest.importorskip("lm_eval", reason="the extra dev or evaluate brings lm-evaluation-harness")

QUESTIONS = [
    {"question": "the user and the", "choices": ["assistant", "answer is", "two"], "answer": 0},
    {"question": "one two three", "choices": ["four", "system", "你好"], "answer": 0},
    {"question": "你好，", "choices": ["世界。", "nine ten", "about"], "answer": 2},
    {"question": "speak about the", "choices": ["question", "ten", "the"], "answer": 1},
]
DATA = """
dataset_path: json
dataset_name: null
dataset_kwargs: {data_files: {test: QUESTIONS}}
test_split: test
"""
CHOICE = """
task: tiny_choice
tag: tiny
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
fewshot_split: test
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ANSWER = """
task: tiny_answer
tag: tiny
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["e", "\\n\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
"""
TEXT = """
task: tiny_text
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""


@pytest.fixture(scope="module", autouse=True)
def _data_stays_here(tmp_path_factory: pytest.TempPathFactory):  # noqa: ANN202
    import datasets

    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 512 positions with its tokenizer, and tasks beside it."""
    folder = tmp_path_factory.mktemp("hf")
    make_hugging_face_model(folder, tied=True, vocab_size=420)
    make_tiny_tokenizer(folder)
    questions = folder / "questions.jsonl"
    questions.write_text("\n".join(map(json.dumps, QUESTIONS)), encoding="utf-8")
    (folder / "tasks").mkdir()
    for name, text in (("choice", CHOICE), ("answer", ANSWER), ("text", TEXT)):
        data = DATA.replace("QUESTIONS", json.dumps(str(questions)))
        (folder / f"tasks/{name}.yaml").write_text(text + data, encoding="utf-8")
    return folder


@pytest.fixture
def reference(folder: Path) -> Any:
    """The harness's own way to load the folder; its cache gives single tokens the likelihood of another request."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2, logits_cache=False)


def _leave() -> None:
    process_groups.parallel_state.destroy_model_parallel()


def _requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def test_likelihoods_and_answers_are_those_of_the_harness_on_hugging_face(folder: Path, reference: Any) -> None:
    """Without a context, over spaces between context and continuation, and of texts longer than the model can read."""
    from mindspeed_ift.evaluation.harness import HarnessModel

    loaded = load(folder)
    try:
        model = HarnessModel(loaded, make_asking_encoder(EvaluateConfig(load=folder), loaded.facts), 64, 2)
        long = "the user and the assistant speak. " * 90
        pairs = [("", "one two"), ("one two ", "three"), ("你好", "，世界。"), (long, "five"), ("one", " two three")]
        pairs.append(("one two", reference.tok_decode(_likeliest(reference, "one two"))))
        found = model.loglikelihood(_requests("loglikelihood", *pairs))
        expected = reference.loglikelihood(_requests("loglikelihood", *pairs), disable_tqdm=True)
        assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], **TWENTY_STEPS_LOSS)
        assert [best for _, best in found] == [best for _, best in expected] == [False] * 5 + [True]
        assert model.shortened == 1
        texts = [("one two three",), (long,)]
        found = model.loglikelihood_rolling(_requests("loglikelihood_rolling", *texts))
        expected = reference.loglikelihood_rolling(_requests("loglikelihood_rolling", *texts), disable_tqdm=True)
        assert found == pytest.approx(expected, **TWENTY_STEPS_LOSS)
        free, bound = {"until": [], "max_gen_toks": 9}, {"until": ["e", "o"], "max_gen_toks": 20, "do_sample": False}
        asked = [("one two", free), ("the user", bound), (long, free), ("speak about the", bound), ("你好", free)]
        found = model.generate_until(_requests("generate_until", *asked))
        assert found == reference.generate_until(_requests("generate_until", *asked), disable_tqdm=True)
        assert all(found[number] and not set(found[number]) & {"e", "o"} for number in (1, 3))
        with pytest.raises(UserError, match="answers with num_beams, which generate does not know"):
            model.generate_until(_requests("generate_until", ("one", {"num_beams": 2})))
        with pytest.raises(UserError, match="answers of 512 tokens, all that the model has positions for"):
            model.generate_until(_requests("generate_until", ("one", {"max_gen_toks": 512})))
        talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one?"}]
        written = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none?<|im_end|>\n"
        written += "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        assert model.apply_chat_template(talk) == written
        talk.append({"role": "assistant", "content": "It is"})
        assert model.apply_chat_template(talk, add_generation_prompt=False) == written + "It is"
    finally:
        _leave()


def _likeliest(reference: Any, context: str) -> list[int]:
    import torch

    ids = torch.tensor([reference.tok_encode(context)])
    return [int(reference.model(ids).logits[0, -1].argmax())]


def test_a_benchmark_has_the_figures_of_the_harness(
    folder: Path, reference: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a file, of a name, of a group of names; of one model and another; beside records; asked in the template."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    results = simple_evaluate(
        reference, tasks=["tiny", "tiny_text"], task_manager=manager, num_fewshot=2, bootstrap_iters=0
    )
    assert results is not None
    records = tmp_path / "records.jsonl"
    records.write_text(json.dumps({"instruction": "one", "output": "two"}), encoding="utf-8")
    words = ["--load", str(folder), "--baseline", str(folder), "--input", str(records), "--output"]
    words += [str(tmp_path / "result.json"), "--html", str(tmp_path / "page.html"), "--metrics", "chrf"]
    words += ["--tasks", "tiny", str(folder / "tasks/text.yaml"), "--include-path", str(folder / "tasks")]
    assert evaluate([*words, "--num-fewshot", "2"]) == 0
    _leave()
    before, after = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["models"]
    assert before == after and "chrf" in after
    for task, metrics in {
        "tiny_choice": ("acc", "acc_norm"),
        "tiny_answer": ("exact_match",),
        "tiny_text": ("word_perplexity", "bits_per_byte"),
    }.items():
        for metric in metrics:
            expected = results["results"][task][f"{metric},none"]
            assert after[f"{task} {metric}"] == pytest.approx(expected, **TWENTY_STEPS_LOSS), (task, metric)
    assert 0 < after["tiny_choice acc"] < 1 and after["tiny_choice acc_stderr"] > 0
    assert "tiny_choice acc" in capsys.readouterr().out and "tiny_choice acc" in (tmp_path / "page.html").read_text()

    alone = ["--load", str(folder), "--tasks", "tiny_choice", "--include-path", str(folder / "tasks")]
    assert evaluate([*alone, "--apply-chat-template", "--max-samples", "1"]) == 0
    _leave()
    told = capsys.readouterr().out
    assert "tiny_choice acc" in told and "records" not in told and "loss" not in told


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tasks": ("no_such_task",)}, "--tasks no_such_task: Spec 'no_such_task' is not a registered"),
        ({"tasks": ("a.yaml",), "include_path": (Path("nowhere"),)}, "--include-path nowhere is not a folder"),
        ({"tasks": ("bad.yaml",)}, "--tasks .*bad.yaml cannot be loaded: "),
        ({"tasks": ("unsafe.yaml",)}, "unsafe runs code that a model writes"),
    ],
)
def test_tasks_that_cannot_be_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(folder / "tasks/manager.py"))  # thousands of tasks less
    (folder / "bad.yaml").write_text(CHOICE + "dataset_path: json\ndataset_kwargs: {data_files: none.jsonl}\n")
    unsafe = CHOICE.replace("tiny_choice", "unsafe") + "unsafe_code: true\n"
    (folder / "unsafe.yaml").write_text(unsafe + DATA.replace("QUESTIONS", '"questions.jsonl"'))
    with pytest.raises(UserError, match=expected):
        open_tasks(EvaluateConfig(load=folder, **changes))


def test_tasks_that_the_library_brings_need_no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(folder / "tasks/manager.py"))
    tasks = open_tasks(EvaluateConfig(load=folder, tasks=("tiny",)))["tasks"]
    assert sorted(tasks) == ["tiny_answer", "tiny_choice"]
    assert [task.get_config("num_fewshot") for task in tasks.values()] == [0, 0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "--input is missing: held-out records; or give --tasks"),
        ({"input": ("a",), "num_fewshot": 2}, "--num-fewshot and --apply-chat-template are for --tasks"),
        ({"tasks": ("a",), "num_fewshot": -1}, "--num-fewshot -1 must not be negative"),
        ({"tasks": ("a",), "metrics": ("chrf",)}, "--metrics is about the answers to records; give --input"),
    ],
)
def test_flags_that_do_not_fit(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        EvaluateConfig(load=Path("x"), **changes).check()


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--tasks needs a library .*: pip install 'mindspeed-ift\[evaluate\]'"):
        open_tasks(EvaluateConfig(load=Path("x"), tasks=("arc_easy",)))
