"""Flags of a training run that would change nothing without another one."""

from __future__ import annotations

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.tuning import OptimizerFlags, TuneConfig


def check_needs(config: TuneConfig) -> None:
    """Refuse a flag without the one that it is about.

    Raises:
        UserError: naming both.
    """
    layout, flags = config.layout, config.optimizer
    full = flags.recompute_granularity == "full"
    for flag, given, needed, there in (
        (
            "--overlap-param-gather",
            layout.overlap_param_gather,
            "--use-distributed-optimizer",
            layout.use_distributed_optimizer,
        ),
        ("--overlap-param-gather", layout.overlap_param_gather, "--overlap-grad-reduce", layout.overlap_grad_reduce),
        ("--recompute-method", flags.recompute_method, "--recompute-granularity full", full),
        ("--recompute-num-layers", flags.recompute_num_layers, "--recompute-granularity full", full),
        (
            "--loss-chunk-size",
            flags.loss_chunk_size != OptimizerFlags().loss_chunk_size,
            "--loss-compute-mode chunk",
            flags.loss_compute_mode == "chunk",
        ),
        (
            "--optimizer-offload-fraction",
            flags.optimizer_offload_fraction != 1,
            "--optimizer-cpu-offload",
            flags.optimizer_cpu_offload,
        ),
        (
            "--ulysses-degree-in-cp",
            (layout.ulysses_degree_in_cp or 1) > 1,
            "--context-parallel-size over 1",
            layout.context_parallel_size > 1,
        ),
    ):
        if given and not there:
            raise UserError(f"{flag} needs {needed}")
