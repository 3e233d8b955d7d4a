"""Flags of MindSpeed-LLM and Megatron-LM scripts that are no flags here: taken because they change nothing, or refused.

A flag is accepted only if what it asks for is what happens anyway; where that is true of some values only, these are
listed and all others are refused.
"""

from __future__ import annotations

from mindspeed_ift.config.words import Accepted

_ALWAYS = "it is always so for Qwen3"
_CORE = "only Megatron-core models are built"
_KERNEL = "kernels are chosen by the device"
_LOCAL = "layers come from Megatron-core's local specs with our kernels"
_DROPOUT = "Qwen3 has no dropout"
_PREPARED = "data is prepared beforehand, by preprocess_data.py"
_DISPATCH = "it is about the speed of sending tokens to experts, not about the result"
_MEMORY = "it saves memory only, and is not needed"
_CONTEXT = "it is about the speed of context parallelism, not about its result"
_BATCHES = "batches are read from the memory map as they are needed"
_COLLECTOR = "Python's own collector is left alone"
_MASK = "the mask is causal, within each sample where rows are packed"
_MASKS = ("causal", "general")
_ZERO = ("0",)

_MODEL: Accepted = {
    "--use-mcore-models": (0, _CORE),
    "--spec": (2, _LOCAL, ("mindspeed_llm.tasks.models.spec.qwen3_spec layer_spec",)),
    "--transformer-impl": (1, _LOCAL, ("local", "transformer_engine")),
    "--model-type-hf": (1, "only Qwen3 is trained", ("qwen3", "qwen3-moe")),
    "--use-rotary-position-embeddings": (0, _ALWAYS),
    "--position-embedding-type": (1, _ALWAYS, ("rope",)),
    "--rotary-percent": (1, _ALWAYS, ("1.0",)),
    "--normalization": (1, _ALWAYS, ("RMSNorm",)),
    "--swiglu": (0, _ALWAYS),
    "--disable-bias-linear": (0, _ALWAYS),
    "--attention-dropout": (1, _DROPOUT, _ZERO),
    "--hidden-dropout": (1, _DROPOUT, _ZERO),
    "--attention-softmax-in-fp32": (0, _ALWAYS),
}
_EXPERTS: Accepted = {
    "--moe-grouped-gemm": (0, "the experts of a device are always one module"),
    "--moe-token-dispatcher-type": (1, "tokens are always sent all to all", ("alltoall", "alltoall_seq")),
    "--moe-router-dtype": (1, "the router always computes in fp32", ("fp32",)),
    "--moe-router-score-function": (1, _ALWAYS, ("softmax",)),
    "--moe-layer-freq": (1, "config.json says which layers have experts, else all have", ("1", "-1")),
    "--first-k-dense-replace": (1, "config.json says which layers have experts, else all have", ("0", "-1")),
    "--moe-permute-fusion": (0, _KERNEL),
    "--use-fused-moe-token-permute-and-unpermute": (0, _KERNEL),
    "--moe-permutation-async-comm": (0, _DISPATCH),
    "--moe-alltoall-overlap-comm": (0, _DISPATCH),
    "--moe-fb-overlap": (0, _DISPATCH),
    "--moe-zero-memory": (1, _MEMORY),
}
_KERNELS: Accepted = {
    "--use-flash-attn": (0, _KERNEL),
    "--use-fused-rmsnorm": (0, _KERNEL),
    "--use-fused-swiglu": (0, _KERNEL),
    "--use-fused-rotary-pos-emb": (0, _KERNEL),
    "--use-ascend-coc": (0, _KERNEL),
    "--coc-fused-kernel": (0, _KERNEL),
    "--use-ascend-mc2": (0, _KERNEL),
    "--no-gradient-accumulation-fusion": (0, _KERNEL),
    "--gemm-gradient-accumulation-fusion": (0, _KERNEL),
    "--no-masked-softmax-fusion": (0, _KERNEL),
    "--no-bias-gelu-fusion": (0, _KERNEL),
    "--no-bias-swiglu-fusion": (0, _KERNEL),
    "--no-bias-dropout-fusion": (0, _KERNEL),
    "--no-rope-fusion": (0, _KERNEL),
    "--swap-attention": (0, _MEMORY),
    "--reuse-fp32-param": (0, _MEMORY),
    "--recompute-modules": (1, "selective means core attention", ("core_attn",)),
    "--recompute-activation-function": (0, _MEMORY),
}
_TRAINING: Accepted = {
    "--accumulate-allreduce-grads-in-fp32": (0, "gradients are always summed and reduced in fp32"),
    "--lora-fusion": (0, _KERNEL),
    "--lora-register-forward-hook": (1, "inputs of a recomputed layer always keep their gradient"),
    "--calculate-per-token-loss": (
        0,
        "the loss is per token over the global batch unless --loss-reduction asks otherwise",
    ),
    "--no-check-for-nan-in-loss-and-grad": (0, "a step that is not finite is always refused; see --max-skipped-steps"),
    "--overlap-cpu-optimizer-d2h-h2d": (0, "it is about the speed of --optimizer-cpu-offload, not about its result"),
    "--tensorboard-log-interval": (1, "every step is written"),
    "--tensorboard-queue-size": (1, "every step is written as it ends"),
    "--log-memory-to-tensorboard": (0, "memory is always written"),
    "--profile-export-type": (1, "it is the form of a trace on NPU", ("text",)),
    "--use-pytorch-profiler": (0, "traces are made by the device's profiler for torch"),
    "--log-throughput": (0, "tokens per second are always logged"),
    "--manual-gc": (0, _COLLECTOR),
    "--manual-gc-interval": (1, _COLLECTOR),
}
_DATA: Accepted = {
    "--handler-name": (1, _PREPARED),
    "--workers": (1, _PREPARED),
    "--tokenizer-not-use-fast": (0, "fast and slow tokenizers give the same ids"),
    "--tokenizer-padding-side": (1, _ALWAYS, ("right",)),
    "--variable-seq-lengths": (0, "rows are as long as --[no-]pad-to-seq-lengths says"),
    "--attention-mask-type": (1, _MASK, _MASKS),
    "--dataloader-type": (1, _BATCHES, ("single",)),
    "--num-workers": (1, _BATCHES),
    "--no-shared-storage": (0, "no index of the order is written to a disk"),
    "--kv-head-repeat-before-uly-alltoall": (0, _CONTEXT),
    "--cp-window-size": (1, _CONTEXT),
    "--cp-attention-mask-type": (1, _MASK, _MASKS),
    "--megatron-cp-in-bnsd": (0, _CONTEXT),
    "--use-cp-send-recv-overlap": (0, _CONTEXT),
    "--use-fused-ring-attention-update": (0, _CONTEXT),
}

