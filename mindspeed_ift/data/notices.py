"""What the user of data preparation should know: lines about flags, columns and templates that may not be meant so."""

from __future__ import annotations

from collections.abc import Iterator

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.data.formats import OPTIONAL_COLUMNS, AutoFormat, Format
from mindspeed_ift.data.handlers import KEEPERS, own_template
from mindspeed_ift.data.ledger import Ledger
from mindspeed_ift.data.rollout_formats import RolloutFormat
from mindspeed_ift.data.template_choice import definition
from mindspeed_ift.data.template_table import TEMPLATES
from mindspeed_ift.data.templates import Template, TokenId
from mindspeed_ift.data.text_formats import MadeTextFormat, TextFormat
from mindspeed_ift.data.tokenizer import Tokenizer


def notices(
    config: PreprocessConfig, template: Template, tokenizer: Tokenizer, form: Format, ledger: Ledger
) -> Iterator[str]:
    """Lines about a run.

    Args:
        config: The flags.
        template: How conversations were written.
        tokenizer: Text -> ids.
        form: How records were read.
        ledger: The account of the records.
    """
    if isinstance(form, TextFormat):
        for flag in ("map_keys", "mask_history", "mask_thoughts", "train_on_prompt", "drop_thinking"):
            if getattr(config, flag):
                yield f"--{flag.replace('_', '-')} changes nothing: plain text is learnt whole"
        if config.cutoff_len is not None and config.overlong is None:
            yield "--cutoff-len changes nothing: plain text is cut by --overlong truncate, parted by --overlong split"
        if config.prompt_type != "qwen":
            yield f"--prompt-type {config.prompt_type} changes nothing: plain text is written by no template"
        if config.pad_to_multiple_of > 1:
            yield (
                "pads have the id after the last token (as in MindSpeed-LLM): the model's padded vocabulary must reach"
                " beyond it"
            )
    else:
        yield from _about_template(template, tokenizer, config.prompt_type_path)
        yield from _about_records(config, form, ledger)
        yield from _about_own_prompt(config, template, tokenizer)
        if config.json_keys != ("text",):
            yield (
                f"--json-keys {' '.join(config.json_keys)} changes nothing: the records are not read as plain text;"
                " --handler-name GeneralPretrainHandler would"
            )
    if isinstance(form, MadeTextFormat) and config.json_keys != ("text",):
        yield f"--json-keys changes nothing: {config.handler_name} makes one text of its columns"
    if config.enable_thinking != "none" and not template.thinking:
        yield f"--enable-thinking {config.enable_thinking} changes nothing: --prompt-type {template.name} never thinks"


def _about_template(template: Template, tokenizer: Tokenizer, path: str) -> Iterator[str]:
    built_in = TEMPLATES.get(template.name)
    if path and built_in is not None and definition(built_in) != definition(template):
        yield f"{path} has another {template.name} than the one built in under that name; the file's is used"
    missing = [token for token in template.stop_words if tokenizer.token_id(token) is None]
    if missing:
        yield (
            f"the tokenizer has no {', '.join(missing)}, with which --prompt-type {template.name} ends turns: added as"
            f" new ids from {tokenizer.vocab_size} on, which the model has never seen; is it the right template?"
        )


def _about_own_prompt(config: PreprocessConfig, template: Template, tokenizer: Tokenizer) -> Iterator[str]:
    own = own_template(config.handler_name) is not None
    if own and config.prompt_type not in ("qwen", template.name):
        yield f"--prompt-type {config.prompt_type} changes nothing: {config.handler_name} writes a prompt of its own"
    if own and config.prompt_type_path:
        yield f"--prompt-type-path changes nothing: {config.handler_name} writes a prompt of its own"
    marks = [piece.number for piece in template.user if isinstance(piece, TokenId)]
    texts = [tokenizer.decode([number]) for number in marks]
    if marks and not all(text.startswith("<reserved_") for text in texts):
        yield (
            f"{config.handler_name} marks who speaks with the ids {' and '.join(map(str, marks))} (as in MindSpeed-LLM):"
            f" Baichuan's marks, but ordinary tokens of this tokenizer ({', '.join(map(repr, texts))});"
            " MOSSInstructionHandler reads the same records without them"
        )


def _about_records(config: PreprocessConfig, form: Format, ledger: Ledger) -> Iterator[str]:
    ignored = [column for column in OPTIONAL_COLUMNS if column in ledger.filled - form.columns()]
    if ignored and not isinstance(form, AutoFormat):
        yield (
            f"columns not used: {', '.join(ignored)} (as MindSpeed-LLM does; name them with --map-keys, or give"
            " --handler-name auto, to use them)"
        )
    for flag, given in (("--append-eod", config.append_eod), ("--train-on-prompt", config.train_on_prompt)):
        if given and form.makes_pairs:
            yield f"{flag} changes nothing: of preference pairs the answers alone are learnt (as in MindSpeed-LLM)"
        if given and isinstance(form, RolloutFormat):
            yield f"{flag} changes nothing: of {form.title} nothing is learnt (as in MindSpeed-LLM)"
    if config.dataset_additional_keys and config.handler_name not in KEEPERS:
        yield f"--dataset-additional-keys changes nothing: {' and '.join(KEEPERS)} keep columns"
