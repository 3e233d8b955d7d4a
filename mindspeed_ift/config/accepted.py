"""Flags of MindSpeed-LLM and Megatron-LM scripts that are taken and change nothing: how many values, and why."""

from __future__ import annotations

_ALWAYS = "it is always so for Qwen3"
_CORE = "only Megatron-core models are built"
_KERNEL = "kernels are chosen by the device"
_LOCAL = "layers come from Megatron-core's local specs with our kernels"
_DROPOUT = "Qwen3 has no dropout"

ACCEPTED: dict[str, tuple[int, str]] = {
    "--use-mcore-models": (0, _CORE),
    "--spec": (2, _LOCAL),
    "--transformer-impl": (1, _LOCAL),
    "--norm-topk-prob": (0, "no mixture of experts"),
    "--use-rotary-position-embeddings": (0, _ALWAYS),
    "--position-embedding-type": (1, _ALWAYS),
    "--normalization": (1, _ALWAYS),
    "--swiglu": (0, _ALWAYS),
    "--disable-bias-linear": (0, _ALWAYS),
    "--add-qkv-bias": (0, "the architecture decides"),
    "--attention-dropout": (1, _DROPOUT),
    "--hidden-dropout": (1, _DROPOUT),
    "--initial-loss-scale": (1, "bf16 and fp32 need no loss scale"),
    "--attention-softmax-in-fp32": (0, _ALWAYS),
    "--use-flash-attn": (0, _KERNEL),
    "--use-fused-rmsnorm": (0, _KERNEL),
    "--use-fused-swiglu": (0, _KERNEL),
    "--use-fused-rotary-pos-emb": (0, _KERNEL),
    "--use-ascend-coc": (0, _KERNEL),
    "--no-gradient-accumulation-fusion": (0, _KERNEL),
    "--no-masked-softmax-fusion": (0, _KERNEL),
    "--no-bias-gelu-fusion": (0, _KERNEL),
    "--no-bias-swiglu-fusion": (0, _KERNEL),
    "--no-rope-fusion": (0, _KERNEL),
    "--variable-seq-lengths": (0, "follows from --no-pad-to-seq-lengths"),
    "--is-pairwise-dataset": (0, "only instruction data is trained on"),
    "--ckpt-format": (1, "checkpoints are written as torch files a rank"),
    "--calculate-per-token-loss": (0, "the loss is always per token over the global batch"),
    "--no-check-for-nan-in-loss-and-grad": (0, "a loss that is not finite always stops the run"),
    "--tokenizer-not-use-fast": (0, "fast and slow tokenizers give the same ids"),
    "--attention-mask-type": (1, "causal, per sample where the data is packed"),
    "--dataloader-type": (1, "batches are read from the memory map as they are needed"),
    "--num-workers": (1, "batches are read from the memory map as they are needed"),
    "--kv-head-repeat-before-uly-alltoall": (0, "context parallel has its own rule"),
    "--distributed-timeout": (1, "use --distributed-timeout-minutes"),
    "--log-throughput": (0, "tokens per second are always logged"),
    "--manual-gc": (0, "Python's own collector is left alone"),
    "--manual-gc-interval": (1, "Python's own collector is left alone"),
    "--swap-attention": (0, _KERNEL),
    "--reuse-fp32-param": (0, "main weights are kept in fp32"),
}
