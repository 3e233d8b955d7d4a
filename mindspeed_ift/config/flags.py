"""A tree of frozen dataclasses in, a Megatron-spelled flat command line out; and where each value came from.

Precedence: default of the field < ``--config`` YAML file < flag. The last of two equal flags wins, so that a script
can end in ``"$@"``; only those of fields with ``repeatable`` in their metadata add up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from mindspeed_ift.config import words as command_line
from mindspeed_ift.config.accepted import OTHER_NAMES, REFUSED
from mindspeed_ift.config.errors import UserError, first_line
from mindspeed_ift.config.words import Accepted

Config = TypeVar("Config")
_LARGEST = 2**63 - 1


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


@dataclasses.dataclass(frozen=True)
class Option:
    """One leaf field of a tree of dataclasses.

    Attributes:
        name: of the field.
        written_type: as in the source.
        default: `dataclasses.MISSING` where the flag must be given.
        switch: it takes no value; ``--no-...`` turns it off.
        repeatable: given several times, its values add up.
    """

    name: str
    written_type: str
    default: Any
    switch: bool
    repeatable: bool = False

    @property
    def flag(self) -> str:
        """``--seq-length`` of ``seq_length``."""
        return "--" + self.name.replace("_", "-")

    @property
    def any_case(self) -> bool:
        """``True`` is ``true`` among its values, as in MindSpeed-LLM."""
        return "'true'" in self.written_type  # Python writes it so, whatever the source

    @property
    def spellings(self) -> set[str]:
        """The flags that set this field."""
        return {self.flag, f"--no-{self.flag[2:]}"} if self.switch else {self.flag}


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
    reader = _Reader(config_class, program, description, accepted or {})
    config, given, ignored = reader.read(argv)
    file, from_file = getattr(config, "config", None), set()
    if file is not None:
        try:
            defaults, from_file, ignored_of_file = reader.read(_words_of_file(file, reader.all_switches))
        except UserError as error:
            raise UserError(f"--config {file}: {error}") from None
        config, _, _ = reader.read(argv, defaults)
        ignored = [*ignored_of_file, *ignored]
    origins = {
        option.name: "flag" if option.name in given else str(file) if option.name in from_file else "default"
        for option in reader.options
    }
    return Parsed(config, origins, list(dict.fromkeys(ignored)))


def options(config_class: type) -> list[Option]:
    """All leaf fields of a dataclass tree, in order."""
    found = []
    kinds = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind = kinds[field.name]
        if dataclasses.is_dataclass(kind):
            found += options(kind)
        else:
            switch, repeatable = kind in (bool, bool | None), field.metadata.get("repeatable", False)
            found.append(Option(field.name, str(field.type), field.default, switch, repeatable))
    return found


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


def refuse_less(config: Any, least: int, *names: str) -> None:
    """Refuse numbers that are less than they must be.

    Args:
        config: A dataclass tree.
        least: Lowest that will do.
        names: Of its leaf fields; None is no number.

    Raises:
        UserError: Naming the first such flag.
    """
    given = values(config)
    for name in names:
        value = given[name]
        if value is not None and value < least:
            must = f"must be at least {least}" if least else "must not be negative"
            raise UserError(f"--{name.replace('_', '-')} {value} {must}")


class _Reader:
    """Reads words into one dataclass; used for the command line and for the file of ``--config``."""

    def __init__(self, config_class: type, program: str, description: str, accepted: Accepted) -> None:
        self.config_class, self.program, self.description = config_class, program, description
        self.options = options(config_class)
        own = {flag for option in self.options for flag in option.spellings}
        self.accepted = {flag: entry for flag, entry in accepted.items() if flag not in own}
        self.switches = {flag for option in self.options if option.switch for flag in option.spellings}
        self.all_switches = self.switches | {flag for flag, (arity, *_) in self.accepted.items() if arity == 0}

    def read(self, argv: list[str], defaults: Any = None) -> tuple[Any, set[str], list[str]]:
        """The filled dataclass, the fields that ``argv`` gave, and a line for each accepted flag."""
        words = command_line.spelled(argv, OTHER_NAMES)
        command_line.refuse_empty_values(words, {option.flag for option in self.options if option.default == ""})
        words, ignored = command_line.take_accepted(words, self.accepted)
        command_line.refuse_values_of_switches(words, self.switches)
        words = command_line.in_lower_case(words, {option.flag for option in self.options if option.any_case})
        words = command_line.add_up_repeated(words, {option.flag for option in self.options if option.repeatable})
        config = self._typed(words, defaults)
        flags = command_line.given_names(words)
        given = {option.name for option in self.options if option.spellings & flags}
        _check_values(config, given)
        return config, given, ignored

    def _typed(self, words: list[str], defaults: Any) -> Any:
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors), _unbroken_lines(words):
                config, rest = tyro.cli(
                    self.config_class,
                    args=words,
                    prog=self.program,
                    description=f"{self.description} With --debug an error shows its traceback.".strip(),
                    default=defaults if defaults is not None else tyro.MISSING_NONPROP,
                    # Switches without a default take no value either, and "None" is no value of any flag.
                    config=(tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
                    return_unknown_args=True,
                )
        except SystemExit as stop:
            if not stop.code:
                raise
            raise UserError(_one_line(errors.getvalue(), self.program)) from None
        # tyro takes a lone "--" for the end of the flags.
        rest = rest or [word for word in words if word == "--"]
        if rest:
            known = [flag for option in self.options for flag in option.spellings] + list(self.accepted)
            raise UserError(command_line.unknown(rest[0], sorted(known), REFUSED, self.program))
        return config


def _check_values(config: Any, given: set[str]) -> None:
    for name, value in values(config).items():
        flag = "--" + name.replace("_", "-")
        if name in given and value == ():
            raise UserError(f"{flag} needs at least one value")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{flag} {value} is not a finite number")
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise UserError(f"{flag} {value} is too large")


def _words_of_file(path: Path, switches: set[str]) -> list[str]:
    """The content of a ``--config`` file as words of a command line, so that both are read by the same rules."""
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot be read as YAML ({first_line(error)})") from None
    if not isinstance(content, dict):
        raise UserError("must be a mapping of flag names to values")
    # YAML's own reader keeps the last of two equal keys without a word.
    keys = [_flag_of(key.value) for key, _ in yaml.compose(text, Loader=yaml.SafeLoader).value]
    for flag in keys:
        if keys.count(flag) > 1 or flag == "--config":
            raise UserError(f"{flag[2:]} is given twice" if flag != "--config" else "a file cannot name another file")
    words = [_words_of_value(_flag_of(key), value, switches) for key, value in content.items()]
    return [word for one in words for word in one]


def _flag_of(key: Any) -> str:
    return "--" + str(key).lstrip("-").replace("_", "-")


def _words_of_value(flag: str, value: Any, switches: set[str]) -> list[str]:
    single = value if isinstance(value, list) else [value]
    if not single or any(one is None or isinstance(one, dict | list) for one in single):
        raise UserError(f"{flag[2:]} must have a value, or a list of values")
    if isinstance(value, bool) and flag in switches:
        opposite = "--" + flag[5:] if flag.startswith("--no-") else "--no-" + flag[2:]
        return [flag if value else opposite]
    texts = [str(one).lower() if isinstance(one, bool) else str(one) for one in single]
    return [flag, *texts] if isinstance(value, list) else [f"{flag}={texts[0]}"]


@contextlib.contextmanager
def _unbroken_lines(words: list[str]) -> Iterator[None]:
    """tyro breaks its messages at the width of the terminal, in the middle of a path too; not the text of --help."""
    before = os.environ.get("COLUMNS")
    if not {"-h", "--help"} & set(words):
        os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        if before is not None:
            os.environ["COLUMNS"] = before


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
    message = re.sub(r"Missing value for argument '(\S+)'. Expected 1 values", r"\1 needs a value", message)
    # tyro offers the None of "Literal[...] | None" as a choice, and then refuses it.
    message = message.replace("'None', ", "").replace(", 'None'", "")
    return f"{message.rstrip('.')}; see {program} --help"
