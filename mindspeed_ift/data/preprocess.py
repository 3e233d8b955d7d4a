"""Files of records in, an indexed dataset out: the whole offline pipeline, and what it did.

`preprocess` is the place to start reading: look at the first records, encode all of them (workers.py) and take them in
(intake.py), put them into documents as they are or packed, publish the files with ledger and manifest.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mindspeed_ift
from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import RunError, UserError
from mindspeed_ift.data.certify import certify_first
from mindspeed_ift.data.encode import SAMPLE_COLUMNS, Encoder
from mindspeed_ift.data.encode_pairs import PAIR_COLUMNS
from mindspeed_ift.data.formats import (
    PEEKED,
    AutoFormat,
    Format,
    make_format,
)
from mindspeed_ift.data.handlers import check_handler
from mindspeed_ift.data.hub import load_hub_dataset, read_parameters
from mindspeed_ift.data.indexed import WEIGHTS, DatasetWriter, IndexedColumn, column_path
from mindspeed_ift.data.inputs import find_datasets
from mindspeed_ift.data.intake import InputMarks, Intake, fingerprint
from mindspeed_ift.data.ledger import Ledger
from mindspeed_ift.data.ledger_file import ledger_path
from mindspeed_ift.data.mixing import Mixture, read_datasets
from mindspeed_ift.data.modes import encode_options
from mindspeed_ift.data.notices import notices
from mindspeed_ift.data.packed_rows import write_packed
from mindspeed_ift.data.progress import Progress, Show, SpaceWatch
from mindspeed_ift.data.records import Origin, Readable, Record
from mindspeed_ift.data.rollout_formats import RolloutFormat
from mindspeed_ift.data.shards import Share, Shares, ShareWriter, check_sources
from mindspeed_ift.data.staging import Mark, Staging, report_write_errors
from mindspeed_ift.data.template_certificate import KEY as CERTIFICATE
from mindspeed_ift.data.template_certificate import told
from mindspeed_ift.data.template_choice import make_encoder, template_for
from mindspeed_ift.data.templates import Template
from mindspeed_ift.data.text_formats import TextFormat
from mindspeed_ift.data.tokenizer import Tokenizer, load_tokenizer
from mindspeed_ift.data.workers import Job, WorkerPool

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


@dataclass(frozen=True)
class _Run:
    """What is asked for and who hears of it; and what is to be done, found out before anything is written."""

    config: PreprocessConfig
    report: Callable[[str], None]
    show: Show | None
    inputs: str
    sources: list[Readable]
    mixture: Mixture[tuple[Record, Origin]]
    first: list[tuple[Record, Origin]]
    records: Iterator[tuple[Record, Origin]]
    template: Template
    tokenizer: Tokenizer
    encoder: Encoder | None
    pool: WorkerPool
    job: Job
    token_facts: dict[str, Any]
    marks: InputMarks

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Waits until all of the input has been read."""
        return fingerprint(self.config, self.marks, self.token_facts)

    def progress(self, ledger: Ledger) -> Progress:
        return Progress(ledger, self.sources, self.config.log_interval, self.report, self.show)


def preprocess(config: PreprocessConfig, report: Callable[[str], None] = print, show: Show | None = None) -> Summary:
    """Make the dataset that ``config`` asks for.

    Args:
        config: Input, output, template, lengths, mode.
        report: Takes progress lines.
        show: Takes how far it is, several times a second, instead of lines that say so.

    Raises:
        UserError: Input, columns, tokenizer or flags cannot be used, too many records are malformed, or none is left;
        nothing has been written then. RunError: The disk is full or a worker died; the same command goes on from
        what was finished, if anything was.
    """
    started = time.monotonic()
    run = _prepare(config, report, show)
    if config.num_shards > 1:
        check_sources(run.sources)
    if config.shard_index is not None:
        return _encode_share(run)
    shares = Shares(config.output_prefix, config.num_shards, run.fingerprint) if config.merge_shards else None
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(Staging(config.output_prefix))
        waits = place
        aside = Path(config.cache_dir) / os.path.basename(config.output_prefix)
        if config.pack and config.cache_dir and aside.resolve() != Path(config.output_prefix).resolve():
            waits = stack.enter_context(Staging(aside, "--cache-dir"))
        stack.enter_context(_say_how_to_go_on(waits, report))
        grow = functools.partial(Intake, waits, functools.partial(_writer, config, run.job.form, waits))
        intake = waits.go_on(lambda: run.fingerprint, grow, report)
        stack.callback(intake.close)
        _take_in(run, intake, shares)
        _check(run, intake.ledger)
        intake.save(run.fingerprint)
        manifest = _publish(run, intake, place)
    return Summary(intake.ledger, manifest, tuple(_notices(run, shares, intake.ledger)), time.monotonic() - started)


