"""The words of a command line before they get types: one spelling, no empty values, flags of other systems taken out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatch

from mindspeed_ift.config.errors import UserError, nearest

Accepted = Mapping[str, tuple[int, str] | tuple[int, str, tuple[str, ...]]]
"""Flag -> number of values it takes, why it changes nothing here, and the only values of which that is true (all values
without the third)."""


def is_flag(word: str) -> bool:
    """Whether a word is ``--name`` or ``--name=value``; ``-1`` and ``- item`` are values."""
    return word.startswith("--") and len(word) > 2


def first_word_of(words: list[str], flag: str) -> list[str]:
    """The words of a command whose first one may be the value of ``flag``, which is left out then."""
    return [flag, *words] if words and not words[0].startswith("-") else words


def spelled(words: Iterable[str], other_names: Mapping[str, str]) -> list[str]:
    """``--seq_length`` becomes ``--seq-length``: one flag has one name in messages and in the list of origins.

    Args:
        words: of the command line.
        other_names: of flags -> the one by which they are known here.
    """
    return [_known_name(word, other_names) if is_flag(word) else word for word in words]


def _known_name(word: str, other_names: Mapping[str, str]) -> str:
    name, equals, value = word.partition("=")
    name = name.replace("_", "-")
    return other_names.get(name, name) + equals + value


def given_names(words: Iterable[str]) -> set[str]:
    """The flags among ``words``, without values."""
    return {_name(word) for word in words if is_flag(word)}


def refuse_empty_values(words: list[str], may_be_empty: Collection[str]) -> None:
    """An empty value is a shell variable that is not set: a path would silently become the current folder.

    Args:
        words: of the command line.
        may_be_empty: flags for which an empty value is the same as none.

    Raises:
        UserError: naming the flag.
    """
    flag = ""
    for word in words:
        flag = _name(word) if is_flag(word) else flag
        if (word == "" or (is_flag(word) and word.partition("=")[1:] == ("=", ""))) and flag not in may_be_empty:
            raise UserError(f"{flag or 'the command line'} has an empty value; is a variable of the script not set?")


def refuse_values_of_switches(words: list[str], switches: Collection[str]) -> None:
    """``--bf16 true`` and ``--bf16=true`` are not how switches are given.

    Raises:
        UserError: with the two ways to write it.
    """
    for word, following in zip(words, [*words[1:], "--"]):
        flag, equals, value = word.partition("=")
        if flag in switches and (equals or not following.startswith("-")):
            positive = "--" + flag[2:].removeprefix("no-")
            shown = value if equals else following
            raise UserError(f"{flag} takes no value, but got '{shown}'; write {positive} or --no-{positive[2:]}")


def in_lower_case(words: list[str], flags: Collection[str]) -> list[str]:
    """``--mode True`` becomes ``--mode true``.

    Args:
        words: of the command line.
        flags: whose values may be written in any case.
    """
    lowered = []
    for before, word in zip(["", *words], words):
        name, equals, value = word.partition("=")
        if name in flags:
            word = name + equals + value.lower()
        lowered.append(word.lower() if before in flags and not is_flag(word) else word)
    return lowered


def add_up_repeated(words: list[str], repeatable: Collection[str]) -> list[str]:
    """The values of ``--input a --input=b c`` in one place: ``--input a b c``, last.

    Args:
        words: of the command line.
        repeatable: flags whose values add up.
    """
    kept: list[str] = []
    found: dict[str, list[str]] = {}
    values = kept
    for word in words:
        if is_flag(word):
            name, equals, value = word.partition("=")
            values = found.setdefault(name, []) if name in repeatable else kept
            if values is not kept:
                values += [value] if equals else []
                continue
        values.append(word)
    return kept + [word for name, gathered in found.items() for word in (name, *gathered)]


def take_accepted(words: list[str], accepted: Accepted) -> tuple[list[str], list[str]]:
    """Part the flags of other systems that change nothing here from ours.

    Returns:
        Our words, and one line for each flag that was taken out.

    Raises:
        UserError: a value is missing, or it asks for something else than what is done here.
    """
    kept, ignored = [], []
    position = 0
    while position < len(words):
        name, equals, first = words[position].partition("=")
        position += 1
        if name not in accepted:
            kept.append(words[position - 1])
            continue
        arity, reason, *only = accepted[name]
        found = [first] if equals else []
        while len(found) < arity and position < len(words) and not is_flag(words[position]):
            found.append(words[position])
            position += 1
        if len(found) != arity:
            raise UserError(f"{name} takes {arity} value{'s' * (arity != 1)}, but got {len(found)}")
        _refuse_contradiction(name, " ".join(found), *only)
        ignored.append(f"{name} changes nothing here: {reason}")
    return kept, list(dict.fromkeys(ignored))


def unknown(word: str, known: Collection[str], refused: Mapping[str, str], program: str) -> str:
    """What to say of a word that is neither a flag nor the value of one.

    Args:
        word: that is not understood.
        known: flags of the command.
        refused: pattern of a flag of other systems -> why it cannot be honoured.
        program: name for the hint to ``--help``.
    """
    if not word.startswith("-") or word == "--":
        return f"unexpected word '{word}' on the command line; see {program} --help"
    flag = _name(word)
    for pattern, why in refused.items():
        if fnmatch(flag, pattern):
            return f"{flag} is not supported: {why}"
    return f"unknown flag {flag}; {nearest(flag, known, f'see {program} --help')}"


def _refuse_contradiction(name: str, value: str, only: tuple[str, ...] = ()) -> None:
    if only and not any(_same(value, allowed) for allowed in only):
        raise UserError(f"{name} {value} is not supported: only {' or '.join(only)}; leave it out")


def _same(value: str, allowed: str) -> bool:
    try:
        return float(value) == float(allowed)
    except ValueError:
        return value.casefold() == allowed.casefold()


def _name(word: str) -> str:
    return word.partition("=")[0]
