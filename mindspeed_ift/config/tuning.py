"""Every option of a training run, grouped; `TuneConfig` is the whole command line of ``posttrain_gpt.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mindspeed_ift.config.data import PackingAlgorithm
from mindspeed_ift.config.layout import LayoutFlags
from mindspeed_ift.config.lora import LoraFlags
from mindspeed_ift.config.profiling import ProfileFlags
from mindspeed_ift.config.tracking import TrackingFlags

LossReduction = Literal["token", "sample", "turn", "micro-batch"]
"""What counts alike in the loss: see `OptimizerFlags.loss_reduction`."""


@dataclass(frozen=True)
class ModelFlags:
    """Which architecture: from a preset, from the Hugging Face folder that is loaded, or spelled out as in Megatron."""

    preset: str | None = None
    """Architecture by name: qwen3-0.6b, 1.7b, 4b, 8b, 14b, 32b, 30b-a3b, 235b-a22b."""
    hf_cfg_dir: Path | None = None
    """Hugging Face folder whose config.json describes the model."""
    num_layers: int | None = None
    """Transformer layers."""
    hidden_size: int | None = None
    """Width of the residual stream."""
    ffn_hidden_size: int | None = None
    """Width of the feed-forward block."""
    num_attention_heads: int | None = None
    """Query heads."""
    group_query_attention: bool | None = None
    """Share key and value heads among query heads (always so when --num-query-groups is given)."""
    num_query_groups: int | None = None
    """Key and value heads."""
    kv_channels: int | None = None
    """Size of one head."""
    qk_layernorm: bool | None = None
    """RMSNorm on every query and key head, as Qwen3 has it."""
    vocab_size: int | None = None
    """Rows of the embedding before padding; default: the tokenizer's."""
    padded_vocab_size: int | None = None
    """Rows of the embedding, given outright (MindSpeed-LLM's flag)."""
    make_vocab_size_divisible_by: int = 1
    """Pad the embedding to this times the tensor parallel size."""
    max_position_embeddings: int | None = None
    """Longest context the model is meant for; a model that is loaded or named keeps its own."""
    rotary_base: float | None = None
    """Base of the rotary frequencies."""
    norm_epsilon: float | None = None
    """Epsilon of every RMSNorm."""
    untie_embeddings_and_output_weights: bool | None = None
    """The output layer has weights of its own."""
    init_method_std: float | None = None
    """Standard deviation of fresh weights."""
    num_experts: int | None = None
    """Experts of a layer (a mixture of experts)."""
    moe_router_topk: int | None = None
    """Experts of a token."""
    moe_ffn_hidden_size: int | None = None
    """Width of one expert."""
    norm_topk_prob: bool | None = None
    """The weights of a token's experts are made to sum up to one, as Qwen3 has it."""


@dataclass(frozen=True)
class TrainingDataFlags:
    """Which samples, and how they become batches."""

    data_path: tuple[str, ...] = ()
    """Prefix of the indexed dataset: the --output-prefix of preprocess_data.py, without _packed_...; of several, weight and
    prefix in turn (0.3 data/a 0.7 data/b), or prefixes alone, which takes as many samples as each has."""
    split: str = "100,0,0"
    """Shares of training, validation and test data: contiguous ranges of each dataset."""
    valid_data_path: tuple[str, ...] = ()
    """Prefix of an indexed dataset to evaluate on, instead of a share of --data-path; or several, as there."""
    seq_length: int = 4096
    """Row length: every row when padded or packed, the longest allowed with --no-pad-to-seq-lengths."""
    pad_to_seq_lengths: bool = True
    """Pad every row to --seq-length. --no-pad-to-seq-lengths pads a micro-batch to its longest sample."""
    pad_to_multiple_of: int = 8
    """With --no-pad-to-seq-lengths: round the length up to this (and to what the layout needs)."""
    reset_attention_mask: bool = False
    """The dataset is packed: attention stays within each sample of a row."""
    reset_position_ids: bool = False
    """With packed rows: positions start again at each sample."""
    neat_pack: bool = False
    """The packed dataset stores its boundaries (MindSpeed-LLM's flag; recognized anyway)."""
    pack: bool = False
    """Pack the dataset's single samples into rows of --seq-length as the run starts; one packed already stays as it
    is."""
    pack_index: Path | None = None
    """Rows of the dataset's single samples: a file that repack_dataset.py wrote."""
    packing_algorithm: PackingAlgorithm | None = None
    """With --pack: which samples share a row; see preprocess_data.py. Default: greedy-knapsack, with --balance-packs
    balanced."""
    max_segments: int = 1024
    """With --pack: most segments of a row, its pads being one; see preprocess_data.py."""
    balance_packs: bool = False
    """Deal packed rows of like attention cost to the data parallel ranks, so that none waits for another."""
    cut_max_seqlen: bool = False
    """Cut an over-long sample at the end, instead of in proportion per turn."""
    cut_token: bool = True
    """--no-cut-token: an over-long sample is an error instead of being cut."""
    shuffle: bool = True
    """--no-shuffle: take the samples in the order of the dataset."""
    tokenizer_type: Literal["PretrainedFromHF"] = "PretrainedFromHF"
    """Kind of tokenizer; Hugging Face's is the only one."""
    tokenizer_name_or_path: str | None = None
    """Hugging Face tokenizer folder; default: the one the dataset was made with."""
    prompt_type: str | None = None
    """Template the dataset was made with; default: what its manifest says."""
    prompt_type_path: str | None = None
    """File of that template, if it is not a built-in one; default: what the manifest says."""
    enable_thinking: Literal["true", "false", "none"] | None = None
    """Thinking mode the dataset was made with; default: what its manifest says."""