def _prepare(config: PreprocessConfig, report: Callable[[str], None], show: Show | None) -> _Run:
    config.check()
    check_handler(config.handler_name)
    template, row = template_for(config)
    datasets = _datasets(config, report)
    inputs = ", ".join(name for name, _ in datasets)
    mixture = read_datasets(datasets, config)
    tokenizer = load_tokenizer(config.tokenizer_name_or_path, config.trust_remote_code)
    workers = 1 if config.merge_shards else config.workers
    pool = WorkerPool(tokenizer, workers, config.tokenizer_backend, report)
    first, records = _peek(iter(mixture), inputs)
    form = make_format(
        config.handler_name,
        config.mapped_keys(),
        config.json_keys,
        [record for record, _ in first],
        inputs,
        config.dataset_additional_keys,
    )
    if isinstance(form, AutoFormat | TextFormat) and form.seen:
        report(form.seen)
    _check_mode(form, config)
    options = encode_options(config, template, form.makes_pairs)
    job = Job(form, template.name, row, options, config.pad_to_multiple_of)
    sources = [source for _, found in datasets for source in found]
    encoder = None if isinstance(form, TextFormat) else make_encoder(template, tokenizer, options)
    return _Run(
        config,
        report,
        show,
        inputs,
        sources,
        mixture,
        first,
        records,
        template,
        tokenizer,
        encoder,
        pool,
        job,
        _token_facts(encoder, tokenizer, job),
        InputMarks(sources),
    )


def _take_in(run: _Run, intake: Intake, shares: Shares | None) -> None:
    """Encode the records that an earlier run has not, or take them from the shares, and tell how far it is."""
    tell, watch = run.progress(intake.ledger), SpaceWatch(intake.staging.folder, run.report)
    before = intake.ledger.read
    records = itertools.islice(run.records, before, None)
    for chunk in run.pool.encode_all(run.job, records) if shares is None else shares.chunks(before):
        intake.add(chunk)
        tell(chunk.ledger.entries)
        if intake.staging.is_due and run.marks.known:
            intake.save(run.fingerprint)
            watch(intake.writer.bytes_written, tell.standing().part)


def _encode_share(run: _Run) -> Summary:
    """Encode one of --num-shards and leave it beside the dataset that will be."""
    config = run.config
    assert config.shard_index is not None
    started = time.monotonic()
    share = Share(config.shard_index, config.num_shards)
    prefix = share.prefix(config.output_prefix)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(Staging(prefix))
        stack.enter_context(_say_how_to_go_on(place, run.report))
        writer = place.go_on(lambda: run.fingerprint, functools.partial(ShareWriter, prefix, place), run.report)
        stack.callback(writer.close)
        tell = run.progress(writer.ledger)
        for chunk in run.pool.encode_all(run.job, share.deal_out(run.records, writer.done)):
            writer.add(chunk)
            tell(chunk.ledger.entries)
            if place.is_due:
                writer.save(run.fingerprint)
        files = writer.commit(run.fingerprint, list(run.mixture.notices()))
    ledger = writer.ledger
    counts = {"samples": ledger.kept, "tokens": ledger.tokens, "learnt_tokens": ledger.learnt_tokens}
    notice = (
        f"shard {share.index} of {share.count} is encoded; when all are, run the same command with --merge-shards instead"
        f" of --shard-index {share.index}"
    )
    return Summary(ledger, {**counts, "files": files}, (notice,), time.monotonic() - started)


