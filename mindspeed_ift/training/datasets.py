"""Datasets on disk in, samples out that a run can go through: what they were made with, and how they become rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from mindspeed_ift.config.blending import named_datasets
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout
from mindspeed_ift.config.tuning import TrainingDataFlags, TuneConfig
from mindspeed_ift.data.batch import DynamicLength, FixedLength, Packed, SequenceMode
from mindspeed_ift.data.blending import Blend, Part
from mindspeed_ift.data.boundaries import StoredBoundaries, choose_boundaries
from mindspeed_ift.data.dataset import InstructionDataset, Samples
from mindspeed_ift.data.encode import EncodeOptions
from mindspeed_ift.data.packed_view import packed_samples
from mindspeed_ift.data.template_certificate import KEY as CERTIFICATE
from mindspeed_ift.data.template_certificate import check_certificate, check_tokenizer
from mindspeed_ift.data.template_choice import check_definition, definition, find_row, get_template, make_encoder
from mindspeed_ift.data.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Opened:
    """A dataset that a flag names.

    Attributes:
        samples: as they are, or packed as the flags ask.
        facts: see `token_facts`.
        mode: how its samples become rows.
    """

    samples: Samples
    facts: dict[str, Any]
    mode: SequenceMode


@dataclass(frozen=True)
class Selection:
    """Samples that a run goes through: of one dataset, or of several in a `Blend`.

    Attributes:
        samples: all of them.
        taken: which are gone through.
        mode: how they become rows.
    """

    samples: Samples
    taken: range
    mode: SequenceMode


def open_training(config: TuneConfig, layout: Layout) -> tuple[list[Opened], dict[str, Any]]:
    """What --data-path names, and the facts of all of it.

    Raises:
        UserError: a dataset is missing, damaged, or two of them were not made alike.
    """
    prefixes, _ = named_datasets("--data-path", config.data.data_path)
    opened = [_open(InstructionDataset(prefix), config, config.data, layout) for prefix in prefixes]
    for other in opened[1:]:
        _check_alike(opened[0], other)
    # Plain text has no template; what it is blended with tells how the model is talked to.
    facts = dict(next((one.facts for one in opened if one.facts["prompt_type"]), opened[0].facts))
    if len({one.facts["enable_thinking"] for one in opened if one.facts["prompt_type"]}) > 1:
        facts["enable_thinking"] = None
    notices = dict.fromkeys(one.facts["certificate_notice"] for one in opened if one.facts["certificate_notice"])
    return opened, facts | {"certificate_notice": "\n".join(notices) or None}


def open_validation(config: TuneConfig, layout: Layout, training: Opened) -> list[Opened]:
    """What --valid-data-path names: packed in the run if the training data is, samples told apart in their own way.

    Raises:
        UserError: as `open_training`; or it was made with another tokenizer than the training data.
    """
    data = replace(config.data, pack=config.data.pack or config.data.pack_index is not None, pack_index=None)
    opened = []
    for prefix in named_datasets("--valid-data-path", config.data.valid_data_path)[0]:
        files = InstructionDataset(prefix)
        mine, theirs = ((one.manifest or {}).get("tokenizer_sha256") for one in (training.samples, files))
        if None not in (mine, theirs) and mine != theirs:
            raise UserError(
                f"--valid-data-path {prefix} was made with another tokenizer than --data-path {training.samples.prefix};"
                " prepare it again with the same"
            )
        own = training.facts if files.manifest is None else None
        one = _open(files, config, data, layout, own)
        opened.append(replace(one, mode=for_evaluation(one.mode)))
    return opened


def select(opened: list[Opened], weights: tuple[Fraction, ...] | None, ranges: list[range]) -> Selection:
    """Some samples of each dataset; of none for which its range is empty.

    Args:
        opened: the datasets.
        weights: theirs, see `named_datasets`.
        ranges: of each dataset.
    """
    if len(opened) == 1 or not any(ranges):
        return Selection(opened[0].samples, ranges[0], opened[0].mode)
    parts: list[Part] = []
    shares: list[Fraction] = []
    for number, (one, taken) in enumerate(zip(opened, ranges, strict=True)):
        if len(taken):
            parts.append(Part(one.samples, taken, one.mode.boundaries if isinstance(one.mode, Packed) else None))
            shares += [weights[number]] if weights is not None else []
    mode, blend = opened[0].mode, Blend(parts, shares or None)
    if isinstance(mode, Packed):
        mode = replace(mode, boundaries=StoredBoundaries())  # of whichever dataset, the blend tells them so
    return Selection(blend, range(len(blend)), mode)


def _open(
    files: InstructionDataset,
    config: TuneConfig,
    data: TrainingDataFlags,
    layout: Layout,
    facts: dict[str, Any] | None = None,
) -> Opened:
    facts = token_facts(data, files) if facts is None else facts
    samples = packed_samples(files, data, config.optimizer.seed, facts["pad_id"])
    return Opened(samples, facts, sequence_mode(config, layout, samples, facts))


def _check_alike(first: Opened, other: Opened) -> None:
    """Refuse two datasets that no model can learn together.

    Raises:
        UserError: they were made with two tokenizers, or two templates.
    """
    manifests = [one.samples.manifest or {} for one in (first, other)]
    for what, key, found in (
        ("tokenizer", "tokenizer", [one.get("tokenizer_sha256") for one in manifests]),
        ("template", "prompt_type", [one.facts["prompt_type"] for one in (first, other)]),
        ("template", "prompt_type", [one.facts["template_sha256"] for one in (first, other)]),
        ("vocabulary", "vocab_size", [one.facts["vocab_size"] for one in (first, other)]),
    ):
        if None not in found and found[0] != found[1]:
            told = " and ".join(str(one.get(key)) for one in manifests)
            raise UserError(
                f"--data-path {first.samples.prefix} and {other.samples.prefix} were not made with the same {what} ({told});"
                " prepare one of them again with that of the other"
            )


def for_evaluation(mode: SequenceMode) -> SequenceMode:
    """Which samples share a micro-batch is no matter of the validation data, so its loss is per token then."""
    return replace(mode, loss_reduction="token") if mode.loss_reduction == "micro-batch" else mode


def token_facts(data: TrainingDataFlags, dataset: InstructionDataset) -> dict[str, Any]:
    """Ids that the sequence modes need: from the manifest, or from the tokenizer for a dataset of others.

    Raises:
        UserError: the flags contradict the manifest, or there is neither manifest nor tokenizer.
    """
    manifest = dataset.manifest or {}
    facts: dict[str, Any] = {}
    for key in ("prompt_type", "enable_thinking"):
        given = getattr(data, key)
        if given is not None and manifest.get(key) not in (None, given):
            flag = "--" + key.replace("_", "-")
            raise UserError(f"{flag} {given}, but {dataset.prefix} was made with {manifest[key]}; leave the flag out")
        facts[key] = given or manifest.get(key)
    _add_template(facts, data, dataset)
    path = facts["tokenizer"] = data.tokenizer_name_or_path
    if path is None:
        if not manifest:
            raise UserError(
                f"--data-path {dataset.prefix} has no manifest, so --tokenizer-name-or-path is needed: the tokenizer it "
                "was made with"
            )
        return facts | {key: manifest[key] for key in ("vocab_size", "eod_id", "pad_id", "turn_end_ids")}
    tokenizer = load_tokenizer(path)
    if manifest.get("tokenizer_sha256") not in (None, tokenizer.fingerprint):
        raise UserError(
            f"--tokenizer-name-or-path {path} is another tokenizer than {dataset.prefix} was made with; prepare the "
            "data again, or give the tokenizer it was made with"
        )
    changed = check_tokenizer(facts[CERTIFICATE], tokenizer, f"dataset {dataset.prefix}")
    facts["certificate_notice"] = changed or facts["certificate_notice"]
    end, turn_end = tokenizer.eod_id, [tokenizer.eod_id]
    if facts["prompt_type"]:
        template = get_template(facts["prompt_type"], facts["template_row"], f"dataset {dataset.prefix}")
        encoder = make_encoder(template, tokenizer, EncodeOptions())
        check_definition(encoder.fingerprint, facts["template_sha256"], template.name, f"dataset {dataset.prefix}")
        facts["template_sha256"] = encoder.fingerprint
        tokenizer, end, turn_end = encoder.tokenizer, encoder.end_id, encoder.turn_end_ids()
    own = {"vocab_size": tokenizer.vocab_size, "eod_id": end, "pad_id": tokenizer.pad_id, "turn_end_ids": turn_end}
    return facts | own | {key: manifest[key] for key in own if key in manifest}


def _add_template(facts: dict[str, Any], data: TrainingDataFlags, dataset: InstructionDataset) -> None:
    """How the dataset was written: what its manifest says, if the template of today still writes that."""
    manifest, name = dataset.manifest or {}, facts["prompt_type"]
    row = find_row(name, data.prompt_type_path) if name else None
    facts["template_row"] = row or manifest.get("template_row")
    facts["template_sha256"] = manifest.get("template_sha256")
    facts[CERTIFICATE] = manifest.get(CERTIFICATE)
    facts["certificate_notice"] = check_certificate(
        facts[CERTIFICATE], facts["template_sha256"], f"dataset {dataset.prefix}"
    )
    if name:
        template = get_template(name, facts["template_row"], data.prompt_type_path or f"dataset {dataset.prefix}")
        check_definition(definition(template), facts["template_sha256"], name, f"dataset {dataset.prefix}")


def sequence_mode(config: TuneConfig, layout: Layout, dataset: Samples, facts: dict) -> SequenceMode:
    data, pad_id, reduction = config.data, facts["pad_id"], config.optimizer.loss_reduction
    # The layout may need more than the flags say: TP 16 with SP splits each row into 16.
    multiple = layout.row_multiple
    if not data.pad_to_seq_lengths:
        multiple = math.lcm(multiple, data.pad_to_multiple_of)
    if data.reset_attention_mask or data.reset_position_ids:
        return Packed(
            seq_length=data.seq_length,
            pad_id=pad_id,
            boundaries=choose_boundaries(dataset, facts["eod_id"], facts["turn_end_ids"]),
            reset_attention_mask=data.reset_attention_mask,
            reset_position_ids=data.reset_position_ids,
            multiple=multiple,
            to_longest=not data.pad_to_seq_lengths,
            loss_reduction=reduction,
        )
    if reduction == "sample" and dataset.is_packed:
        raise UserError(
            f"--loss-reduction sample: the rows of {dataset.prefix} hold several samples, which are told apart with"
            " --reset-attention-mask only; give that (and --reset-position-ids)"
        )
    if data.pad_to_seq_lengths:
        return FixedLength(data.seq_length, pad_id, multiple, reduction)
    return DynamicLength(data.seq_length, multiple, pad_id, reduction)
