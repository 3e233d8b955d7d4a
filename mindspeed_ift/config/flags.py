"""A tree of frozen dataclasses in, a Megatron-spelled flat command line out; and where each value came from.

Precedence: default of the field < ``--config`` YAML file < flag. The last of two equal flags wins, so that a script
can end in ``"$@"``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from mindspeed_ift.config.errors import UserError

Config = TypeVar("Config")
Accepted = dict[str, tuple[int, str]]
"""Flag -> (number of values it takes, why it changes nothing here)."""


@dataclasses.dataclass(frozen=True)
class Parsed:
    """What `parse_with_origins` returns.

    Attributes:
        config: the filled configuration.
        origins: field name -> ``"default"``, ``"FILE"`` of ``--config``, or ``"flag"``.
        ignored: one line for each accepted flag that was given and changes nothing.
    """

    config: Any
    origins: dict[str, str]
    ignored: list[str]


def parse(
    config_class: type[Config],
    argv: list[str],
    *,
    program: str,
    description: str = "",
    accepted: Accepted | None = None,
) -> Config:
    """Fill ``config_class`` from a command line; see `parse_with_origins`."""
    return parse_with_origins(config_class, argv, program=program, description=description, accepted=accepted).config


def parse_with_origins(
    config_class: type, argv: list[str], *, program: str, description: str = "", accepted: Accepted | None = None
) -> Parsed:
    """Fill a tree of dataclasses from a flat command line.

    Args:
        config_class: a frozen dataclass; its fields are options or further dataclasses. ``--help`` shows docstrings.
        argv: the words after the program's name.
        program: name in ``--help`` and in messages.
        description: first line of ``--help``.
        accepted: flags of other systems that are taken and change nothing.

    Raises:
        UserError: an unknown flag (with the nearest known one), a value of the wrong type, a bad ``--config`` file.
    """
    # Union types in tyro have no flag for "None"; plain words are enough for Megatron's users.
    argv, ignored = _take_accepted(list(argv), accepted or {})
    names = option_names(config_class)
    default, file_name, from_file = None, "", {}
    if "config" in names:
        argv, file_name = _take_config_file(argv)
        if file_name:
            from_file = _read_config_file(Path(file_name), names)
            default = _with_values(config_class, from_file)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            config, unknown = tyro.cli(
                config_class,
                args=argv,
                prog=program,
                description=description,
                default=default if default is not None else tyro.MISSING_NONPROP,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_one_line(errors.getvalue(), program)) from None
    if unknown:
        raise UserError(_unknown(unknown[0], names, accepted or {}, program))
    given = {word.split("=", 1)[0] for word in argv if word.startswith("--")}
    origins = {name: _origin(name, given, from_file, file_name) for name in names}
    return Parsed(config, origins, ignored)


def option_names(config_class: type) -> list[str]:
    """Names of all leaf fields of a dataclass tree, in order."""
    names = []
    for field, kind in _fields(config_class):
        names += option_names(kind) if dataclasses.is_dataclass(kind) else [field.name]
    return names


def values(config: Any) -> dict[str, Any]:
    """The leaf fields of a filled dataclass tree as one flat dictionary."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat.update(values(value))
        else:
            flat[field.name] = value
    return flat


def _fields(config_class: type) -> list[tuple[dataclasses.Field, Any]]:
    import typing

    kinds = typing.get_type_hints(config_class)
    return [(field, kinds[field.name]) for field in dataclasses.fields(config_class)]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _origin(name: str, given: set[str], from_file: dict[str, Any], file_name: str) -> str:
    spellings = {_flag(name), "--no-" + name.replace("_", "-"), "--" + name}
    if spellings & given:
        return "flag"
    return file_name if name in from_file else "default"


def _take_accepted(argv: list[str], accepted: Accepted) -> tuple[list[str], list[str]]:
    kept, ignored = [], []
    position = 0
    while position < len(argv):
        name = argv[position].split("=", 1)[0]
        if name not in accepted:
            kept.append(argv[position])
            position += 1
            continue
        arity, reason = accepted[name]
        ignored.append(f"{name} changes nothing here: {reason}")
        position += 1 + (arity if "=" not in argv[position] else 0)
    return kept, ignored


def _take_config_file(argv: list[str]) -> tuple[list[str], str]:
    kept, file_name = [], ""
    words = iter(argv)
    for word in words:
        if word == "--config":
            file_name = next(words, "")
            if not file_name:
                raise UserError("--config needs the name of a YAML file")
        elif word.startswith("--config="):
            file_name = word.split("=", 1)[1]
        else:
            kept.append(word)
    return kept, file_name


def _read_config_file(path: Path, names: list[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--config {path}: cannot be read as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: must be a mapping of flag names to values")
    found = {str(key).lstrip("-").replace("-", "_"): value for key, value in content.items()}
    for key in found:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"--config {path}: unknown key {key}{hint}")
    return found


def _with_values(config_class: type, found: dict[str, Any]) -> Any:
    filled = {}
    for field, kind in _fields(config_class):
        if dataclasses.is_dataclass(kind):
            filled[field.name] = _with_values(kind, found)
        elif field.name in found:
            value = found[field.name]
            filled[field.name] = tuple(value) if isinstance(value, list) else value
    return config_class(**filled)


def _one_line(printed: str, program: str) -> str:
    """The first message of tyro's boxed error, without the box."""
    lines = []
    for line in printed.splitlines()[1:]:
        text = line.strip("│╭╮╰╯─ \n")
        if not text and lines:
            break
        if text:
            lines.append(text)
    message = re.sub(r"\s+", " ", " ".join(lines)) or "the command line cannot be understood"
    return f"{message.rstrip('.')}; see {program} --help"


def _unknown(word: str, names: list[str], accepted: Accepted, program: str) -> str:
    if not word.startswith("-"):
        return f"unexpected word '{word}' on the command line; see {program} --help"
    flag = word.split("=", 1)[0]
    known = [_flag(name) for name in names] + list(accepted)
    near = difflib.get_close_matches(flag, known, 1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"see {program} --help"
    return f"unknown flag {flag}; {hint}"