def _publish(run: _Run, intake: Intake, place: Staging) -> dict[str, Any]:
    """Put the samples into documents, as they are or packed, and give the files their names; the manifest."""
    config, ledger, writer = run.config, intake.ledger, intake.writer
    counts: dict[str, Any] = {
        "samples": ledger.kept,
        "conversations": 0 if isinstance(run.job.form, TextFormat) else ledger.kept,
        "tokens": ledger.tokens,
        "learnt_tokens": ledger.learnt_tokens,
    }
    places = None
    if config.pack:
        writer.finish()
        stored = {name: IndexedColumn(column.aside) for name, column in writer.columns.items()}
        columns = (*COLUMNS, *(name for name in stored if name == WEIGHTS))
        writer = DatasetWriter(config.output_prefix, columns, staging=place)
        packed, places = write_packed(writer, stored, config, run.tokenizer.pad_id, run.report)
        counts |= packed
    ledger_file = place.folder / ledger_path(config.output_prefix).name
    with report_write_errors(ledger_file):
        beside = {ledger_file.name: intake.rows.write_parquet(ledger_file, places)}
    certificate = certify_first(run.encoder, run.tokenizer, run.job.form, run.first)
    run.report(told(certificate))
    facts = {**_facts(config), "input": run.marks.wait(), **run.token_facts, CERTIFICATE: certificate, **counts}
    return writer.commit({**facts, "columns": list(writer.columns), "ledger": ledger.as_dict()}, beside)


def _writer(config: PreprocessConfig, form: Format, waits: Staging, marks: Mapping[str, Mark] | None) -> DatasetWriter:
    """Of the samples as they are encoded: the dataset itself, or what will be packed."""
    if isinstance(form, TextFormat):
        return DatasetWriter(config.output_prefix, form.json_keys, packed_name=False, staging=waits, marks=marks)
    if form.makes_pairs:
        return DatasetWriter(config.output_prefix, PAIR_COLUMNS, staging=waits, marks=marks)
    if isinstance(form, RolloutFormat):
        columns = ("input_ids", "attention_mask", *form.kept)
        return DatasetWriter(config.output_prefix, columns, staging=waits, marks=marks)
    prefix, columns = config.output_prefix, COLUMNS
    if config.pack:
        prefix, columns = f"{prefix}.samples", SAMPLE_COLUMNS
    if f"{os.path.basename(column_path(prefix, WEIGHTS))}.bin" in (marks or {}):
        columns = (*columns, WEIGHTS)
    return DatasetWriter(prefix, columns, staging=waits, marks=marks)


@contextlib.contextmanager
def _say_how_to_go_on(waits: Staging, report: Callable[[str], None]) -> Iterator[None]:
    hint = f"the same command goes on from what is finished in {waits.folder}"
    try:
        yield
    except RunError as error:
        raise RunError(f"{error}; {hint}" if waits.holds_progress else str(error)) from error
    except KeyboardInterrupt:
        if waits.holds_progress:
            report(hint)
        raise


def _datasets(config: PreprocessConfig, report: Callable[[str], None]) -> list[tuple[str, list[Readable]]]:
    if not config.hf_datasets_params:
        return find_datasets(config.input)
    dataset = load_hub_dataset(read_parameters(config.hf_datasets_params), config.cache_dir)
    if config.input:
        report(f"--hf-datasets-params names {dataset}; --input is not read (as in MindSpeed-LLM)")
    return [(dataset.name, [dataset])]


