"""Files of records in, an indexed dataset out: the whole offline pipeline, and what it did.

`preprocess` is the place to start reading: look at the first record, encode all of them (workers.py), put them into
documents as they are or packed, publish the files with their manifest.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.encode import EncodeOptions
from mindspeed_ift.data.formats import OPTIONAL_COLUMNS, Format, TextFormat, check_handler, make_format
from mindspeed_ift.data.hub import load_hub_dataset, read_parameters
from mindspeed_ift.data.indexed import DatasetWriter
from mindspeed_ift.data.ledger import Ledger
from mindspeed_ift.data.mixing import read_datasets
from mindspeed_ift.data.packed_rows import write_packed
from mindspeed_ift.data.records import Origin, Readable, Record, find_datasets
from mindspeed_ift.data.sample import IGNORED_LABEL
from mindspeed_ift.data.template_choice import definition, find_row, get_template, make_encoder
from mindspeed_ift.data.template_table import TEMPLATES
from mindspeed_ift.data.templates import Template
from mindspeed_ift.data.tokenizer import Tokenizer, load_tokenizer
from mindspeed_ift.data.workers import EncodedChunk, Job, WorkerPool

COLUMNS = ("input_ids", "attention_mask", "labels")


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        ledger: The account of the records.
        manifest: As written, ``files`` included.
        notices: What the user should know, a line each.
        seconds: Wall time.
    """

    ledger: Ledger
    manifest: dict[str, Any]
    notices: tuple[str, ...]
    seconds: float


def preprocess(config: PreprocessConfig, report: Callable[[str], None] = print) -> Summary:
    """Make the dataset that ``config`` asks for.

    Args:
        config: Input, output, template, lengths, mode.
        report: Takes progress lines.

    Raises:
        UserError: Input, columns, tokenizer or flags cannot be used, or no record is left; nothing has been written
        then. RunError: The disk is full or a worker died; what was written is removed.
    """
    started = time.monotonic()
    config.check()
    check_handler(config.handler_name)
    row = find_row(config.prompt_type, config.prompt_type_path)
    template = get_template(config.prompt_type, row, config.prompt_type_path)
    datasets = _datasets(config, report)
    inputs = ", ".join(name for name, _ in datasets)
    mixture = read_datasets(datasets, config)
    tokenizer = load_tokenizer(config.tokenizer_name_or_path, config.trust_remote_code)
    pool = WorkerPool(tokenizer, config.workers)
    first, records = _peek(iter(mixture), inputs)
    form = make_format(config.handler_name, config.mapped_keys(), config.json_keys, first[0], first[1].file)
    job = Job(form, template.name, row, encode_options(config, template))
    ledger = Ledger()
    chunks = _counted(pool.encode_all(job, records), ledger, config.log_interval, report)
    facts = {**_facts(config, datasets), **_token_facts(template, tokenizer, config.tokenizer_name_or_path, job)}
    is_text = isinstance(form, TextFormat)
    with DatasetWriter(config.output_prefix, form.json_keys if is_text else COLUMNS, packed_name=not is_text) as writer:
        if is_text:
            counts = _write_text(writer, chunks, form.json_keys)
        elif config.pack:
            counts = write_packed(writer, chunks, config, tokenizer.pad_id, report)
        else:
            counts = _write_samples(writer, chunks)
        _check_columns(form, ledger)
        if not ledger.kept:
            raise UserError(
                f"no sample is left of the {ledger.read} records of {inputs}: {_reasons(ledger)}; nothing was written"
            )
        manifest = writer.commit({**facts, **counts, "columns": list(writer.columns), "ledger": ledger.as_dict()})
    about_template = () if is_text else _template_notices(template, tokenizer, config.prompt_type_path)
    notices = (*mixture.notices(), *about_template, *_notices(config, template, form, ledger))
    return Summary(ledger, manifest, notices, time.monotonic() - started)


def encode_options(config: PreprocessConfig, template: Template) -> EncodeOptions:
    """Lengths and masks of a mode, by MindSpeed-LLM's rules.

    With --seq-length S, the template first cuts a conversation to S tokens (older templates) or S - 1 (later ones);
    then samples of S or more are dropped. So a sample that is too long is dropped with the older and kept, cut, with
    the later. Neat-pack cuts each turn by itself to S - 1 and the whole to S - 1, and drops nothing.
    """
    length = config.seq_length
    cutoffs = [] if config.cutoff_len is None else [config.cutoff_len]
    if length is not None:
        cutoffs.append(length - 1 if template.keeps_room_for_eod else length)
    return EncodeOptions(
        enable_thinking=config.enable_thinking,
        train_on_prompt=config.train_on_prompt,
        mask_history=config.mask_history,
        drop_thinking=config.drop_thinking,
        escape_special_tokens=config.escape_special_tokens,
        append_eod=config.append_eod,
        cutoff=min(cutoffs, default=None),
        turn_limit=length - 1 if length is not None and config.neat_pack else None,
        limit=length,
        cut_to_limit=config.neat_pack,
    )


def _datasets(config: PreprocessConfig, report: Callable[[str], None]) -> list[tuple[str, list[Readable]]]:
    if not config.hf_datasets_params:
        return find_datasets(config.input)
    dataset = load_hub_dataset(read_parameters(config.hf_datasets_params), config.cache_dir)
    if config.input:
        report(f"--hf-datasets-params names {dataset}; --input is not read (as in MindSpeed-LLM)")
    return [(dataset.name, [dataset])]


