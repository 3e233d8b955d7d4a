"""What preparation puts into the manifest of its template, and what merging makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.merge import MergeConfig
from mindspeed_ift.config.verify_template import VerifyTemplateConfig
from mindspeed_ift.data import certify, workers
from mindspeed_ift.data.indexed import manifest_path, read_manifest
from mindspeed_ift.data.merging import merge
from mindspeed_ift.data.preprocess import preprocess
from mindspeed_ift.data.template_certificate import (
    KEY,
    Certificate,
    check_certificate,
    check_tokenizer,
    joined,
    no_certificate,
    told,
    write_json,
)
from mindspeed_ift.data.tokenizer import load_tokenizer
from mindspeed_ift.verify.template import verify_template
from tests.preparing import write
from tests.tiny_tokenizer import make_tiny_tokenizer

PAIR = {"instruction": "q", "chosen": "yes", "rejected": "no"}
RECORDS = [{"instruction": f"question {number}", "output": f"answer {number}"} for number in range(70)]
SEVERAL = {"instruction": "b", "output": "c", "history": [["a", "<think>\nhm\n</think>\n\nb"]]}


def prepare(config: PreprocessConfig, records: list[dict[str, Any]], **change: Any) -> tuple[dict[str, Any], str]:
    """The certificate in the manifest, and the line that tells of it."""
    write(Path(config.input), records)
    lines: list[str] = []
    config = replace(config, **change)
    preprocess(config, report=lines.append)
    manifest = read_manifest(config.output_prefix) or {}
    assert check_certificate(manifest[KEY], manifest.get("template_sha256"), "d") is None or manifest[KEY]["differ"]
    (line,) = [line for line in lines if line.startswith("template certificate: ")]
    return manifest[KEY], line


def change_tokenizer(config: PreprocessConfig, folder: Path, **change: Any) -> str:
    """Another folder, with another tokenizer_config.json."""
    file = make_tiny_tokenizer(folder) / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    return str(folder)


def test_of_the_first_conversations(config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as take a moment, whatever the workers; what is no sample is passed over."""
    found, line = prepare(config, [{"instruction": "a", "output": None}, *RECORDS], max_drop_fraction=1.0)
    assert (found["verdict"], found["records"], sum(found["left_out"].values())) == ("equal", 64, 1)
    assert "the first 64 conversations agree: served with the tokenizer's chat template (enable_thinking=False)" in line
    monkeypatch.setattr(workers, "CHUNK", 7)
    assert prepare(config, RECORDS)[0] == prepare(config, RECORDS, workers=2)[0]


def test_what_differs_is_told(config: PreprocessConfig) -> None:
    found, line = prepare(config, [SEVERAL, *RECORDS[:3]])
    assert (found["verdict"], found["records"], found["equal"], found["differ"]) == ("differs", 4, 3, {"thoughts": 1})
    assert "1 of the first 4 conversations differ (1 of them in a prompt; most in: thoughts) between" in line
    assert line.endswith(
        "--prompt-type qwen3 and the tokenizer's chat template; mindspeed-ift verify-template shows where"
    )
    assert prepare(config, [SEVERAL], mask_history=True)[0]["verdict"] == "equal", "the last answer is served so"
    pairs, _ = prepare(config, [PAIR])
    assert (pairs["verdict"], pairs["records"]) == ("equal", 1)


@pytest.mark.parametrize(
    ("records", "change", "reason"),
    [
        ([{"text": "plain"}], {"handler_name": "GeneralPretrainHandler"}, "plain text is written by no template"),
        (RECORDS, {"chat_template": ""}, "the tokenizer has no chat template"),
        (RECORDS, {"chat_template": "{% if %}"}, "the chat template of tokenizer .* cannot be read"),
        ([SEVERAL | {"output": "word " * 60_000}], {}, "1 too long to be compared in a moment"),
    ],
)
def test_none_has_a_reason(
    config: PreprocessConfig, tmp_path: Path, records: list[dict[str, Any]], change: dict[str, Any], reason: str
) -> None:
    if "chat_template" in change:
        change = {"tokenizer_name_or_path": change_tokenizer(config, tmp_path / "other", **change)}
    found, line = prepare(config, records, **change)
    assert found["verdict"] == "none" and line.startswith("template certificate: none, because ")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(line)


