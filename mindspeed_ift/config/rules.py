"""What does not go together on the command line of a training run: a list of small functions, remedy in the message."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.blending import named_datasets
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import refuse_less
from mindspeed_ift.config.layout import Layout
from mindspeed_ift.config.lora import LORA_TARGETS, MODULES_TO_SAVE, LoraFlags
from mindspeed_ift.config.needs import check_needs
from mindspeed_ift.config.precision import check_precision
from mindspeed_ift.config.tuning import TuneConfig


def check_flags(config: TuneConfig) -> None:
    """Refuse what can be refused from the flags alone.

    Raises:
        UserError: naming the flag and the remedy.
    """
    for rule in _FLAG_RULES:
        rule(config)


def check_layout(config: TuneConfig, architecture: Architecture, layout: Layout) -> None:
    """Refuse an architecture that does not fit the layout, or batch sizes that do not fit the ranks.

    Raises:
        UserError: naming the flag and the remedy.
    """
    for name, count in (
        ("attention heads", architecture.num_attention_heads),
        ("query groups", architecture.num_query_groups),
        ("feed-forward columns", architecture.ffn_hidden_size),
    ):
        if count % layout.tensor:
            raise UserError(
                f"--tensor-model-parallel-size {layout.tensor} does not divide {count} {name}; choose a divisor"
            )
    _vocabulary_fits(config, architecture, layout)
    check_precision(config, architecture)
    _experts_fit(config, architecture, layout)
    micro_batches = num_micro_batches(config, layout)
    if layout.chunks(architecture.num_layers) > 1 and micro_batches % layout.pipeline:
        raise UserError(
            f"--num-layers-per-virtual-pipeline-stage needs a multiple of {layout.pipeline} micro-batches a step (the"
            f" pipeline's size), not {micro_batches}; change --global-batch-size"
        )
    _heads_fit(architecture, layout)
    _ranks_exist(config, layout)
    _recomputed_groups_fit(config, architecture, layout)
    if architecture.tied and "output_layer" in config.lora.lora_modules_to_save:
        raise UserError(
            "--lora-modules-to-save output_layer: the output layer of this model is its embedding; give word_embeddings"
        )


def num_micro_batches(config: TuneConfig, layout: Layout) -> int:
    """Micro-batches each data rank takes in one step.

    Raises:
        UserError: the global batch does not divide.
    """
    per_pass = config.optimizer.micro_batch_size * layout.data
    total = config.optimizer.global_batch_size or per_pass
    if total % per_pass:
        raise UserError(
            f"--global-batch-size {total} must be a multiple of --micro-batch-size {config.optimizer.micro_batch_size} "
            f"x data parallel size {layout.data} = {per_pass}"
        )
    return total // per_pass


def _heads_fit(architecture: Architecture, layout: Layout) -> None:
    heads = architecture.num_attention_heads // layout.tensor
    if heads % layout.ulysses:
        raise UserError(
            f"Ulysses over {layout.ulysses} devices does not divide {heads} attention heads a device ("
            f"{architecture.num_attention_heads} / tensor parallel {layout.tensor}); choose a smaller "
            "--context-parallel-size, hybrid_cp_algo with a smaller --ulysses-degree-in-cp, or megatron_cp_algo"
        )


def _vocabulary_fits(config: TuneConfig, architecture: Architecture, layout: Layout) -> None:
    padded, multiple = config.model.padded_vocab_size, config.model.make_vocab_size_divisible_by * layout.tensor
    if padded is not None and padded < architecture.vocab_size:
        raise UserError(f"--padded-vocab-size {padded} is less than the {architecture.vocab_size} rows of the model")
    if padded is not None and padded % multiple:
        raise UserError(
            f"--padded-vocab-size {padded} must divide by {multiple}: --make-vocab-size-divisible-by x tensor parallel"
        )


def _experts_fit(config: TuneConfig, architecture: Architecture, layout: Layout) -> None:
    if not architecture.num_experts:
        for flag, given in (
            ("--expert-model-parallel-size over 1", layout.expert > 1),
            ("--expert-tensor-parallel-size over 1", (layout.expert_tensor or 1) > 1),
            ("--moe-aux-loss-coeff", config.optimizer.moe_aux_loss_coeff > 0),
            ("--lora-modules-to-save router", "router" in config.lora.lora_modules_to_save),
        ):
            if given:
                raise UserError(f"{flag} is for a mixture of experts, and this model is dense; leave it out")
        return
    if architecture.num_experts % layout.expert:
        raise UserError(
            f"--expert-model-parallel-size {layout.expert} does not divide {architecture.num_experts} experts; choose a"
            " divisor"
        )
    if architecture.moe_ffn_hidden_size % layout.tensor_of_experts:
        raise UserError(
            f"--expert-tensor-parallel-size {layout.tensor_of_experts} does not divide"
            f" {architecture.moe_ffn_hidden_size} columns of an expert; choose a divisor, or 1"
        )
    if {"linear_fc1", "linear_fc2"} & set(config.lora.lora_target_modules):
        if layout.tensor_of_experts not in (1, layout.tensor):
            raise UserError(
                "adapters of experts (linear_fc1, linear_fc2) need --expert-tensor-parallel-size 1, or"
                f" {layout.tensor}, the tensor parallel size"
            )
        if config.lora.use_dora:
            raise UserError(
                "--use-dora is not supported for experts; give --lora-target-modules linear_qkv linear_proj"
            )
    if layout.tensor > 1 and not layout.sequence_parallel:
        raise UserError(
            f"a mixture of experts with --tensor-model-parallel-size {layout.tensor} needs --sequence-parallel: each device"
            " routes tokens of its own"
        )


def _balance(config: TuneConfig) -> None:
    optimizer = config.optimizer
    if optimizer.moe_router_load_balancing_type == "none" and optimizer.moe_aux_loss_coeff:
        raise UserError(
            "--moe-router-load-balancing-type none and --moe-aux-loss-coeff exclude each other; give aux_loss, or leave"
            " the coefficient out"
        )


def _always_so(config: TuneConfig) -> None:
    for flag, given in (
        ("--no-is-instruction-dataset", not config.run.is_instruction_dataset),
        ("--no-qk-layernorm", config.model.qk_layernorm is False),
    ):
        if given:
            raise UserError(f"{flag} is not supported: only Qwen3 on instruction data is trained; leave it out")


def _query_groups(config: TuneConfig) -> None:
    model = config.model
    described = model.preset is not None or model.hf_cfg_dir is not None or config.run.load is not None
    if model.group_query_attention and model.num_query_groups is None and not described:
        raise UserError("--group-query-attention needs --num-query-groups: the number of key and value heads")
    if model.group_query_attention is False and model.num_query_groups not in (None, model.num_attention_heads):
        raise UserError("--no-group-query-attention and --num-query-groups exclude each other; give one")


def _data_path(config: TuneConfig) -> None:
    if not config.data.data_path:
        raise UserError("--data-path is missing: give the --output-prefix of preprocess_data.py")
    named_datasets("--valid-data-path", config.data.valid_data_path)
    prefixes, _ = named_datasets("--data-path", config.data.data_path)
    if len(prefixes) == 1:
        return
    if config.data.pack_index is not None:
        raise UserError(
            f"--pack-index is of one dataset, --data-path names {len(prefixes)}; give --pack, which makes rows of each"
        )
    if config.data.balance_packs:
        raise UserError(
            f"--balance-packs deals the rows of one dataset, --data-path names {len(prefixes)}; leave it out, or join them"
            " with merge_datasets.py"
        )


def _train_iters(config: TuneConfig) -> None:
    if config.optimizer.train_iters is None:
        raise UserError("--train-iters is missing: the number of optimizer steps")


def _counts(config: TuneConfig) -> None:
    refuse_less(config, 1, "train_iters", "micro_batch_size", "global_batch_size", "lr_decay_iters")
    refuse_less(config, 1, "recompute_num_layers", "loss_chunk_size", "seq_length", "pad_to_multiple_of")
    refuse_less(config, 1, "log_interval", "eval_interval", "save_interval", "keep_last", "early_stopping_patience")
    refuse_less(config, 1, "exit_interval", "distributed_timeout_minutes", "padded_vocab_size")
    refuse_less(config, 1, "make_vocab_size_divisible_by", "context_parallel_size", "expert_model_parallel_size")
    refuse_less(config, 1, "expert_tensor_parallel_size", "num_experts", "moe_router_topk", "moe_ffn_hidden_size")


def _not_negative(config: TuneConfig) -> None:
    refuse_less(config, 0, "min_lr", "lr_warmup_init", "lr_warmup_iters", "weight_decay", "clip_grad")
    refuse_less(config, 0, "moe_aux_loss_coeff", "eval_iters", "max_skipped_steps", "seed")


def _adam(config: TuneConfig) -> None:
    optimizer = config.optimizer
    for flag, value in (("--lr", optimizer.lr), ("--adam-eps", optimizer.adam_eps)):
        if value <= 0:
            raise UserError(f"{flag} {value} must be over 0")
    for flag, value in (("--adam-beta1", optimizer.adam_beta1), ("--adam-beta2", optimizer.adam_beta2)):
        if not 0 <= value < 1:
            raise UserError(f"{flag} {value} must be at least 0 and less than 1")


def _schedule(config: TuneConfig) -> None:
    optimizer = config.optimizer
    if optimizer.lr_warmup_fraction is not None and optimizer.lr_warmup_iters:
        raise UserError("--lr-warmup-fraction and --lr-warmup-iters exclude each other; give one")
    if optimizer.lr_warmup_fraction is not None and not 0 <= optimizer.lr_warmup_fraction < 1:
        raise UserError(f"--lr-warmup-fraction {optimizer.lr_warmup_fraction} must be at least 0 and less than 1")
    if optimizer.min_lr > optimizer.lr:
        raise UserError(f"--min-lr {optimizer.min_lr} is over --lr {optimizer.lr}")
    if optimizer.lr_warmup_init > optimizer.lr:
        raise UserError(f"--lr-warmup-init {optimizer.lr_warmup_init} is over --lr {optimizer.lr}")
    if optimizer.lr_warmup_init and not (optimizer.lr_warmup_iters or optimizer.lr_warmup_fraction):
        raise UserError("--lr-warmup-init needs --lr-warmup-iters or --lr-warmup-fraction")


def _warmup_fits(config: TuneConfig) -> None:
    decay = config.optimizer.lr_decay_iters or config.optimizer.train_iters or 0
    if config.optimizer.lr_warmup_iters >= decay:
        raise UserError(
            f"--lr-warmup-iters {config.optimizer.lr_warmup_iters} must be less than the {decay} decay steps"
        )


def _offload(config: TuneConfig) -> None:
    optimizer = config.optimizer
    fraction = optimizer.optimizer_offload_fraction
    if not 0 < fraction <= 1:
        raise UserError(f"--optimizer-offload-fraction {fraction} must be over 0 and at most 1")
    if optimizer.optimizer_cpu_offload and not (optimizer.bf16 and config.layout.use_distributed_optimizer):
        raise UserError("--optimizer-cpu-offload needs --bf16 and --use-distributed-optimizer")


def _sequence_modes(config: TuneConfig) -> None:
    data = config.data
    if data.neat_pack and not data.reset_attention_mask:
        raise UserError("--neat-pack needs --reset-attention-mask, or the samples of a row would see each other")


def _packs(config: TuneConfig) -> None:
    data = config.data
    if data.pack and data.pack_index is not None:
        raise UserError("--pack and --pack-index exclude each other: rows are made now, or were written before")
    for flag, given in (
        ("--packing-algorithm", data.packing_algorithm is not None),
        ("--max-segments", data.max_segments != 1024),
    ):
        if given and not data.pack:
            raise UserError(f"{flag} is about rows that are made now; give --pack with it, or leave it out")
    if data.balance_packs and not data.reset_attention_mask:
        raise UserError(
            "--balance-packs is about packed rows whose samples do not see each other: it needs --reset-attention-mask"
        )
    if data.balance_packs and not data.shuffle:
        raise UserError("--balance-packs and --no-shuffle exclude each other: it chooses the order of the rows")
    if data.max_segments < 2:
        raise UserError(f"--max-segments {data.max_segments} must be at least 2: a sample and the pads")


def _recompute(config: TuneConfig) -> None:
    optimizer = config.optimizer
    if optimizer.recompute_granularity == "full" and optimizer.recompute_method is None:
        raise UserError("--recompute-granularity full needs --recompute-method uniform or block")


def _lora(config: TuneConfig) -> None:
    lora = config.lora
    for module in lora.lora_target_modules:
        if module not in LORA_TARGETS:
            raise UserError(f"--lora-target-modules {module} is no module; give some of: {' '.join(LORA_TARGETS)}")
    for module in lora.lora_modules_to_save:
        if module not in MODULES_TO_SAVE or module in lora.lora_target_modules:
            others = [name for name in MODULES_TO_SAVE if name not in lora.lora_target_modules]
            what = "has adapters" if module in MODULES_TO_SAVE else "is no module"
            raise UserError(f"--lora-modules-to-save {module} {what}; give some of: {' '.join(others)}")
    if lora.lora_r < 1 or lora.lora_alpha < 1:
        raise UserError(f"--lora-r {lora.lora_r} and --lora-alpha {lora.lora_alpha} must be at least 1")
    if not 0 <= lora.lora_dropout < 1:
        raise UserError(f"--lora-dropout {lora.lora_dropout} must be at least 0 and less than 1")
    for option in dataclasses.fields(LoraFlags):
        if not lora.active and getattr(lora, option.name) != option.default:
            flag = "--" + option.name.replace("_", "-")
            raise UserError(f"{flag} needs --lora-target-modules: {' '.join(LORA_TARGETS)}, or some of them")


def _profile(config: TuneConfig) -> None:
    flags = config.profile
    for option in dataclasses.fields(flags):
        if not flags.profile and getattr(flags, option.name) != option.default:
            raise UserError(f"--{option.name.replace('_', '-')} needs --profile")
    if not flags.profile:
        return
    start, end, total = flags.profile_step_start, flags.profile_step_end, config.optimizer.train_iters or 0
    if start >= end:
        raise UserError(f"--profile-step-end {end} must be over --profile-step-start {start}: the trace ends before it")
    if start > total:
        raise UserError(f"--profile-step-start {start} is over --train-iters {total}, so nothing would be traced")
    if flags.profile_save_path is None and config.run.save is None:
        raise UserError("--profile needs --save, or --profile-save-path: the folder for traces")


def _ranks_exist(config: TuneConfig, layout: Layout) -> None:
    for rank in config.profile.profile_ranks:
        if not -1 <= rank < layout.world:
            raise UserError(f"--profile-ranks {rank} is no rank: give some of 0 to {layout.world - 1}, or -1 for all")


def _recomputed_groups_fit(config: TuneConfig, architecture: Architecture, layout: Layout) -> None:
    group = config.optimizer.recompute_num_layers or 1
    for stage in layout.stage_layers(architecture.num_layers):
        if config.optimizer.recompute_method == "uniform" and len(stage) % group:
            raise UserError(
                f"--recompute-num-layers {group} does not divide the {len(stage)} layers of a pipeline stage; give a"
                " divisor, or --recompute-method block"
            )


def _load(config: TuneConfig) -> None:
    if config.run.enable_hf2mg_convert and config.run.load is None:
        raise UserError("--enable-hf2mg-convert needs --load with a Hugging Face folder")
    if config.run.finetune and config.run.load is None:
        raise UserError("--finetune needs --load: the checkpoint whose weights to take")
    run = config.run
    saving = {"--save-interval": run.save_interval, "--keep-last": run.keep_last, "--save-best": run.save_best or None}
    saving |= {"--async-save": run.async_save or None, "--enable-mg2hf-convert": run.enable_mg2hf_convert or None}
    for flag, given in saving.items():
        if given is not None and run.save is None:
            raise UserError(f"{flag} needs --save: the folder for checkpoints")


_FLAG_RULES: tuple[Callable[[TuneConfig], None], ...] = (
    _counts,
    _balance,
    _always_so,
    _query_groups,
    _data_path,
    _train_iters,
    _not_negative,
    _adam,
    _schedule,
    _warmup_fits,
    check_needs,
    _offload,
    _sequence_modes,
    _packs,
    _recompute,
    _lora,
    _profile,
    _load,
)
