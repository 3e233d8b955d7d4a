"""tune(plan): build, resume, loop, save. The first file to read; `plan.py` says what was decided before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch.profiler import record_function as named

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.convert import TRAINING_FACTS
from mindspeed_ift.checkpoint.names import Stage
from mindspeed_ift.checkpoint.others import is_of_others
from mindspeed_ift.checkpoint.source import model_shard, open_source
from mindspeed_ift.config.describe import settings
from mindspeed_ift.config.errors import RunError
from mindspeed_ift.config.layout import padded_vocab_size
from mindspeed_ift.data.micro_batches import MicroBatches
from mindspeed_ift.devices.device import Device, current
from mindspeed_ift.model.build import ModelOptions, Qwen3Model, build_stages
from mindspeed_ift.model.lora import start_adapters
from mindspeed_ift.model.weights import fill, without_adapters
from mindspeed_ift.parallel import groups as process_groups
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.planning.operations import step_operations
from mindspeed_ift.training import restarts, state
from mindspeed_ift.training.continuing import facts_of_run
from mindspeed_ift.training.evaluation import evaluate
from mindspeed_ift.training.exporting import export
from mindspeed_ift.training.metrics import Metrics
from mindspeed_ift.training.optimizer import build_optimizer, build_schedule, restored, weights_dtype, wrap
from mindspeed_ift.training.plan import Plan
from mindspeed_ift.training.profiling import Profile, profile_folder
from mindspeed_ift.training.progress import Progress
from mindspeed_ift.training.refused import refused_path, write_refused
from mindspeed_ift.training.saving import Saver
from mindspeed_ift.training.sources import find_sources
from mindspeed_ift.training.state import Trained
from mindspeed_ift.training.step import StepReport, train_step
from mindspeed_ift.training.stopping import StopRequest, listening
from mindspeed_ift.training.trackers import Trackers, starts_of
from mindspeed_ift.training.watchdog import Watchdog


@dataclass(frozen=True)
class _Run:
    """What the steps of a run need."""

    plan: Plan
    trained: Trained
    model: Any
    groups: Groups
    device: Device
    progress: Progress
    saver: Saver | None
    watchdog: Watchdog


def tune(plan: Plan, fail: Callable[[RunError], None]) -> None:
    """Run the training that ``plan`` describes.

    Args:
        plan: what to do.
        fail: ends the process with an error from another thread than this one: of a step that does not end.

    Raises:
        RunError: more steps than allowed had a loss or a gradient norm that is not finite.
        UserError: weights or checkpoint do not fit.
    """
    with listening(wanted=plan.config.run.save is not None) as stop_request:
        config, device = plan.config, current()
        if config.run.deterministic_mode:
            device.be_deterministic()
        groups = process_groups.start(
            plan.layout,
            device,
            seed=config.optimizer.seed,
            chunks=plan.layout.chunks(plan.architecture.num_layers),
            backend=config.run.collective_backend,
            timeout_minutes=config.run.distributed_timeout_minutes + 1,  # the watchdog speaks first
        )
        groups.say(f"device: {device.kind} ({device.reason}); kernels: {device.kernel_notice}")
        plan = _with_whole_sources(restarts.after_restart(plan, groups), groups)
        stages = build_stages(plan.architecture, model_options(plan), groups)
        _load_weights(plan, stages, groups)
        if config.optimizer.optimizer_cpu_offload and not device.asynchronous:
            groups.say("notice: --optimizer-cpu-offload changes nothing here: the device is the host")
        model = wrap(stages, config.layout)
        optimizer = build_optimizer(model, config.optimizer, config.layout)
        schedule = build_schedule(optimizer, config.optimizer)
        trained = Trained(stages, optimizer, schedule, groups, device, config.layout.use_distributed_optimizer)
        progress = _resume(plan, trained)
        notice = state.check_space(config.run, config.optimizer.train_iters or 0, progress.done, trained)
        if notice is not None:
            groups.say(notice)
        saver = Saver(config.run.save, groups, config.run.async_save) if config.run.save is not None else None
        with Watchdog.of_run(config.run, groups.rank, plan.layout.world, fail) as watchdog:
            _loop(_Run(plan, trained, model, groups, device, progress, saver, watchdog), stop_request)
        if groups.rank == 0:
            restarts.forget(config)
        process_groups.stop(groups)


def _loop(run: _Run, stop_request: StopRequest) -> None:
    plan, groups, progress = run.plan, run.groups, run.progress
    config, total = plan.config, plan.config.optimizer.train_iters
    assert total is not None
    training = plan.training_samples(groups.data_rank, config.data.shuffle, progress.consumed, progress.dealing)
    balance = plan.describe_balance(training.order) if groups.rank == 0 else None
    if balance is not None:
        groups.say(balance)
    metrics = Metrics(
        config.run.save,
        run.device,
        world=plan.layout.world,
        total=total,
        first=progress.done,
        interval=config.run.log_interval,
        active=groups.rank == 0,
        operations=partial(_operations, plan) if config.optimizer.bf16 or config.optimizer.fp16 else None,  # of 16 bits
        trackers=_trackers(plan, progress.done) if groups.rank == 0 else None,
    )
    flags = config.profile
    profile = Profile(flags, profile_folder(flags, config.run.save), run.device, groups.rank)
    for iteration in _steps_to_do(run, total):
        metrics.begin()
        run.watchdog.heard(f"step {iteration}")
        profile.begin(iteration)
        with named("batch"):
            batches = training.take(progress.consumed, plan.micro_batches)
        trained = run.trained
        report = train_step(run.model, trained.optimizer, trained.schedule, batches, groups, run.device, stop_request)
        profile.end(iteration)
        if report.refusal is not None:
            _refused(run, training, iteration, report, metrics)
        progress.overflowed += report.overflow
        metrics.step(iteration, report, progress.skipped)
        progress.done, progress.consumed = iteration, progress.consumed + plan.rows_of_a_step
        progress.dealing = training.order.dealing(progress.consumed)
        reason = _after_step(run, report, metrics, stop_request)
        if run.saver is not None:
            (run.saver.poll if reason is None else run.saver.finish)()
        if reason is not None:
            groups.say(f"stopping after step {iteration} {reason}")
            break
    if run.saver is not None:
        run.saver.finish()
    profile.close()
    metrics.close()
    for line in plan.describe_consumed(progress.consumed):
        groups.say(line)


def _trackers(plan: Plan, first: int) -> Trackers:
    shown = settings(plan.config, plan.architecture, plan.layout)
    return Trackers(starts_of(plan.config.tracking, plan.config.run.save, first, shown))


def _operations(plan: Plan, report: StepReport) -> float:
    return step_operations(
        plan.architecture,
        real_tokens=report.real_tokens,
        learnt_tokens=report.learnt_tokens,
        squared_lengths=report.squared_lengths,
        adapters=plan.config.lora.active,
    )


def _steps_to_do(run: _Run, total: int) -> range:
    """Numbers of the steps; none, with the reason said, where nothing is left to do."""
    done, load = run.progress.done, run.plan.config.run.load
    if done >= total:
        run.groups.say(f"{load} has {done} steps already; --train-iters {total} asks for no more")
    elif _stopped_early(run):
        run.groups.say(f"{load} has stopped early; raise --early-stopping-patience, or leave it out, to go on")
        return range(0)
    return range(done + 1, total + 1)


def _after_step(run: _Run, report: StepReport, metrics: Metrics, stop_request: StopRequest) -> str | None:
    """Evaluate and save where it is time; the reason to stop, or None."""
    flags, iteration = run.plan.config.run, run.progress.done
    last = iteration == run.plan.config.optimizer.train_iters
    best = False
    if not report.stop and (last or iteration % flags.eval_interval == 0):
        run.watchdog.heard(f"the evaluation after step {iteration}", flags.eval_iters)
        best = _evaluate(run, metrics)
    due = last or (flags.save_interval and iteration % flags.save_interval == 0) or (best and flags.save_best)
    if due or report.stop or _stopped_early(run):
        run.watchdog.heard(f"the save after step {iteration}")
        _save(run, best)
    return _reason_to_stop(run, report, stop_request)


def _evaluate(run: _Run, metrics: Metrics) -> bool:
    """Whether the evaluation is the best so far."""
    loss, progress = evaluate(run.plan, run.model, run.groups, run.device), run.progress
    if loss is None:
        return False
    best = progress.evaluated(loss)
    metrics.evaluation(progress.done, loss, progress.best_loss, progress.best_iteration)
    return best


def _stopped_early(run: _Run) -> bool:
    patience = run.plan.config.run.early_stopping_patience
    return patience is not None and run.progress.evaluations_since_best >= patience


def _reason_to_stop(run: _Run, report: StepReport, stop_request: StopRequest) -> str | None:
    """The same on every rank, apart from the name of a signal; None: go on."""
    flags, progress = run.plan.config.run, run.progress
    if report.stop:
        told = f" ({stop_request.signal})" if stop_request.signal else ""
        return f"as asked{told}; --load {flags.save} goes on from it"
    if _stopped_early(run):
        return (
            f"(--early-stopping-patience {flags.early_stopping_patience}): the best validation loss was "
            f"{progress.best_loss:.4f} after step {progress.best_iteration}"
            if progress.best_loss is not None
            else "(--early-stopping-patience): no validation loss was finite"
        )
    return "(--exit-interval)" if progress.done == flags.exit_interval else None


def _save(run: _Run, best: bool) -> None:
    """Write a checkpoint; once it is there say so, and that it is the best if so, and delete what is not to be kept."""
    if run.saver is None:
        return
    if run.plan.config.layout.overlap_param_gather:
        # Each rank has moved its share of the weights; the others' would come with the next forward pass.
        for stage in run.model:
            stage.start_param_sync(force_sync=True)
    flags, facts = run.plan.config.run, _facts(run.plan, run.progress)
    iteration, best_loss = run.progress.done, run.progress.best_loss if best and flags.save_best else None
    after = partial(_saved, run, iteration, best_loss)
    state.save(run.saver, iteration, run.trained, flags.ckpt_format, facts, after)


def _saved(run: _Run, iteration: int, best_loss: float | None) -> None:
    flags = run.plan.config.run
    if flags.save is None or run.groups.rank != 0:
        return
    run.groups.say(f"saved {megatron.iteration_folder(flags.save, iteration)}")
    if best_loss is not None:
        megatron.mark_best(flags.save, iteration)
        run.groups.say(f"{flags.save / megatron.BEST} names step {iteration}: validation loss {best_loss:.4f}")
    if flags.enable_mg2hf_convert:
        base = run.plan.sources.hugging_face or run.plan.sources.weights
        run.groups.say(export(megatron.iteration_folder(flags.save, iteration), base))
    if flags.keep_last is not None:
        deleted = megatron.keep_newest(flags.save, flags.keep_last, _protected(run))
        if deleted:
            run.groups.say(f"deleted {' '.join(one.name for one in deleted)} (--keep-last {flags.keep_last})")


def _protected(run: _Run) -> set[Path]:
    """Checkpoints that a resume needs however old they are: weights that adapters are trained on."""
    sources = run.plan.sources
    needed = {sources.weights, sources.adapters} - {sources.resume, None}
    # Adapters saved alone from now on leave the weights where they are, be it in the checkpoint that is continued.
    return needed | ({sources.weights} - {None} if run.plan.config.lora.lora_ckpt_filter else set())


def _refused(run: _Run, training: MicroBatches, iteration: int, report: StepReport, metrics: Metrics) -> None:
    """Keep the samples of a step that moved no weight, and end the run after one too many.

    Raises:
        RunError: on every rank, after the samples are written.
    """
    plan, progress, flags = run.plan, run.progress, run.plan.config.run
    path = refused_path(flags.save, iteration) if flags.save is not None else None
    if path is not None and run.groups.rank == 0:
        write_refused(path, training, progress.consumed, plan.micro_batches, plan.token_facts)
    run.groups.barrier()
    progress.skipped += 1
    told = f"its samples are in {path}" if path is not None else "with --save its samples are written there"
    if progress.skipped > flags.max_skipped_steps:
        if run.saver is not None:
            run.saver.finish()
        metrics.step(iteration, report, progress.skipped)
        raise RunError(
            f"step {iteration} is refused: {report.refusal}; no weight was moved, {told}: look at the data, lower --lr, "
            f"or go on after such steps with --max-skipped-steps {progress.skipped}"
        )
    run.groups.say(f"step {iteration}/{metrics.total}  refused: {report.refusal}; no weight was moved, {told}")


def model_options(plan: Plan) -> ModelOptions:
    config = plan.config
    optimizer = config.optimizer
    rows = padded_vocab_size(
        max(plan.architecture.vocab_size, config.model.padded_vocab_size or 0),
        config.model.make_vocab_size_divisible_by,
        plan.layout.tensor,
    )
    return ModelOptions(
        padded_vocab=rows,
        dtype=weights_dtype(optimizer),
        variable_lengths=not plan.config.data.pad_to_seq_lengths,
        recompute=(optimizer.recompute_granularity, optimizer.recompute_method, optimizer.recompute_num_layers),
        loss_chunk_size=optimizer.loss_chunk_size if optimizer.loss_compute_mode == "chunk" else None,
        fresh=plan.sources.hugging_face is None and plan.sources.weights is None,
        seed=optimizer.seed,
        lora=config.lora if config.lora.active else None,
        aux_loss_coeff=optimizer.moe_aux_loss_coeff,
    )


def _with_whole_sources(plan: Plan, groups: Groups) -> Plan:
    """Where the checksums of the checkpoint that training is continued from differ, the one before takes its place.

    Raises:
        UserError: on every rank, if none is whole.
    """
    sources, damaged = plan.sources, {}
    while sources.resume is not None:
        reason = state.changed_file(sources.resume, groups, plan.config.layout.use_distributed_optimizer)
        if reason is None:
            break
        damaged[sources.resume] = reason
        sources = find_sources(plan.config, damaged)
    for notice in sources.notices[len(plan.sources.notices) :] if damaged else ():
        groups.say(notice)
    return replace(plan, sources=sources)


def _load_weights(plan: Plan, stages: list[Qwen3Model], groups: Groups) -> None:
    sources = plan.sources
    folder, kind = sources.hugging_face, "Hugging Face"
    if folder is None and sources.weights is not None and is_of_others(sources.weights):
        folder, kind = sources.weights, "of another toolkit, whose training is not continued"
    if folder is not None:
        source = open_source(folder, architecture=plan.architecture).source
        for stage in stages:
            place = Stage(stage.layer_numbers, stage.pre_process, stage.post_process)
            ranks, padded = (groups.tensor_rank, groups.expert_rank), stage.options.padded_vocab
            weights = model_shard(source, plan.architecture, place, groups.layout, ranks, padded)
            fill(stage, weights, str(folder), without_adapters)
        groups.say(f"weights: {folder} ({kind})")
    elif sources.weights is not None:
        state.load_model(sources.weights, stages, groups, without_adapters)
        groups.say(f"weights: {sources.weights}")
    else:
        groups.say("weights: fresh (no --load)")
    if sources.adapters is not None:
        trained = partial(plan.config.lora.is_trained, tied=plan.architecture.tied)
        state.load_model(sources.adapters, stages, groups, trained)
        groups.say(f"adapters: {sources.adapters}")
    elif plan.config.lora.active:
        for stage in stages:
            start_adapters(stage, stage.layer_numbers, plan.config.optimizer.seed)
        groups.say(f"adapters: fresh, on {' '.join(plan.config.lora.lora_target_modules)}")


def _resume(plan: Plan, trained: Trained) -> Progress:
    """Steps already done and samples already consumed: none where no training is continued."""
    run = plan.config.run
    if plan.sources.resume is None:
        return Progress()
    manifest = megatron.read_manifest(plan.sources.resume) or {}
    progress = Progress.of_manifest(manifest, plan.rows_of_a_step)
    if run.load_optim:
        state.load_training(plan.sources.resume, trained, load_random=run.load_rng)
        restored(trained.optimizer)
    else:
        trained.schedule.step(increment=progress.done - progress.skipped - progress.overflowed)
    elsewhere = manifest.get("layout") not in (None, megatron.describe_layout(plan.layout))
    trained.groups.say(f"resuming after step {progress.done}{', in another layout' if elsewhere else ''}")
    return progress


def _facts(plan: Plan, progress: Progress) -> dict[str, Any]:
    return {
        **progress.facts(),
        "data_path": plan.dataset.prefix,
        "datasets": plan.datasets,
        "seed": plan.config.optimizer.seed,
        **facts_of_run(plan.config, plan.data_facts),
        "tokenizer": plan.token_facts["tokenizer"],
        **{key: plan.token_facts[key] for key in TRAINING_FACTS},
    }
