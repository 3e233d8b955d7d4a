"""A handler's name and the first records in, the format that reads all of them out.

A record is a dictionary, as the file has it. A format's ``convert`` raises `DropRecord` with the reason for a record
that is no sample.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mindspeed_ift.config.errors import UserError, nearest
from mindspeed_ift.data.column_formats import AlpacaFormat, AlpacaPairFormat
from mindspeed_ift.data.conversation import Conversation, DropRecord, PreferencePair
from mindspeed_ift.data.dialogue_formats import MossFormat
from mindspeed_ift.data.fields import Record, unwrapped
from mindspeed_ift.data.handlers import AUTO, HANDLERS, check_handler
from mindspeed_ift.data.message_formats import (
    OpenAIFormat,
    OpenAIPairFormat,
    SharegptFormat,
    SharegptPairFormat,
    Tags,
)
from mindspeed_ift.data.rollout_formats import RolloutFormat
from mindspeed_ift.data.text_formats import MadeTextFormat, TextFormat

OPTIONAL_COLUMNS = ("system", "history", "tools")
"""Columns that MindSpeed-LLM's handlers read only when ``--map-keys`` names them."""

_MESSAGES = ("conversations", "messages", "conversation", "dialogue")
_USUAL: dict[str, tuple[str, ...]] = {
    "messages": _MESSAGES,
    "prompt": ("instruction", "prompt", "question", "query"),
    "query": ("input",),
    "response": ("output", "response", "answer", "completion"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    **{column: (column,) for column in OPTIONAL_COLUMNS},
}
"""Key of ``--map-keys`` -> names by which its column is found."""
_NEEDED = {"messages", "prompt", "response", "chosen", "rejected"}
_SPEAKERS = {
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant", "chatgpt", "model"),
    "observation_tag": ("observation", "tool", "function_response"),
}
"""Tag -> names by which the speaker is found; the first counts where there are several."""
_MESSAGE_FORMATS = ((SharegptFormat, SharegptPairFormat), (OpenAIFormat, OpenAIPairFormat))
PEEKED = 100
"""Records that are looked at to recognize the format."""


InstructionFormat = AlpacaFormat | SharegptFormat | MossFormat


class _AnyForm:
    """What ``--map-keys`` may name where the form is not known yet."""

    keys = (*_USUAL, "tags")


@dataclass(frozen=True)
class AutoFormat:
    """Looks at each record for what it is; records of several kinds may stand in one dataset.

    Attributes:
        map_keys: ``--map-keys``; other columns are found by their usual names.
        makes_pairs: Whether the records are pairs.
        seen: What the first records were, for the user.
        usual: The format of most of them.
    """

    title: ClassVar[str] = "recognized"
    map_keys: Mapping[str, Any] = field(default_factory=dict)
    makes_pairs: bool = False
    seen: str = ""
    usual: InstructionFormat | None = None
    _known: dict[Any, InstructionFormat | None] = field(default_factory=dict, repr=False, compare=False)

    def columns(self) -> set[str]:
        """Columns that ``--map-keys`` names."""
        return {column for column in self.map_keys.values() if isinstance(column, str) and column}

    def convert(self, record: Record) -> Conversation | PreferencePair:
        """Read one record."""
        found = self.form_of(record)
        if found is None:
            if self.usual is not None and not set(self.usual.required()).isdisjoint(record):
                self.usual.convert(record)  # It may know what is missing.
            raise DropRecord(f"of no known form (columns: {', '.join(map(str, record)) or 'none'})"[:200])
        if found.makes_pairs is not self.makes_pairs:
            raise DropRecord(f"of another form than the first records: {found.title}")
        return found.convert(record)

    def form_of(self, record: Record) -> InstructionFormat | None:
        """The format of one record; None if it has none.

        Raises:
            UserError: ``map_keys`` cannot be used.
        """
        columns = tuple(record)
        # Without a column of messages nothing but the names of the columns decides.
        if columns in self._known:
            return self._known[columns]
        messages = _named(self.map_keys, "messages", _MESSAGES, columns)
        column = messages or _named(self.map_keys, "chosen", ("chosen",), columns)
        value = unwrapped(record.get(column)) if column else None
        given = value if isinstance(value, list) else [value]
        shape = [message for message in given if isinstance(message, dict)]
        speakers = frozenset(one["from"] for one in shape if isinstance(one.get("from"), str))
        tag = next((tag for tag in ("from", "role") if shape and tag in shape[0]), "")
        look = (columns, bool(shape), tag, speakers)
        key = look if column else columns
        if key not in self._known:
            self._known[key] = _form_of(self.map_keys, *look)
        return self._known[key]


Format = InstructionFormat | RolloutFormat | TextFormat | AutoFormat


def make_format(
    handler: str,
    map_keys: Mapping[str, Any],
    json_keys: tuple[str, ...],
    first: Sequence[Record],
    where: str,
    kept: tuple[str, ...] = (),
) -> Format:
    """The format of a dataset.

    Args:
        handler: ``--handler-name``.
        map_keys: ``--map-keys``.
        json_keys: ``--json-keys``.
        first: The first records, to recognize (auto) and to find columns that are not there; not empty.
        where: Origin of the first record, for messages.
        kept: ``--dataset-additional-keys``.

    Raises:
        UserError: Unknown handler or key, a column that is not in the data, or records of unknown or several kinds.
    """
    check_handler(handler)
    if handler in AUTO:
        return _auto(map_keys, json_keys, first, where)
    row = HANDLERS[handler]
    found = row.form
    columns = {column for record in first for column in record}
    remedy = "name the right one with --map-keys"
    if issubclass(found, MadeTextFormat):
        form: Format = found()
        remedy = "rename the one that is meant"
    elif issubclass(found, TextFormat):
        form = found(json_keys)
        remedy = "name the right one with --json-keys"
    else:
        form = found(**_checked_keys(found, map_keys, handler))
        form = form.adapt(columns) if isinstance(form, AlpacaFormat) else form
    if row.prompts_only:
        form = RolloutFormat(form, kept if row.keeps_columns else ())
    for column in form.required():
        if column not in columns:
            raise UserError(_no_column(column, first, where, remedy))
    return form


def _no_column(column: str, first: Sequence[Record], where: str, remedy: str) -> str:
    return f"no column '{column}' in {where} (it has: {_listed(first)}); {remedy}, or choose another --handler-name"


def _auto(map_keys: Mapping[str, Any], json_keys: tuple[str, ...], first: Sequence[Record], where: str) -> Format:
    _checked_keys(_AnyForm, map_keys, "any format")
    columns = {column for record in first for column in record}
    for key in _NEEDED & map_keys.keys():
        if map_keys[key] not in columns:
            raise UserError(_no_column(map_keys[key], first, where, "name the right one with --map-keys"))
    form = AutoFormat(map_keys)
    found = [form.form_of(record) for record in first]
    known = [one for one in found if one is not None]
    seen = f"first {len(first)} records of {where}"
    if not known and not map_keys and any(set(json_keys) <= set(record) for record in first):
        return TextFormat(json_keys, f"{seen}: plain text ({', '.join(json_keys)})")
    if not known:
        raise UserError(
            f"the records of {where} are of no known form (columns: {_listed(first)}); name one"
            " with --handler-name and its columns with --map-keys"
        )
    _refuse_several_kinds(found, known[0], where)
    kinds = _described(known) + ([f"{len(found) - len(known)} of no known form"] if len(known) < len(found) else [])
    usual, _ = Counter(known).most_common(1)[0]
    return AutoFormat(map_keys, usual.makes_pairs, f"{seen}: {', '.join(kinds)}", usual)


def _refuse_several_kinds(found: Sequence[InstructionFormat | None], first: InstructionFormat, where: str) -> None:
    for number, one in enumerate(found, 1):
        if one is not None and one.makes_pairs is not first.makes_pairs:
            raise UserError(
                f"the first records of {where} are of several kinds: {first.title}, and record {number} {one.title};"
                " part them, or name one with --handler-name"
            )


def _described(forms: Sequence[InstructionFormat]) -> list[str]:
    """How many of each kind, and all columns that they are read from."""
    columns: dict[str, set[str]] = {}
    for form in forms:
        columns.setdefault(form.title, set()).update(form.columns())
    counts = Counter(form.title for form in forms).most_common()
    return [f"{count} {title} ({', '.join(sorted(columns[title]))})" for title, count in counts]


def _form_of(
    map_keys: Mapping[str, Any], columns: tuple[str, ...], holds_messages: bool, tag: str, speakers: Set[str]
) -> InstructionFormat | None:
    """The format of records of one look.

    Args:
        map_keys: ``--map-keys``; other columns are found by their usual names.
        columns: Of the record.
        holds_messages: Its column of messages (or of the better answer) does hold messages.
        tag: How the first of them names its speaker: ``from``, ``role`` or neither ("").
        speakers: What ``from`` says.
    """
    named = {key: _named(map_keys, key, known, columns) for key, known in _USUAL.items()}
    own: dict[str, Any] = {key: column for key, column in named.items() if column is not None}
    pairs = {"chosen", "rejected"} <= own.keys()
    found: type[InstructionFormat]
    if holds_messages or "messages" in own or "tags" in map_keys:
        # Whole conversations to choose from need no other column of messages.
        if not pairs and "messages" not in own:
            return None
        found = _MESSAGE_FORMATS[_is_openai(own, map_keys, tag)][pairs]
        own |= {"tags": _spelled_tags(speakers)} if tag == "from" else {}
    elif "prompt" in own and (pairs or "response" in own):
        found = AlpacaPairFormat if pairs else AlpacaFormat
    else:
        return None
    return found(**_arguments(found, own, map_keys))


def _is_openai(own: Mapping[str, Any], map_keys: Mapping[str, Any], tag: str) -> bool:
    return "tags" not in map_keys and (tag == "role" or (not tag and own.get("messages") != "conversations"))


def _arguments(found: type[InstructionFormat], own: Mapping[str, Any], map_keys: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of a format: those of the record that it has a use for, None for those that are not there."""
    given = {**dict.fromkeys(("query", *OPTIONAL_COLUMNS)), **own, **_read_keys(map_keys)}
    return {key: value for key, value in given.items() if key in found.keys}


def _named(map_keys: Mapping[str, Any], key: str, known: tuple[str, ...], columns: Collection[str]) -> str | None:
    """The column for a key."""
    if key in map_keys:
        return map_keys[key]
    return next((name for name in known if name in columns), None)


def _spelled_tags(speakers: Set[str]) -> Tags:
    """ShareGPT's tags, as these messages spell them."""
    return Tags(**{tag: name for tag, names in _SPEAKERS.items() for name in reversed(names) if name in speakers})


def _listed(first: Sequence[Record]) -> str:
    """The columns of some records, in their order."""
    return ", ".join(dict.fromkeys(str(column) for record in first for column in record)) or "none"


def _checked_keys(form: type[Any], map_keys: Mapping[str, Any], handler: str) -> dict[str, Any]:
    """``map_keys`` as arguments of a format."""
    for key in map_keys:
        if key not in form.keys:
            hint = nearest(key, form.keys, f"it has: {', '.join(form.keys)}")
            raise UserError(f"--map-keys: '{key}' is no key of {handler}; {hint}")
    return _read_keys(map_keys)


def _read_keys(map_keys: Mapping[str, Any]) -> dict[str, Any]:
    keys = dict(map_keys)
    tags = keys.pop("tags", None)
    for key, column in keys.items():
        if not isinstance(column, str) and (column is not None or key in _NEEDED):
            raise UserError(f"--map-keys: '{key}' must name a column, not {json.dumps(column)}")
    if tags is not None:
        known = vars(Tags())
        if (
            not isinstance(tags, dict)
            or set(tags) - set(known)
            or not all(isinstance(tag, str) for tag in tags.values())
        ):
            raise UserError(f"--map-keys: 'tags' must be an object with some of: {', '.join(known)}")
        keys["tags"] = Tags(**{**known, **tags})
    return keys
