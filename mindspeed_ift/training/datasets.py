"""Datasets on disk in, samples out that a run can go through: what they were made with, and how they become rows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout
from mindspeed_ift.config.tuning import TrainingDataFlags, TuneConfig
from mindspeed_ift.data.batch import DynamicLength, FixedLength, Packed, SequenceMode
from mindspeed_ift.data.boundaries import choose_boundaries
from mindspeed_ift.data.dataset import InstructionDataset, Samples
from mindspeed_ift.data.encode import EncodeOptions
from mindspeed_ift.data.packed_view import packed_samples
from mindspeed_ift.data.template_certificate import KEY as CERTIFICATE
from mindspeed_ift.data.template_certificate import check_certificate, check_tokenizer
from mindspeed_ift.data.template_choice import check_definition, definition, find_row, get_template, make_encoder
from mindspeed_ift.data.tokenizer import load_tokenizer


def validation_dataset(
    config: TuneConfig, layout: Layout, facts: dict[str, Any], manifest: dict[str, Any]
) -> tuple[Samples, SequenceMode]:
    """What --valid-data-path names: packed in the run if the training data is, its samples told apart in its own way.

    Raises:
        UserError: it was made with another tokenizer than the training data.
    """
    path = config.data.valid_data_path
    assert path is not None
    files = InstructionDataset(path)
    mine, theirs = ((one or {}).get("tokenizer_sha256") for one in (manifest, files.manifest))
    if None not in (mine, theirs) and mine != theirs:
        raise UserError(
            f"--valid-data-path {path} was made with another tokenizer than --data-path {config.data.data_path[0]}; "
            "prepare it again with the same"
        )
    own = facts if files.manifest is None else token_facts(config.data, files)
    data = replace(config.data, pack=config.data.pack or config.data.pack_index is not None, pack_index=None)
    samples = packed_samples(files, data, config.optimizer.seed, facts["pad_id"])
    return samples, for_evaluation(sequence_mode(config, layout, samples, own))


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
