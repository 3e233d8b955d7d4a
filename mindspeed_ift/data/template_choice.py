"""The name of a template in, the template and its encoder out: from the table, a user's file or the tokenizer."""

from __future__ import annotations

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError, nearest
from mindspeed_ift.data.encode import EncodeOptions, Encoder
from mindspeed_ift.data.handlers import HANDLERS, own_template
from mindspeed_ift.data.hf_template import CHAT_TEMPLATE, ChatTemplateEncoder
from mindspeed_ift.data.hunyuan_template import HUNYUAN, HunyuanEncoder
from mindspeed_ift.data.template_files import Row, read_rows, template_of
from mindspeed_ift.data.template_fingerprint import fingerprint
from mindspeed_ift.data.template_table import TEMPLATES
from mindspeed_ift.data.templates import Template
from mindspeed_ift.data.tokenizer import Tokenizer
from mindspeed_ift.data.whole_text import EACH_ANSWER, STEPS, EachAnswerEncoder, WholeTextEncoder

_OF_HANDLERS = {handler.template.name: handler.template for handler in HANDLERS.values() if handler.template}
"""Name -> template of handlers with a prompt of their own."""

_KINDS: tuple[tuple[Template, type[Encoder]], ...] = (
    (CHAT_TEMPLATE, ChatTemplateEncoder),
    (HUNYUAN, HunyuanEncoder),
    (STEPS, WholeTextEncoder),
    (EACH_ANSWER, EachAnswerEncoder),
)
"""Templates that need an encoder of their own."""


def find_row(name: str, path: str | None) -> Row | None:
    """The row of a user's file that describes a template; None without a file.

    Args:
        name: ``--prompt-type``.
        path: ``--prompt-type-path``.

    Raises:
        UserError: The file has none of that name, or cannot be used.
    """
    if not path:
        return None
    rows = read_rows(path)
    if name in rows:
        return rows[name]
    remedy = "it is built in: leave --prompt-type-path out" if name in TEMPLATES else _hint(name, list(rows))
    raise UserError(f"--prompt-type {name} is no template of {path}; {remedy}")


def template_for(config: PreprocessConfig) -> tuple[Template, Row | None]:
    """The template that a preparation writes, and its row of a user's file; None for one that is built in.

    Raises:
        UserError: See `find_row` and `get_template`.
    """
    own = own_template(config.handler_name)
    if own is not None:
        return own, None
    row = find_row(config.prompt_type, config.prompt_type_path)
    return get_template(config.prompt_type, row, config.prompt_type_path), row


def get_template(name: str, row: Row | None = None, where: str = "") -> Template:
    """The template called ``name``.

    Args:
        name: ``--prompt-type``.
        row: Describes it, from a user's file; None takes a built-in one.
        where: The row comes from, for messages.

    Raises:
        UserError: There is none, with the nearest name; or the row cannot be used.
    """
    if row is not None:
        return template_of(row, where)
    known = {**TEMPLATES, CHAT_TEMPLATE.name: CHAT_TEMPLATE}
    found = known.get(name) or _OF_HANDLERS.get(name)
    if found is not None:
        return found
    raise UserError(f"--prompt-type {name} is not a template; {_hint(name, list(known))}")


def make_encoder(template: Template, tokenizer: Tokenizer, options: EncodeOptions) -> Encoder:
    """The encoder for a template: of rows, or of the tokenizer's own chat template.

    Raises:
        UserError: The tokenizer or the options do not go with the template.
    """
    for known, kind in _KINDS:
        if template is known:
            return kind(template, tokenizer, options)
    return Encoder(template, tokenizer, options)


def definition(template: Template) -> str | None:
    """`Encoder.fingerprint` as far as it can be told without a tokenizer: None where the tokenizer's chat template writes."""
    return None if template is CHAT_TEMPLATE or template is HUNYUAN else fingerprint(template)


def check_definition(found: str | None, recorded: str | None, name: str, where: str) -> None:
    """Refuse a template that is not the one that data or a checkpoint was made with.

    Args:
        found: `Encoder.fingerprint` of the template now known under the name; None where it cannot be told.
        recorded: That of then; None where nobody recorded it.
        name: Of the template.
        where: What was made with it.

    Raises:
        UserError: They differ.
    """
    if found and recorded and found != recorded:
        raise UserError(
            f"{where} was made with another definition of --prompt-type {name} (sha256 {recorded[:12]}) than the one"
            f" known now ({found[:12]}); give --prompt-type-path with the file that holds the one of then, or prepare the"
            " data again"
        )


def _hint(name: str, names: list[str]) -> str:
    return nearest(name, names, f"give one of: {', '.join(names)}")