def test_the_command_compares_as_preparation_does(config: PreprocessConfig) -> None:
    """Of preference pairs too, of which only the last answers are learnt."""
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "<think>\nhm\n</think>\n\nb"}]
    answers = {kind: {"from": "gpt", "value": kind} for kind in ("chosen", "rejected")}
    pair = {"conversations": [*turns, {"from": "human", "value": "c"}], **answers}
    for records, verdict in (([pair], "equal"), ([SEVERAL, RECORDS[0]], "differs")):
        found, _ = prepare(config, records)
        request = VerifyTemplateConfig((config.input,), config.tokenizer_name_or_path, prompt_type="qwen3")
        assert verify_template(request).certificate.as_dict() == found and found["verdict"] == verdict


def test_long_conversations_end_the_comparison(config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certify, "_CHARACTERS", 100)
    found, _ = prepare(config, RECORDS)
    assert 1 < found["records"] < 10


def certificate(**changes: Any) -> dict[str, Any]:
    counts = {"records": 2, "equal": 1, "prompts_equal": 1, "differ": {"x": 1}, "left_out": {}, **changes}
    given = {"serve_with": {}, **counts}
    return Certificate("qwen", "a" * 64, "none", "b" * 64, chat_template_sha256="c" * 64, **given).as_dict()


def test_joined(tokenizer: Path) -> None:
    other = certificate(records=3, equal=0, prompts_equal=3, differ={"x": 1, "y": 2}, left_out={"z": 1})
    whole = joined([certificate(), other]) or {}
    assert (whole["records"], whole["equal"], whole["prompts_equal"]) == (5, 1, 4)
    assert (whole["differ"], whole["left_out"], whole["verdict"]) == ({"x": 2, "y": 2}, {"z": 1}, "differs")
    assert check_certificate(whole, "a" * 64, "d") and "4 of the first 5" in told(whole)
    assert joined([None, None]) is None
    none = no_certificate("of a reason", load_tokenizer(tokenizer))
    for parts, reason in (
        ([certificate(), None], "one of its parts has none"),
        ([none, certificate()], "of a reason"),
        ([certificate(), certificate(serve_with={"system": "s"})], "its parts are to be served in different ways"),
    ):
        found = joined(parts) or {}
        assert (found["verdict"], found["reason"]) == ("none", reason)
        assert check_certificate(found, found["template_sha256"], "d") is None


def test_merged_datasets(config: PreprocessConfig, tmp_path: Path) -> None:
    parts = [str(tmp_path / "a"), str(tmp_path / "b")]
    prepare(config, RECORDS[:2], output_prefix=parts[0])
    prepare(config, [SEVERAL, RECORDS[2]], output_prefix=parts[1])
    request = MergeConfig(input=tuple(parts), output_prefix=str(tmp_path / "whole"))
    found = merge(request).manifest[KEY]
    assert (found["records"], found["equal"], found["differ"]) == (4, 3, {"thoughts": 1})
    manifest = read_manifest(parts[1]) or {}
    write_json(manifest_path(parts[1]), {**manifest, KEY: {**manifest[KEY], "records": 9}})
    with pytest.raises(UserError, match="certificate of dataset .*b is not about its template"):
        merge(request)
    for prefix in parts:
        write_json(manifest_path(prefix), {k: v for k, v in (read_manifest(prefix) or {}).items() if k != KEY})
    assert KEY not in merge(request).manifest, "of a version that wrote none"


def test_a_tokenizer_is_held_to_it(config: PreprocessConfig, tmp_path: Path) -> None:
    found, _ = prepare(config, RECORDS[:1])
    assert check_tokenizer(None, load_tokenizer(config.tokenizer_name_or_path), "d") is None
    assert check_tokenizer(found, load_tokenizer(config.tokenizer_name_or_path), "d") is None
    other = load_tokenizer(change_tokenizer(config, tmp_path / "other", chat_template="x"))
    assert "another one than the template certificate of d is about" in (check_tokenizer(found, other, "d") or "")
    assert check_tokenizer(no_certificate("x", other), load_tokenizer(config.tokenizer_name_or_path), "d") is None
    with pytest.raises(UserError, match="is another one than that of d .*give the tokenizer"):
        check_tokenizer({**found, "tokenizer_sha256": "0"}, other, "d")