@dataclass(frozen=True)
class OptimizerFlags:
    """How weights change."""

    micro_batch_size: int = 1
    """Samples (or packed rows) a device takes at once."""
    global_batch_size: int | None = None
    """Samples (or packed rows) of one optimizer step; default: micro batch x data parallel size."""
    train_iters: int | None = None
    """Optimizer steps."""
    lr: float = 1e-5
    """Highest learning rate."""
    min_lr: float = 0.0
    """Lowest learning rate of the schedule."""
    lr_decay_style: Literal["constant", "linear", "cosine"] = "linear"
    """Shape of the schedule after warm-up."""
    lr_decay_iters: int | None = None
    """Steps until --min-lr is reached; default: --train-iters."""
    lr_warmup_fraction: float | None = None
    """Warm-up steps as a share of the decay steps."""
    lr_warmup_iters: int = 0
    """Warm-up steps."""
    lr_warmup_init: float = 0.0
    """Learning rate at which the warm-up starts."""
    weight_decay: float = 0.01
    """Decoupled weight decay (not on norms and biases)."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.999
    """Decay of the second moment."""
    adam_eps: float = 1e-8
    """Epsilon of Adam."""
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 clips nothing."""
    optimizer_cpu_offload: bool = False
    """Keep the optimizer's moments on the host and update there; needs --bf16 and
    --use-distributed-optimizer."""
    optimizer_offload_fraction: float = 1.0
    """Share of the parameters, counted in elements, for which --optimizer-cpu-offload does so."""
    bf16: bool = False
    """Weights and activations in bfloat16, gradients and main weights in fp32. Without it everything is fp32."""
    fp16: bool = False
    """Weights and activations in fp16, gradients and main weights in fp32; the loss is scaled so that small gradients are
    not lost."""
    loss_scale: float | None = None
    """With --fp16: scale the loss by this always; default: by as much as gradients allow."""
    initial_loss_scale: float = 4096.0
    """With --fp16: the loss scale of the first step. The loss of a micro-batch is a sum, so that the scale settles at that
    of systems which take a mean, divided by the learnt tokens of a micro-batch."""
    min_loss_scale: float = 2.0**-10
    """With --fp16: lowest loss scale; a step that overflows there is refused."""
    loss_scale_window: int = 1000
    """With --fp16: steps without overflow after which the loss scale doubles."""
    hysteresis: int = 2
    """With --fp16: steps that overflow before the loss scale is halved."""
    moe_router_load_balancing_type: Literal["aux_loss", "none"] = "aux_loss"
    """What keeps experts equally busy: a loss for unequal load in each layer and micro-batch, or nothing."""
    moe_aux_loss_coeff: float = 0.0
    """What that loss is multiplied by; 0: it is left out."""
    seed: int = 1234
    """Seed of weights and of the order of samples."""
    loss_reduction: LossReduction = "token"
    """Mean over the learnt tokens of the global batch; or over its samples, or the turns of these (answers, that is), each
    the mean of its learnt tokens; or over the micro-batches, as MindSpeed-LLM does."""
    loss_compute_mode: Literal["default", "chunk"] = "default"
    """Logits never exist for all learnt tokens at once: chunk takes --loss-chunk-size, default what 64 MiB hold."""
    loss_chunk_size: int = 1024
    """Learnt tokens whose logits exist at once, with --loss-compute-mode chunk."""
    recompute_granularity: Literal["full", "selective"] | None = None
    """Recompute activations in the backward pass: whole layers, or core attention only."""
    recompute_method: Literal["uniform", "block"] | None = None
    """With full: recompute every group of layers (uniform) or the first layers (block)."""
    recompute_num_layers: int | None = None
    """Layers of one group (uniform), or recomputed layers of a stage (block)."""