def _peek(
    records: Iterator[tuple[Record, Origin]], inputs: str
) -> tuple[list[tuple[Record, Origin]], Iterator[tuple[Record, Origin]]]:
    """The first records, and all of them."""
    peeked = list(itertools.islice(records, PEEKED))
    if not peeked:
        raise UserError(f"no records in {inputs}; give --input a file that holds some")
    return peeked, itertools.chain(peeked, records)


def _check_mode(form: Format, config: PreprocessConfig) -> None:
    whole = isinstance(form, RolloutFormat) or form.makes_pairs
    kind = "preference pairs" if form.makes_pairs else form.title if whole or isinstance(form, TextFormat) else ""
    if kind and config.pack:
        raise UserError(f"--pack is for instruction data, and these records are {kind}: leave --pack out")
    if whole and config.overlong == "split":
        raise UserError(f"--overlong split does not go with {kind}; give truncate, drop or error")
    if config.pad_to_multiple_of > 1 and not config.neat_pack and not isinstance(form, TextFormat):
        raise UserError(
            "--pad-to-multiple-of is about packed rows and plain text; add --pack --neat-pack, or leave it out"
        )


def _facts(config: PreprocessConfig) -> dict[str, Any]:
    return {
        "format": 1,
        "version": mindspeed_ift.__version__,
        "seq_length": config.seq_length,
        "pack": config.pack,
        "neat_pack": config.neat_pack,
        "append_eod": config.append_eod,
        "handler_name": config.handler_name,
        "enable_thinking": config.enable_thinking,
        "mix_strategy": config.mix_strategy,
        "interleave_probs": config.probabilities(),
        "seed": config.seed,
        "max_samples": config.max_samples,
        "flags": asdict(config),
    }


def _token_facts(encoder: Encoder | None, tokenizer: Tokenizer, job: Job) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "tokenizer": os.path.abspath(tokenizer.path),
        "tokenizer_sha256": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
    }
    if encoder is None:
        eod = tokenizer.eod_id
        facts["vocab_size"] += job.pad_to_multiple_of > 1
        return {**facts, "prompt_type": "", "eod_id": eod, "pad_id": tokenizer.pad_id, "turn_end_ids": []}
    facts.update(
        vocab_size=encoder.tokenizer.vocab_size,
        prompt_type=encoder.template.name,
        template_sha256=encoder.fingerprint,
        template_row=job.template_row,
    )
    return {**facts, "eod_id": encoder.end_id, "pad_id": tokenizer.pad_id, "turn_end_ids": encoder.turn_end_ids()}


def _check(run: _Run, ledger: Ledger) -> None:
    """Refuse a dataset that cannot be what was meant."""
    # Columns that a format reads unasked need not be there.
    named = {column for column in run.config.mapped_keys().values() if isinstance(column, str)}
    never = sorted((run.job.form.columns() & named) - ledger.columns)
    if never:
        raise UserError(
            f"column '{never[0]}' of --map-keys is in no record (they have: {', '.join(sorted(ledger.columns))});"
            " mend --map-keys"
        )
    if not ledger.kept:
        raise UserError(
            f"no sample is left of the {ledger.read} records of {run.inputs}: {ledger.reasons()}; nothing was written"
        )
    if not ledger.learnt_tokens and not isinstance(run.job.form, RolloutFormat):
        raise UserError(
            f"no token is learnt in the {ledger.kept} samples of {run.inputs}: there would be nothing to train on;"
            " give a larger --seq-length, or mend which messages count; nothing was written"
        )
    allowed = run.config.allowed_drop_fraction(ledger.read)
    if ledger.malformed > allowed * ledger.read:
        raise UserError(
            f"{ledger.malformed:,} of {ledger.read:,} records are malformed, a larger part than --max-drop-fraction"
            f" {allowed:g} allows: {ledger.reasons()}; mend them or raise it; nothing was written"
        )


def _notices(run: _Run, shares: Shares | None, ledger: Ledger) -> Iterator[str]:
    yield from shares.notices if shares is not None else run.mixture.notices()
    yield from notices(run.config, run.template, run.tokenizer, run.job.form, ledger)
