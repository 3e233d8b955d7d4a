"""Each flag of each command, one by one: it sets its own field and no other, from the line and from a file."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.doctor import DoctorConfig
from mindspeed_ift.config.evaluation import EvaluateConfig
from mindspeed_ift.config.flags import options, parse_with_origins, values
from mindspeed_ift.config.inference import GenerateConfig
from mindspeed_ift.config.merge import MergeConfig
from mindspeed_ift.config.plan import PlanConfig
from mindspeed_ift.config.repack import RepackConfig
from mindspeed_ift.config.show import ShowConfig
from mindspeed_ift.config.tuning import TuneConfig
from mindspeed_ift.config.verify import CheckpointConfig, VerifyDatasetConfig
from mindspeed_ift.config.verify_packing import VerifyPackingConfig
from mindspeed_ift.config.verify_template import VerifyTemplateConfig

COMMANDS = (
    PreprocessConfig,
    MergeConfig,
    RepackConfig,
    TuneConfig,
    ConvertConfig,
    GenerateConfig,
    EvaluateConfig,
    ShowConfig,
    VerifyDatasetConfig,
    CheckpointConfig,
    VerifyTemplateConfig,
    VerifyPackingConfig,
    PlanConfig,
    DoctorConfig,
)


def leaves(config_class: type) -> Iterator[tuple[str, Any]]:
    """(name, type) of every option."""
    for name, kind in typing.get_type_hints(config_class).items():
        if dataclasses.is_dataclass(kind):
            yield from leaves(kind)
        else:
            yield name, kind


def example(kind: Any, default: Any) -> tuple[list[str], Any]:
    """Words of a value that is not the default, and the value."""
    kinds = [one for one in typing.get_args(kind) if one is not type(None)]
    if type(None) in typing.get_args(kind):
        (kind,) = kinds
    if typing.get_origin(kind) is typing.Literal:
        choice = next((one for one in typing.get_args(kind) if one != default), default)
        return [choice], choice
    if typing.get_origin(kind) is tuple:
        words, value = example(typing.get_args(kind)[0], None)
        return words, (value,)
    word = {int: "17", float: "0.17", str: "word", Path: "some/path"}[kind]
    return [word], kind(word)


TUNING = dict(leaves(TuneConfig))
CASES = [
    (command, name, kind)
    for command in COMMANDS
    for name, kind in leaves(command)
    # Those that a command takes over from training are tested there.
    if not (issubclass(command, TuneConfig) and command is not TuneConfig and name in TUNING)
]


@cache
def defaults(command: type) -> dict[str, Any]:
    """Of a line without a flag."""
    return values(parse_with_origins(command, [], program="test").config)


@pytest.mark.parametrize(("command", "name", "kind"), CASES, ids=[f"{c.__name__}-{n}" for c, n, _ in CASES])
def test_a_flag_sets_its_own_field(command: type, name: str, kind: Any, tmp_path: Path) -> None:
    before = defaults(command)
    flag = "--" + name.replace("_", "-")
    if kind in (bool, bool | None):
        words, expected = ([], True) if before[name] is not True else ([], False)
        flag = flag if expected else f"--no-{flag[2:]}"
    else:
        words, expected = example(kind, before[name])
    file = name == "config"
    if file:
        (tmp_path / "run.yaml").write_text("lr: 1", encoding="utf-8")
        words, expected = [str(tmp_path / "run.yaml")], tmp_path / "run.yaml"
    parsed = parse_with_origins(command, [flag, *words], program="test")
    after = values(parsed.config)
    changed = {key for key in after if after[key] != before[key]} - ({"lr"} if file else set())
    assert after[name] == expected and changed <= {name}
    assert [key for key, origin in parsed.origins.items() if origin == "flag"] == [name]
    if "config" in before and not file:
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({flag[2:]: words[0] if words else True}), encoding="utf-8")
        read = parse_with_origins(command, ["--config", str(tmp_path / "run.yaml")], program="test")
        assert values(read.config)[name] == expected and read.origins[name] == str(tmp_path / "run.yaml")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_its_sentence_in_the_help(command: type) -> None:
    missing = []
    for part in {
        command,
        *(kind for kind in typing.get_type_hints(command).values() if dataclasses.is_dataclass(kind)),
    }:
        body = ast.parse(inspect.getsource(part).strip()).body[0].body
        for field, following in zip(body, [*body[1:], None]):
            if isinstance(field, ast.AnnAssign) and not dataclasses.is_dataclass(
                typing.get_type_hints(part)[field.target.id]
            ):
                text = following.value.value if isinstance(following, ast.Expr) else ""
                missing += [] if isinstance(text, str) and text.strip() else [field.target.id]
    assert not missing


@pytest.mark.parametrize("command", COMMANDS)
def test_no_flag_could_be_read_as_another(command: type) -> None:
    spellings = [spelling for option in options(command) for spelling in option.spellings]
    assert len(spellings) == len(set(spellings))
