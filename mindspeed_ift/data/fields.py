"""Values of a record in, text out; what is no text is a reason to drop the record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mindspeed_ift.data.conversation import DropRecord, parse_json

Record = Mapping[str, Any]


def text_of(value: Any, what: str) -> str:
    """A text, None as an empty one.

    Args:
        value: As the file has it.
        what: Names it in the reason.

    Raises:
        DropRecord: It is no text.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DropRecord(f"{what} is not text")
    return value


def optional(record: Mapping[Any, Any], column: str | None) -> str:
    """The text of a column; "" where it is missing, null, or no column is read.

    Raises:
        DropRecord: It is no text.
    """
    return text_of(record.get(column), f"'{column}'") if column else ""


def needed(record: Mapping[Any, Any], column: str | None) -> str:
    """The text of a column that must be there.

    Raises:
        DropRecord: It is missing, null or no text.
    """
    value = record.get(column)
    if value is None:
        raise DropRecord(f"'{column}' is missing or null")
    return text_of(value, f"'{column}'")


def json_text_of(value: Any, what: str) -> str:
    """JSON as text: text as it is, lists and objects written; "" for what is empty.

    Raises:
        DropRecord: It cannot be written.
    """
    if not value or isinstance(value, str):
        return value or ""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise DropRecord(f"{what} cannot be written as JSON") from None


def unwrapped(value: Any) -> Any:
    """The list that a text is the JSON of, as csv and many parquet files hold it; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return parse_json(value, "")
    except DropRecord:
        return value


def messages_in(value: Any, column: str) -> list[Record]:
    """The messages that a column holds.

    Raises:
        DropRecord: It holds something else.
    """
    messages = unwrapped(value)
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise DropRecord(f"'{column}' is not a list of messages")
    return list(messages)


def weight_of(message: Record) -> float | None:
    """What a message says of its share in the loss: ``loss`` (true, false), ``weight`` or ``loss_weight`` (from 0 on).

    Returns:
        None where it says nothing.

    Raises:
        DropRecord: It says what cannot be.
    """
    found = [message[name] for name in ("loss", "weight", "loss_weight") if message.get(name) is not None]
    weight = None
    for value in found:
        if not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise DropRecord("the loss or weight of a message is neither true, false nor a number from 0 on")
        weight = float(value) * (1.0 if weight is None else weight)
    return weight