ACCEPTED: Accepted = {**_MODEL, **_EXPERTS, **_KERNELS, **_TRAINING, **_DATA}
"""Of posttrain_gpt.py."""

CONVERT_ACCEPTED: Accepted = {
    **{name: _MODEL[name] for name in ("--use-mcore-models", "--spec", "--transformer-impl")},
    **{name: _EXPERTS[name] for name in ("--moe-grouped-gemm", "--moe-layer-freq", "--first-k-dense-replace")},
    "--model-type": (1, _CORE, ("GPT",)),
    "--tokenizer-model": (1, "the tokenizer's files are copied from the Hugging Face folder"),
    "--save-layer-by-layer": (0, "tensors are always written one by one"),
}
"""Of convert_ckpt.py."""

_FOLDER = "the folder of the tokenizer has it"
_STREAMED = "records are streamed, and all of them packed together; --workers encodes in parallel"
PREPARATION_ACCEPTED: Accepted = {
    "--n-subs": (1, _STREAMED),
    "--streaming": (0, _STREAMED),
    "--tokenizer-not-use-fast": (0, "fast and slow tokenizers give the same ids"),
    "--overwrite-cache": (0, "nothing is cached between runs"),
    "--make-vocab-size-divisible-by": (1, "the model pads its vocabulary, not the data"),
    "--pad-vocab-size-to": (1, "the model pads its vocabulary, not the data"),
    "--dataset-impl": (1, "there is one kind, the memory map"),
    "--vocab-file": (1, _FOLDER),
    "--merge-file": (1, _FOLDER),
    "--keep-newlines": (0, "texts are not split into sentences"),
}
"""Of preprocess_data.py."""

_LOADED = "the folder of --load says which model it is"
_ASKED = "a model that is asked is not trained"
_SIZES = (
    *("--num-layers", "--hidden-size", "--ffn-hidden-size", "--num-attention-heads", "--num-query-groups"),
    *("--kv-channels", "--vocab-size", "--padded-vocab-size", "--make-vocab-size-divisible-by"),
    *("--max-position-embeddings", "--rotary-base", "--norm-epsilon", "--init-method-std"),
    *("--num-experts", "--moe-router-topk", "--moe-ffn-hidden-size"),
)
_KINDS = ("--group-query-attention", "--qk-layernorm", "--untie-embeddings-and-output-weights", "--norm-topk-prob")

