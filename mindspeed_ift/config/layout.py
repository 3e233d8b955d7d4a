"""How the model and the data are spread over devices: sizes, their product, and the coordinates of a rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mindspeed_ift.config.errors import UserError


@dataclass(frozen=True)
class LayoutFlags:
    """Flags that say who holds what."""

    tensor_model_parallel_size: int = 1
    """Devices that share each weight matrix (TP)."""
    pipeline_model_parallel_size: int = 1
    """Devices in a row that each hold some layers (PP)."""
    sequence_parallel: bool = False
    """Split norms and residuals over the tensor parallel devices along the sequence (SP); with TP 1 there is nothing to
    split."""
    context_parallel_size: int = 1
    """Devices that share one sequence (CP). Not yet: only 1."""
    context_parallel_algo: Literal["megatron_cp_algo", "ulysses_cp_algo", "hybrid_cp_algo", "kvallgather_cp_algo"] = (
        "megatron_cp_algo"
    )
    """How a sequence is shared when --context-parallel-size is over 1."""
    expert_model_parallel_size: int = 1
    """Devices that share the experts of a mixture (EP). Not yet: only 1."""
    num_layers_per_virtual_pipeline_stage: int | None = None
    """Layers of one interleaved pipeline piece (VPP). Not yet: leave it out."""
    use_distributed_optimizer: bool = False
    """Shard optimizer state and main weights over the data parallel devices."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass still runs."""
    overlap_param_gather: bool = False
    """Gather parameters while the forward pass already runs; needs the distributed optimizer."""


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism of one run. Ranks are numbered tensor fastest, then data, then pipeline (Megatron's order).

    Attributes:
        tensor: tensor parallel size.
        pipeline: pipeline parallel size.
        data: data parallel size, what is left of the world.
        sequence_parallel: whether activations between blocks are split over the tensor axis.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    sequence_parallel: bool = False

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.tensor * self.pipeline * self.data

    def stage_layers(self, num_layers: int) -> list[range]:
        """The global, zero-based layer numbers each pipeline stage holds.

        Raises:
            UserError: the layers do not divide evenly.
        """
        if num_layers % self.pipeline:
            raise UserError(
                f"{num_layers} layers do not divide over --pipeline-model-parallel-size {self.pipeline}; choose a divisor"
            )
        per_stage = num_layers // self.pipeline
        return [range(stage * per_stage, (stage + 1) * per_stage) for stage in range(self.pipeline)]


def layout_of(flags: LayoutFlags, world_size: int) -> Layout:
    """Turn the flags into a `Layout` for ``world_size`` ranks.

    Raises:
        UserError: sizes below 1, or a world that TP x PP does not divide.
    """
    tensor, pipeline = flags.tensor_model_parallel_size, flags.pipeline_model_parallel_size
    if tensor < 1 or pipeline < 1:
        raise UserError("--tensor-model-parallel-size and --pipeline-model-parallel-size must be at least 1")
    if world_size % (tensor * pipeline):
        raise UserError(
            f"{world_size} processes do not divide by TP {tensor} x PP {pipeline} = {tensor * pipeline}; "
            "change --nproc_per_node, --tensor-model-parallel-size or --pipeline-model-parallel-size"
        )
    return Layout(tensor, pipeline, world_size // (tensor * pipeline), flags.sequence_parallel and tensor > 1)


def padded_vocab_size(vocab_size: int, divisible_by: int, tensor: int) -> int:
    """Rows of the Megatron embedding: ``vocab_size`` rounded up so that every tensor rank holds as many.

    Source: Megatron's ``--make-vocab-size-divisible-by``.
    """
    multiple = divisible_by * tensor
    return (vocab_size + multiple - 1) // multiple * multiple
