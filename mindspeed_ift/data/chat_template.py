"""A tokenizer folder in, its chat template out: writes conversations as transformers' `apply_chat_template` does.

Rendered with jinja2 itself: transformers has the same few lines around it and takes seconds to import.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Environment, Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mindspeed_ift.config.errors import UserError, first_line

_DEFAULT, _WITH_TOOLS = "default", "tool_use"
"""Names of the templates of a folder that has several: one may be for conversations with tools."""

Span = tuple[int, int]


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        source: As the folder has it: one template, or several by name.
        special_tokens: ``bos_token`` and the like -> text, which a template may write.
        where: The folder, for messages.
    """

    def __init__(self, source: str | dict[str, str], special_tokens: Mapping[str, str], where: Path) -> None:
        self.source = str(source)
        """What tells it from another one."""
        self._by_name = {_DEFAULT: source} if isinstance(source, str) else source
        self._special_tokens = special_tokens
        self._where = where
        # A template is compiled once, when it is first needed.
        self._compiled = cache(self._compile)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        generation_prompt: bool = False,
        **options: Any,
    ) -> tuple[str, list[Span]]:
        """What the template writes, and where in it its own marks (``{% generation %}``) say that answers stand.

        Args:
            messages: Each with ``role`` and ``content``.
            tools: Descriptions as JSON schema.
            generation_prompt: Go on to where the model answers.
            options: Further variables of the template (``enable_thinking``, say).

        Raises:
            UserError: The template itself cannot be used.
            jinja2.TemplateError, TypeError, ValueError, KeyError: It refuses the conversation.
        """
        template = self._compiled(_WITH_TOOLS if tools is not None and _WITH_TOOLS in self._by_name else _DEFAULT)
        marks = template.environment.extensions[_Marks.identifier]
        assert isinstance(marks, _Marks)
        marks.length, marks.spans = 0, []
        blocks = []
        variables = {**self._special_tokens, "messages": messages, "tools": tools, "documents": None, **options}
        for block in template.generate(variables, add_generation_prompt=generation_prompt):
            blocks.append(block)
            marks.length += len(block)
        return "".join(blocks), marks.spans

    def _compile(self, name: str) -> Template:
        source = self._by_name.get(name)
        if source is None:
            raise UserError(f"tokenizer {self._where} has no chat template called {name}; copy the tokenizer again")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Marks, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_raise, strftime_now=lambda form: datetime.now().strftime(form))
        try:
            return environment.from_string(source)
        except TemplateSyntaxError as error:
            raise UserError(
                f"the chat template of tokenizer {self._where} cannot be read (line {error.lineno}: {first_line(error)});"
                " copy the tokenizer again"
            ) from error


def read_chat_template(
    folder: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """The chat template of a tokenizer folder, or None: from its own file or files, else from the configuration.

    Args:
        folder: Of the tokenizer.
        config: What its tokenizer_config.json holds.
        special_tokens: See `ChatTemplate`.
    """
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files[_DEFAULT] = folder / "chat_template.jinja"
    source = config.get("chat_template")
    if files:
        source = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
        source = source[_DEFAULT] if list(source) == [_DEFAULT] else source
    elif isinstance(source, list):
        source = {one["name"]: one["template"] for one in source}
    return ChatTemplate(source, special_tokens, folder) if source else None


class _Marks(Extension):
    """Notes where ``{% generation %}`` ... ``{% endgeneration %}`` stands in what is written."""

    tags = {"generation"}

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.length = 0
        """Characters written before the block that is now being written."""
        self.spans: list[Span] = []

    def parse(self, parser: Parser) -> nodes.Node:
        """The marks as a call of `_note` around what stands between them."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

    def _note(self, caller: Macro) -> str:
        text = caller()
        if text:
            self.spans.append((self.length, self.length + len(text)))
        return text


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers' own, in place of jinja's, which escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