ASKING_ACCEPTED: Accepted = {
    **_MODEL,
    **{name: entry for name, entry in _EXPERTS.items() if name != "--moe-token-dispatcher-type"},
    **_KERNELS,
    **dict.fromkeys(_SIZES, (1, _LOADED)),
    **dict.fromkeys(_KINDS, (0, _LOADED)),
    **dict.fromkeys(("--moe-router-load-balancing-type", "--moe-aux-loss-coeff"), (1, _ASKED)),
    **dict.fromkeys(("--no-load-optim", "--no-load-rng", "--sequence-parallel"), (0, _ASKED)),
    "--moe-token-dispatcher-type": (1, _DISPATCH),
    "--expert-model-parallel-size": (1, "each device of a stage has its part of all experts", ("1",)),
    "--seq-length": (1, "there is room for the prompts, whatever their length, and --max-new-tokens"),
    "--bf16": (0, "weights have the type that they are stored in; on the CPU they become fp32"),
    "--ckpt-format": (1, "either format is read"),
    "--exit-on-missing-checkpoint": (0, "there is no answer without one"),
    "--tokenizer-type": (1, _ALWAYS, ("PretrainedFromHF",)),
    "--tokenizer-not-use-fast": (0, "fast and slow tokenizers give the same ids"),
    "--seed": (1, "nothing is drawn"),
    "--no-chat-template": (0, "it is so unless --apply-chat-template is given"),
}
"""Of inference.py and evaluation.py."""

REFUSED: dict[str, str] = {
    "--split-sentences": "texts stay whole; leave it out",
    "--reasoning-effort": "it is about one model's template, which is not there; leave it out",
    "--data-obfuscation": "tokens are written as they are; leave it out",
    "--obf-seed-content": "tokens are written as they are; leave it out",
    "--dataset-dir": "name the files with --input, and their columns with --map-keys",
    "--fp8*": "give --bf16, or nothing for fp32",
    "--moe-intermediate-size": "give --moe-ffn-hidden-size, the width of one expert",
    "--moe-tp-extend-ep": "give --expert-tensor-parallel-size 1, and --expert-model-parallel-size times the tensor"
    " parallel size",
    "--moe-*": "experts are chosen by softmax and top-k as Qwen3's are, and no token is dropped; leave it out",
    "--*shared-expert*": "Qwen3 has no shared experts; is this the line of another model?",
    "--qlora*": "frozen weights are not quantized; leave it out",
    "--qat-*": "weights are trained in the type that they have; leave it out",
    "--fix-router": "each token goes to the experts that the router chooses for it; leave it out",
    "--lu-lora*": "all adapters have one learning rate; leave it out",
    "--add-qkv-bias": "Qwen3 has no biases; is this the line of another model?",
    "--multi-latent-attention": "Qwen3 has no latent attention; is this the line of another model?",
    "--mtp-*": "Qwen3 predicts one token at a time; leave it out",
    "--*rope-scaling*": "positions are not scaled; leave it out",
    "--is-pairwise-dataset": "only instruction data (--stage sft) is trained on",
    "--train-samples": "give --train-iters, the number of optimizer steps",
    "--rampup-batch-size": "the global batch has one size; leave it out",
    "--use-*fsdp*": "give --use-distributed-optimizer to shard the optimizer's state",
    "--cpu-offloading*": "activations can be kept on the host only by TransformerEngine, which is not used; give "
    "--recompute-granularity full to save their memory",
    "--fine-grained-activation-offloading": "activations can be kept on the host only by TransformerEngine, which is not "
    "used; give --recompute-granularity full to save their memory",
    "--use-precision-aware-optimizer": "it needs TransformerEngine's Adam, which is not used; leave it out",
    "--report-to": "name a tracker by --wandb-project, --swanlab-project or --tensorboard-dir; leave it out",
    "--use-swanlab": "give --swanlab-project",
    "--swanlab-mode": "set the environment variable SWANLAB_MODE",
    "--swap-optimizer": "give --optimizer-cpu-offload to keep the optimizer's state on the host",
    "--padded-samples": "rows that do not fill a global batch begin the next epoch's; leave it out",
    "--task": "give --tasks, by the names of lm-evaluation-harness",
    "--task-data-path": "benchmarks bring their questions; give --tasks, by the names of lm-evaluation-harness, or --input",
    "--params-dtype": "weights keep the type that they are stored in; leave it out",
    "--no-save-optim": "a checkpoint always holds what a resume needs; leave it out",
    "--no-save-rng": "a checkpoint always holds what a resume needs; leave it out",
}
"""Patterns of flags that ask for something that is not done here -> why, and what to do."""

OTHER_NAMES: dict[str, str] = {
    "--save-hf": "--enable-mg2hf-convert",
    "--num-layers-in-first-pipeline-stage": "--decoder-first-pipeline-num-layers",
    "--num-layers-in-last-pipeline-stage": "--decoder-last-pipeline-num-layers",
}
"""Another name of a flag, of Megatron's configuration -> that of its command line."""