def _peek(
    records: Iterator[tuple[Record, Origin]], inputs: str
) -> tuple[tuple[Record, Origin], Iterator[tuple[Record, Origin]]]:
    first = next(records, None)
    if first is None:
        raise UserError(f"no records in {inputs}; give --input a file that holds some")
    return first, itertools.chain([first], records)


def _counted(
    chunks: Iterator[EncodedChunk], ledger: Ledger, interval: int, report: Callable[[str], None]
) -> Iterator[EncodedChunk]:
    """Pass chunks through, adding to the ledger and telling how far it is."""
    started, told = time.monotonic(), 0
    for chunk in chunks:
        ledger.merge(chunk.ledger)
        if ledger.read // interval > told:
            told = ledger.read // interval
            rate = ledger.read / max(time.monotonic() - started, 1e-9)
            report(f"{ledger.read:,} records read, {ledger.kept:,} kept, {rate:,.0f} records/s")
        yield chunk


def _write_text(writer: DatasetWriter, chunks: Iterator[EncodedChunk], keys: tuple[str, ...]) -> dict[str, int]:
    samples = tokens = 0
    for chunk in chunks:
        writer.append(chunk.values, chunk.lengths)
        samples += len(chunk.lengths[keys[0]])
        tokens += sum(len(values) for values in chunk.values.values())
    return {"samples": samples, "conversations": 0, "tokens": tokens, "learnt_tokens": tokens}


def _write_samples(writer: DatasetWriter, chunks: Iterator[EncodedChunk]) -> dict[str, int]:
    """One document a sample."""
    samples = tokens = learnt = 0
    for chunk in chunks:
        ids, labels, lengths = chunk.values["input_ids"], chunk.values["labels"], chunk.lengths["input_ids"]
        writer.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": labels}, lengths)
        samples += len(lengths)
        tokens += len(ids)
        learnt += int(np.count_nonzero(labels != IGNORED_LABEL))
    return {"samples": samples, "conversations": samples, "tokens": tokens, "learnt_tokens": learnt}


def _facts(config: PreprocessConfig, datasets: list[tuple[str, list[Readable]]]) -> dict[str, Any]:
    return {
        "format": 1,
        "seq_length": config.seq_length,
        "pack": config.pack,
        "neat_pack": config.neat_pack,
        "append_eod": config.append_eod,
        "handler_name": config.handler_name,
        "prompt_type": config.prompt_type,
        "enable_thinking": config.enable_thinking,
        "input": [str(file) for _, files in datasets for file in files],
        "mix_strategy": config.mix_strategy,
        "interleave_probs": config.probabilities(),
        "seed": config.seed,
        "max_samples": config.max_samples,
    }


def _token_facts(template: Template, tokenizer: Tokenizer, tokenizer_folder: str, job: Job) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "tokenizer": os.path.abspath(tokenizer_folder),
        "tokenizer_sha256": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
    }
    if isinstance(job.form, TextFormat):
        eod = tokenizer.eod_id
        return {**facts, "prompt_type": "", "eod_id": eod, "pad_id": tokenizer.pad_id, "turn_end_ids": []}
    encoder = make_encoder(template, tokenizer, job.options)
    facts.update(
        vocab_size=encoder.tokenizer.vocab_size, template_sha256=encoder.fingerprint, template_row=job.template_row
    )
    return {**facts, "eod_id": encoder.end_id, "pad_id": tokenizer.pad_id, "turn_end_ids": encoder.turn_end_ids()}


def _check_columns(form: Format, ledger: Ledger) -> None:
    never = sorted(form.columns() - ledger.columns - {"input"})
    if never:
        raise UserError(
            f"column '{never[0]}' of --map-keys is in no record (they have: {', '.join(sorted(ledger.columns))});"
            " mend --map-keys"
        )


def _reasons(ledger: Ledger) -> str:
    return ", ".join(f"{tally.count} {reason} (first {tally.first[0]})" for reason, tally in ledger.dropped.items())


def _template_notices(template: Template, tokenizer: Tokenizer, path: str) -> Iterator[str]:
    built_in = TEMPLATES.get(template.name)
    if path and built_in is not None and definition(built_in) != definition(template):
        yield f"{path} has another {template.name} than the one built in under that name; the file's is used"
    missing = [token for token in template.stop_words if tokenizer.token_id(token) is None]
    if missing:
        yield (
            f"the tokenizer has no {', '.join(missing)}, with which --prompt-type {template.name} ends turns: added as"
            f" new ids from {tokenizer.vocab_size} on, which the model has never seen; is it the right template?"
        )


def _notices(config: PreprocessConfig, template: Template, form: Format, ledger: Ledger) -> Iterator[str]:
    ignored = (
        []
        if isinstance(form, TextFormat)
        else [column for column in OPTIONAL_COLUMNS if column in ledger.filled and column not in form.columns()]
    )
    if ignored:
        yield (
            f"columns not used: {', '.join(ignored)} (as MindSpeed-LLM does; name them with --map-keys, or give"
            " --handler-name auto, to use them)"
        )
    if config.enable_thinking != "none" and not template.thinking:
        yield f"--enable-thinking {config.enable_thinking} changes nothing: --prompt-type {template.name} never thinks"
