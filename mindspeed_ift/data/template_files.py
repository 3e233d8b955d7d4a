"""A user's file of templates in, a template out: YAML or JSON in the form of MindSpeed-LLM's templates.json.

Top level: a list of rows with a ``name`` each, or a mapping of names to rows. A row has LLaMA-Factory's fields::

    - name: mine
      format_user: {slots: ["<user>{{content}}<bot>"]}     # or just the list, or just the text
      format_assistant: {slots: ["{{content}}", ["eos_token"]]}
      format_prefix: {slots: [["bos_token"], {token: "[gMASK]"}]}
      default_system: You are a pirate.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.templates import SLOT, NamedToken, Piece, Rules, Template, Token
from mindspeed_ift.data.tool_formats import ACTION_0_9, TOOL_FORMATS, ToolFormat

Row = dict[str, Any]

_FORMATS = (
    "format_user",
    "format_assistant",
    "format_system",
    "format_function",
    "format_observation",
    "format_tools",
    "format_separator",
    "format_prefix",
)
_TEXT_LISTS = ("stop_words", "thought_words")
_SWITCHES = ("efficient_eos", "replace_eos")
_WITHOUT_EFFECT = ("force_system", "replace_jinja_template")
"""MindSpeed-LLM reads the first and never uses it; the second is about LLaMA-Factory's tokenizer."""
_FIELDS = {"name", "default_system", "template_class", *_FORMATS, *_TEXT_LISTS, *_SWITCHES, *_WITHOUT_EFFECT}

_CLASSES: dict[str, tuple[Rules, bool, bool]] = {
    "Template": (Rules.LLAMA_FACTORY_0_8, False, False),
    "Llama2Template": (Rules.LLAMA_FACTORY_0_8, True, False),
    "LFDefaultTemplate": (Rules.LLAMA_FACTORY_0_9, False, False),
    "ReasoningTemplate": (Rules.LLAMA_FACTORY_0_9, False, True),
}
"""``template_class`` -> rules, system prompt within the first prompt, thinking."""

_SLOT_NAMES = {
    "format_user": {"content", "idx"},
    "format_assistant": {"content"},
    "format_system": {"content"},
    "format_observation": {"content", "idx"},
    "format_function": {"content", "name", "arguments"},
    "format_separator": set(),
    "format_prefix": set(),
}


