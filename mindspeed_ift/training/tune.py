"""tune(config): build, resume, loop, save. The first file to read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.convert import hugging_face_shard
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout, layout_of, padded_vocab_size
from mindspeed_ift.config.resolve import resolve_architecture
from mindspeed_ift.config.rules import check_flags, check_layout, length_multiple, num_micro_batches
from mindspeed_ift.config.tuning import TuneConfig
from mindspeed_ift.data.batch import DynamicLength, FixedLength, Packed, SequenceMode
from mindspeed_ift.data.boundaries import choose_boundaries
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.micro_batches import MicroBatches
from mindspeed_ift.data.order import SampleOrder, split_ranges
from mindspeed_ift.data.overlong import Overlong
from mindspeed_ift.data.tokenizer import load_tokenizer
from mindspeed_ift.devices.device import Device, current
from mindspeed_ift.model.build import ModelOptions, Qwen3Model, build_model
from mindspeed_ift.model.weights import fill
from mindspeed_ift.parallel import groups as process_groups
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.training import state
from mindspeed_ift.training.metrics import Metrics
from mindspeed_ift.training.optimizer import build_optimizer, build_schedule, wrap
from mindspeed_ift.training.step import evaluate_step, train_step


@dataclass(frozen=True)
class Plan:
    """All that is decided before the first process talks to another.

    Attributes:
        config: the flags.
        layout: degrees of parallelism.
        architecture: of the model.
        architecture_origin: where it came from.
        dataset: the samples.
        mode: how they become batches.
        train: range of training samples.
        valid: range of validation samples.
        micro_batches: of one step and replica.
        resume_from: checkpoint to continue or to take weights from, or None.
        token_facts: vocabulary, pad and eod of the dataset's tokenizer, its template.
    """

    config: TuneConfig
    layout: Layout
    architecture: Architecture
    architecture_origin: str
    dataset: InstructionDataset
    mode: SequenceMode
    train: range
    valid: range
    micro_batches: int
    resume_from: Path | None
    token_facts: dict[str, Any]


def plan(config: TuneConfig, world_size: int) -> Plan:
    """Check everything that can be checked without peers, before any output is touched.

    Raises:
        UserError: flags, data, model or checkpoint do not go together.
    """
    check_flags(config)
    layout = layout_of(config.layout, world_size)
    dataset = InstructionDataset(config.data.data_path[0])
    facts = _token_facts(config, dataset)
    resume_from = None if config.run.enable_hf2mg_convert else _checkpoint_to_load(config)
    architecture, origin = resolve_architecture(
        config.model, _loaded_architecture(config, resume_from), facts["vocab_size"]
    )
    check_layout(config, architecture, layout)
    dataset.check_fits(architecture.vocab_size)
    train, valid, _ = split_ranges(len(dataset), config.data.split)
    if not len(train):
        raise UserError(
            f"--split {config.data.split} leaves no training sample of {len(dataset)}; raise the first share"
        )
    mode = _sequence_mode(config, layout, dataset, facts)
    planned = Plan(
        config,
        layout,
        architecture,
        origin,
        dataset,
        mode,
        train,
        valid,
        num_micro_batches(config, layout),
        resume_from,
        facts,
    )
    for samples in (train, valid):
        if len(samples):  # refuses samples that neither fit nor may be cut
            _micro_batches(planned, samples, data_rank=0, shuffle=False)
    return planned


def tune(plan: Plan) -> None:
    """Run the training that ``plan`` describes.

    Raises:
        RunError: the loss is not finite.
        UserError: weights or checkpoint do not fit.
    """
    config, device = plan.config, current()
    groups = process_groups.start(
        plan.layout,
        device,
        seed=config.optimizer.seed,
        backend=config.run.distributed_backend,
        timeout_minutes=config.run.distributed_timeout_minutes,
    )
    _say(groups, f"device: {device.kind} ({device.reason}); kernels: {device.kernel_notice}")
    stage = build_model(plan.architecture, _model_options(plan), groups)
    _load_weights(plan, stage, groups)
    model = wrap(stage, config.layout)
    optimizer = build_optimizer(model, config.optimizer, config.layout)
    schedule = build_schedule(optimizer, config.optimizer)
    done = _resume(plan, optimizer, schedule, groups, device)
    _loop(plan, done, stage, model, optimizer, schedule, groups, device)
    process_groups.stop(groups)


def _loop(
    plan: Plan, done: int, stage: Qwen3Model, model: Any, optimizer: Any, schedule: Any, groups: Groups, device: Device
) -> None:
    config, total = plan.config, plan.config.optimizer.train_iters
    assert total is not None
    global_batch = plan.micro_batches * config.optimizer.micro_batch_size * plan.layout.data
    training = _micro_batches(plan, plan.train, groups.data_rank, config.data.shuffle)
    metrics = Metrics(
        config.run.save,
        device,
        world=plan.layout.world,
        total=total,
        first=done,
        interval=config.run.log_interval,
        active=groups.rank == 0,
    )
    if done >= total:
        _say(groups, f"{config.run.load} has {done} steps already; --train-iters {total} asks for no more")
    for iteration in range(done + 1, total + 1):
        batches = training.take((iteration - 1) * global_batch, plan.micro_batches)
        report = train_step(model, optimizer, schedule, batches, groups, device)
        metrics.step(iteration, report)
        if iteration % config.run.eval_interval == 0 or iteration == total:
            _evaluate(plan, iteration, model, groups, device, metrics)
        interval = config.run.save_interval
        if config.run.save is not None and (iteration == total or (interval and iteration % interval == 0)):
            state.save(
                config.run.save,
                iteration,
                model=stage,
                optimizer=optimizer,
                schedule=schedule,
                groups=groups,
                device=device,
                distributed_optimizer=config.layout.use_distributed_optimizer,
                facts=_facts(plan, iteration * global_batch),
            )
            _say(groups, f"saved {megatron.iteration_folder(config.run.save, iteration)}")
        if iteration == config.run.exit_interval:
            _say(groups, f"stopping after step {iteration} (--exit-interval)")
            break
    metrics.close()


def _evaluate(plan: Plan, iteration: int, model: Any, groups: Groups, device: Device, metrics: Metrics) -> None:
    """Mean loss per learnt token over at most ``--eval-iters`` global batches of the validation range, in its order."""
    count = plan.config.run.eval_iters
    per_pass = plan.config.optimizer.micro_batch_size * plan.layout.data
    if not len(plan.valid) or not count:
        return
    passes = min(count * plan.micro_batches, max(len(plan.valid) // per_pass, 1))
    source = _micro_batches(plan, plan.valid, groups.data_rank, shuffle=False)
    model.eval()
    loss, learnt = evaluate_step(model, source.take(0, passes), groups, device)
    model.train()
    if learnt:
        metrics.evaluation(iteration, loss / learnt)


def _micro_batches(plan: Plan, samples: range, data_rank: int, shuffle: bool) -> MicroBatches:
    config = plan.config
    overlong = Overlong.CUT_END if config.data.cut_max_seqlen else Overlong.CUT_TURNS
    return MicroBatches(
        dataset=plan.dataset,
        sample_range=samples,
        order=SampleOrder(len(samples), config.optimizer.seed, shuffle),
        mode=plan.mode,
        micro_batch_size=config.optimizer.micro_batch_size,
        data_rank=data_rank,
        data_size=plan.layout.data,
        overlong=overlong if config.data.cut_token else Overlong.REFUSE,
    )


def _model_options(plan: Plan) -> ModelOptions:
    config = plan.config
    optimizer = config.optimizer
    rows = padded_vocab_size(
        max(plan.architecture.vocab_size, config.model.padded_vocab_size or 0),
        config.model.make_vocab_size_divisible_by,
        plan.layout.tensor,
    )
    return ModelOptions(
        padded_vocab=rows,
        dtype=torch.bfloat16 if optimizer.bf16 else torch.float32,
        variable_lengths=isinstance(plan.mode, DynamicLength),
        recompute=(optimizer.recompute_granularity, optimizer.recompute_method, optimizer.recompute_num_layers),
        loss_chunk_size=optimizer.loss_chunk_size if optimizer.loss_compute_mode == "chunk" else None,
    )


def _load_weights(plan: Plan, stage: Qwen3Model, groups: Groups) -> None:
    folder = plan.config.run.load
    if plan.config.run.enable_hf2mg_convert and folder is not None:
        weights = hugging_face_shard(
            folder,
            plan.architecture,
            layers=stage.layer_numbers,
            first_stage=groups.first_stage,
            last_stage=groups.last_stage,
            tensor_size=groups.layout.tensor,
            tensor_rank=groups.tensor_rank,
            padded_vocab=stage.options.padded_vocab,
        )
        fill(stage, weights, str(folder))
        _say(groups, f"weights: {folder} (Hugging Face)")
    elif plan.resume_from is not None:
        state.load_model(plan.resume_from, stage, groups)
        _say(groups, f"weights: {plan.resume_from}")
    else:
        _say(groups, "weights: fresh (no --load)")


def _resume(plan: Plan, optimizer: Any, schedule: Any, groups: Groups, device: Device) -> int:
    """Steps already done: 0 for fresh weights and for ``--finetune``."""
    run = plan.config.run
    if plan.resume_from is None or run.finetune:
        return 0
    manifest = megatron.read_manifest(plan.resume_from) or {}
    done = int(manifest.get("iteration", 0))
    if run.load_optim:
        state.load_training(
            plan.resume_from,
            optimizer,
            schedule,
            groups,
            device,
            distributed_optimizer=plan.config.layout.use_distributed_optimizer,
            load_random=run.load_rng,
        )
    else:
        schedule.step(increment=done)
    _say(groups, f"resuming after step {done}")
    return done


def _checkpoint_to_load(config: TuneConfig) -> Path | None:
    if config.run.load is None:
        return None
    iteration = megatron.latest_iteration(config.run.load)
    if iteration is None:
        if config.run.load == config.run.save:  # the first start of a script that resumes itself
            return None
        remedy = "add --enable-hf2mg-convert" if (config.run.load / "config.json").is_file() else "give a --save folder"
        raise UserError(f"--load {config.run.load} holds no Megatron checkpoint; {remedy}")
    return megatron.iteration_folder(config.run.load, iteration)


def _loaded_architecture(config: TuneConfig, checkpoint: Path | None) -> dict[str, Architecture]:
    """What --load says of the model: config.json of a Hugging Face folder, or the manifest of a checkpoint."""
    folder = config.run.load
    if config.run.enable_hf2mg_convert and folder is not None:
        return {f"--load {folder}": Architecture.from_hugging_face(folder)}
    manifest = megatron.read_manifest(checkpoint) if checkpoint is not None else None
    return {f"--load {folder}": Architecture(**manifest["architecture"])} if manifest is not None else {}


def _sequence_mode(config: TuneConfig, layout: Layout, dataset: InstructionDataset, facts: dict) -> SequenceMode:
    data, multiple = config.data, length_multiple(config, layout)
    if data.reset_attention_mask or data.reset_position_ids:
        source = choose_boundaries(dataset, facts["eod_id"], facts["turn_end_ids"])
        return Packed(data.seq_length, facts["pad_id"], source, data.reset_attention_mask, data.reset_position_ids)
    if data.pad_to_seq_lengths:
        return FixedLength(data.seq_length, facts["pad_id"])
    together = data.pad_to_multiple_of
    while together % multiple:
        together += data.pad_to_multiple_of
    return DynamicLength(data.seq_length, together, facts["pad_id"])


def _token_facts(config: TuneConfig, dataset: InstructionDataset) -> dict[str, Any]:
    """Ids that the sequence modes need: from the manifest, or from the tokenizer for a dataset of others."""
    manifest, path = dataset.manifest or {}, config.data.tokenizer_name_or_path
    keys = ("vocab_size", "eod_id", "pad_id", "turn_end_ids")
    facts = {key: manifest[key] for key in keys if key in manifest}
    if len(facts) < len(keys):
        if path is None:
            raise UserError(
                f"--data-path {dataset.prefix} has no manifest, so --tokenizer-name-or-path is needed: the tokenizer it "
                "was made with"
            )
        tokenizer = load_tokenizer(path)
        ends = [tokenizer.eod_id]
        facts = {
            "vocab_size": tokenizer.vocab_size,
            "eod_id": tokenizer.eod_id,
            "pad_id": tokenizer.pad_id,
            "turn_end_ids": ends,
        } | facts
    for key in ("prompt_type", "enable_thinking"):
        given = getattr(config.data, key)
        if given is not None and manifest.get(key) not in (None, given):
            flag = "--" + key.replace("_", "-")
            raise UserError(f"{flag} {given}, but {dataset.prefix} was made with {manifest[key]}; leave the flag out")
        facts[key] = given or manifest.get(key)
    facts["tokenizer"] = path
    return facts


def _facts(plan: Plan, consumed: int) -> dict[str, Any]:
    return {
        "consumed_samples": consumed,
        "data_path": plan.dataset.prefix,
        "seed": plan.config.optimizer.seed,
        "tokenizer": plan.token_facts["tokenizer"],
        "prompt_type": plan.token_facts["prompt_type"],
        "enable_thinking": plan.token_facts["enable_thinking"],
    }


def _say(groups: Groups, text: str) -> None:
    if groups.rank == 0:
        print(text, flush=True)