@dataclass(frozen=True)
class RunFlags:
    """Where a run starts from, what it leaves behind, and what it says."""

    load: Path | None = None
    """Checkpoint folder to resume from, or a Hugging Face folder with --enable-hf2mg-convert."""
    enable_hf2mg_convert: bool = False
    """--load is a Hugging Face folder."""
    exit_on_missing_checkpoint: bool = False
    """--load must hold a checkpoint, even if it is the --save of this run, which may be empty at its first start."""
    finetune: bool = False
    """Take only the weights of --load: step 0, fresh optimizer."""
    load_optim: bool = True
    """--no-load-optim: fresh optimizer state."""
    load_rng: bool = True
    """--no-load-rng: fresh random state."""
    check_data: bool = True
    """--no-check-data: go on from a checkpoint although the data, or a flag that decides which samples come when, is not
    what it was trained with."""
    override_opt_param_scheduler: bool = False
    """Go on from a checkpoint with another learning rate, schedule, weight decay, ... than it was trained with."""
    save: Path | None = None
    """Folder for checkpoints, metrics.jsonl and loss.png. With it SIGTERM (and the first Ctrl-C) ends the step, saves and
    exits with 0."""
    save_interval: int | None = None
    """Steps between checkpoints; the last step is always saved."""
    ckpt_format: Literal["torch_dist", "torch"] = "torch_dist"
    """torch_dist: tensors in parts that any layout goes on from. torch: a file a rank (iter_*/mp_rank_*), for the same
    layout. Either is read by --load, whatever is given here."""
    enable_mg2hf_convert: bool = False
    """Write a Hugging Face folder too (--save-hf), mg2hf_iterationN in --save, after each checkpoint: one process converts
    it, adapters merged, while the others wait. --keep-last does not delete these."""
    async_save: bool = False
    """Write checkpoints while training goes on; until it is written, a copy of one stays in the host's memory."""
    keep_last: int | None = None
    """Keep so many of the newest checkpoints of --save; older ones are deleted once a new one is whole. Default: all."""
    max_skipped_steps: int = 0
    """Go on after so many steps whose loss or gradient norm is not finite; they move no weight, and --save gets the
    samples of each. 0: the first such step stops the run."""
    eval_interval: int = 1000
    """Steps between evaluations, on --valid-data-path or the second share of --split."""
    eval_iters: int = 10
    """Global batches of one evaluation; 0 evaluates nothing."""
    early_stopping_patience: int | None = None
    """Save and stop after so many evaluations without a lower loss."""
    save_best: bool = False
    """Save after each evaluation with the lowest loss so far; best.txt in --save names its step, and --keep-last spares
    it."""
    exit_interval: int | None = None
    """Stop after this step, without saving (to try a restart)."""
    log_interval: int = 1
    """Steps between progress lines."""
    stage: Literal["sft"] = "sft"
    """Kind of tuning; only sft."""
    is_instruction_dataset: bool = True
    """The dataset holds input_ids, attention_mask and labels (always so)."""
    distributed_backend: Literal["gloo", "nccl", "hccl"] | None = None
    """Collective backend; default, and nccl: the device's own."""
    distributed_timeout_minutes: int = 30
    """How long a step, a save, or a global batch of an evaluation may take: then each rank writes its stack to
    --save/hang_*, and the run ends. A collective may wait a minute longer for its peers."""
    deterministic_mode: bool = False
    """Run only operations that give the same bits each time they are given the same, and stop at one that has no such form;
    slower. The same flags on the same devices then end in the same weights."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""

    @property
    def collective_backend(self) -> str | None:
        """None for the device's own, which scripts for every device call nccl."""
        return None if self.distributed_backend == "nccl" else self.distributed_backend


@dataclass(frozen=True)
class TuneConfig:
    """The whole command line of a training run."""

    config: Path | None = None
    """YAML file of flags; a flag on the command line wins."""
    model: ModelFlags = field(default_factory=ModelFlags)
    layout: LayoutFlags = field(default_factory=LayoutFlags)
    data: TrainingDataFlags = field(default_factory=TrainingDataFlags)
    optimizer: OptimizerFlags = field(default_factory=OptimizerFlags)
    lora: LoraFlags = field(default_factory=LoraFlags)
    run: RunFlags = field(default_factory=RunFlags)
    tracking: TrackingFlags = field(default_factory=TrackingFlags)
    profile: ProfileFlags = field(default_factory=ProfileFlags)