def read_rows(path: str | Path) -> dict[str, Row]:
    """The rows of a file by name, not yet looked into.

    Raises:
        UserError: The file cannot be read, or is no list or mapping of rows.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text) if str(path).endswith(".json") else yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"--prompt-type-path {path} cannot be read ({error.strerror}); give a file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt-type-path {path} is not UTF-8 ({error.reason}); save it so") from None
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--prompt-type-path {path} is not JSON or YAML ({reason}); mend it") from None
    if isinstance(content, dict):
        content = [{"name": name, **row} if isinstance(row, dict) else row for name, row in content.items()]
    if not isinstance(content, list) or not content:
        raise UserError(f"--prompt-type-path {path} must hold a list of templates, or a mapping of names to templates")
    rows: dict[str, Row] = {}
    for number, row in enumerate(content, 1):
        name = row.get("name") if isinstance(row, dict) else None
        if not isinstance(name, str) or not name:
            raise UserError(f"{path}: template {number} is no mapping with a name; give it one")
        if name in rows:
            raise UserError(f"{path}: two templates are called {name}; rename one")
        rows[name] = row
    return rows


def template_of(row: Row, path: str | Path) -> Template:
    """The template of one row.

    Args:
        row: As `read_rows` returns it.
        path: For messages.

    Raises:
        UserError: A field is unknown or of the wrong kind, a slot is missing; names file, template and field.
    """
    where = f"{path}: template {row['name']}"
    unknown = sorted(map(str, row.keys() - _FIELDS))
    if unknown:
        raise UserError(f"{where}: field {unknown[0]} is not known; known are {', '.join(sorted(_FIELDS))}")
    rules, system_in_user, thinking = _class(row, where)
    later = rules is Rules.LLAMA_FACTORY_0_9
    switches = {field: _switch(row.get(field, False), f"{where}: {field}") for field in _SWITCHES}
    stop_words, thought = (_texts(row.get(field), f"{where}: {field}") for field in _TEXT_LISTS)
    if switches["replace_eos"] and not stop_words:
        raise UserError(f"{where}: replace_eos needs stop_words, the first of which takes the place of eos")
    if len(thought) not in (0, 2):
        raise UserError(f"{where}: thought_words must be two texts, the opening and the closing of a thought")
    pieces = _all_pieces(row, where, later, closing=() if switches["efficient_eos"] else (Token.END,))
    responses = any(isinstance(piece, str) and "<tool_response>" in piece for piece in pieces["observation"])
    return Template(
        name=row["name"],
        **pieces,
        observation_join="\n</tool_response>\n<tool_response>\n" if responses else "\n",
        default_system=_system(row.get("default_system"), where),
        stop_words=stop_words,
        tools=_tools(row, later, where),
        rules=rules,
        thought=(thought[0], thought[1]) if thought else Template.thought,
        thinking=thinking,
        system_in_user=system_in_user,
        **switches,
    )


def _all_pieces(row: Row, where: str, later: bool, closing: tuple[Piece, ...]) -> dict[str, tuple[Piece, ...]]:
    """What the row says and, where it is silent, what LLaMA-Factory takes."""
    given = {field: _pieces(row[field], f"{where}: {field}", field) for field in _SLOT_NAMES if row.get(field)}
    user = given.get("format_user", (SLOT,))
    assistant = given.get("format_assistant", (SLOT, *closing))
    call = assistant if later else ("Action: {{name}}\nAction Input: {{arguments}}\n", *closing)
    # MindSpeed-LLM's class for later LLaMA-Factory overlooks the separator that its qwen_lf states.
    separator = () if row.get("template_class") == "LFDefaultTemplate" else given.get("format_separator", ())
    return {
        "user": user,
        "observation": given.get("format_observation", user),
        "assistant": assistant,
        "function": given.get("format_function", call),
        "system": given.get("format_system", (SLOT,)),
        "separator": separator,
        "prefix": given.get("format_prefix", ()),
    }


def _class(row: Row, where: str) -> tuple[Rules, bool, bool]:
    name = row.get("template_class") or "Template"
    if name not in _CLASSES:
        raise UserError(
            f"{where}: template_class {name} is not one of {', '.join(_CLASSES)}; for what needs a program, take"
            " --prompt-type hf with the model's own tokenizer"
        )
    return _CLASSES[name]


def _pieces(value: Any, where: str, field: str) -> tuple[Piece, ...]:
    slots = value.get("slots") if isinstance(value, dict) else value
    slots = [slots] if isinstance(slots, str) else slots
    if not isinstance(slots, list) or not slots:
        raise UserError(f'{where} needs "slots", a list of texts, ["bos_token"], ["eos_token"] and {{"token": ...}}')
    pieces = tuple(_piece(slot, where) for slot in slots)
    _check_slots("".join(piece for piece in pieces if isinstance(piece, str)), where, field)
    return pieces


def _check_slots(text: str, where: str, field: str) -> None:
    known = _SLOT_NAMES[field]
    found = re.findall(r"\{\{([a-zA-Z_]\w*)\}\}", text)
    wrong = [name for name in found if name not in known]
    if wrong:
        raise UserError(f"{where}: no slot {{{{{wrong[0]}}}}} there; known are: {', '.join(sorted(known)) or 'none'}")
    whole = found.count("content") == 1 or {"name", "arguments"} <= set(found)
    if known and not whole:
        raise UserError(f"{where} must have the slot {SLOT} once, where the message goes")


def _piece(slot: Any, where: str) -> Piece:
    if isinstance(slot, str):
        return slot
    if isinstance(slot, list) and len(slot) == 1 and slot[0] in [token.value for token in Token]:
        return Token(slot[0])
    if isinstance(slot, dict) and list(slot) == ["token"] and isinstance(slot["token"], str):
        return NamedToken(slot["token"])
    raise UserError(f'{where}: {json.dumps(slot)} is no text, ["bos_token"], ["eos_token"] or {{"token": TEXT}}')


def _tools(row: Row, later: bool, where: str) -> ToolFormat:
    """The form that describes tools is stated by format_tools, that of calls by format_function."""
    forms = []
    for field in ("format_tools", "format_function"):
        value = row.get(field)
        name = value.get("tool_format") if isinstance(value, dict) else None
        # MindSpeed-LLM's formatter for Qwen3 knows the form under the model's name.
        name = {None: "default", "qwen3": "qwen"}.get(name, name)
        if name not in TOOL_FORMATS:
            raise UserError(f"{where}: {field}: tool_format {name} is not one of {', '.join(TOOL_FORMATS)}")
        forms.append(ACTION_0_9 if name == "default" and later else TOOL_FORMATS[name])
    return replace(forms[0], write_calls=forms[1].write_calls)


def _system(value: Any, where: str) -> str:
    texts = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: default_system must be a text, or a list of texts to join")
    return "".join(texts)


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise UserError(f"{where} must be a list of texts")
    return tuple(value)


def _switch(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{where} must be true or false, not {value!r}")
    return value
