"""How the model and the data are spread over devices: sizes, their product, and the coordinates of a rank."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.stages import stage_ranges


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
    """Devices that share each sequence (CP)."""
    context_parallel_algo: Literal["megatron_cp_algo", "ulysses_cp_algo", "hybrid_cp_algo", "kvallgather_cp_algo"] = (
        "megatron_cp_algo"
    )
    """How a sequence is shared when --context-parallel-size is over 1: megatron_cp_algo (ring: keys travel around),
    ulysses_cp_algo (exchange positions for heads), hybrid_cp_algo (a ring of Ulysses groups), kvallgather_cp_algo (each
    device gets all keys)."""
    ulysses_degree_in_cp: int | None = None
    """With hybrid_cp_algo: neighbouring devices of one Ulysses exchange; the rest of the context parallel size is ring."""
    expert_model_parallel_size: int = 1
    """Devices that share the experts of a mixture (EP); they are devices of the other axes too."""
    expert_tensor_parallel_size: int | None = None
    """Devices that share the matrices of each expert (ETP); default: --tensor-model-parallel-size."""
    num_layers_per_virtual_pipeline_stage: int | None = None
    """Layers of one chunk: each pipeline device then holds several, which are run in turn (VPP, interleaved 1F1B)."""
    num_layer_list: str | None = None
    """Layers of each pipeline device, with commas between: 11,13,19,21. Default: as many everywhere."""
    decoder_first_pipeline_num_layers: int | None = None
    """Layers of the first pipeline device; the others share the rest."""
    decoder_last_pipeline_num_layers: int | None = None
    """Layers of the last pipeline device; the others share the rest."""
    noop_layers: str | None = None
    """Numbers, from 0 and with commas between, of layers that do nothing, so that --num-layers, which counts them too,
    divides. None of them is built: the pipeline devices that would hold them hold fewer."""
    use_distributed_optimizer: bool = False
    """Shard optimizer state and main weights over the data parallel devices."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass still runs."""
    overlap_param_gather: bool = False
    """Gather parameters while the forward pass already runs; needs the distributed optimizer."""

    @property
    def model_size(self) -> int:
        """Devices that one copy of the model takes: TP x PP x CP."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism of one run.

    Ranks are numbered tensor fastest, then context, then data, then pipeline (Megatron's order).

    Attributes:
        tensor: tensor parallel size.
        pipeline: pipeline parallel size.
        data: data parallel size, what is left of the world.
        sequence_parallel: whether activations between blocks are split over the tensor axis.
        context: context parallel size.
        ulysses: neighbouring context ranks that exchange positions for heads; divides ``context``.
        gather_keys: the other context ranks gather each other's keys, instead of passing them around a ring.
        chunk_layers: layers of one chunk where a pipeline rank holds several; None: one chunk a rank.
        layer_list: layers of each pipeline rank; empty: as many everywhere.
        first_layers: layers of the first pipeline rank; None: as many as of others.
        last_layers: layers of the last pipeline rank; None: as many as of others.
        noop_layers: see `stages.stage_ranges`.
        expert: expert parallel size. Experts are laid over the ranks of a pipeline stage by an order of their own: expert
            tensor fastest, then expert, then what is left.
        expert_tensor: expert tensor parallel size, a divisor of ``tensor``; None: as ``tensor``.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    sequence_parallel: bool = False
    context: int = 1
    ulysses: int = 1
    gather_keys: bool = False
    chunk_layers: int | None = None
    layer_list: tuple[int, ...] = ()
    first_layers: int | None = None
    last_layers: int | None = None
    noop_layers: tuple[int, ...] = ()
    expert: int = 1
    expert_tensor: int | None = None

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.tensor * self.context * self.data * self.pipeline

    @property
    def replicas(self) -> int:
        """Ranks that hold the same weights: their gradients are summed, and a distributed optimizer is split over them."""
        return self.data * self.context

    @property
    def tensor_of_experts(self) -> int:
        """Ranks that share each expert's matrices."""
        return self.tensor if self.expert_tensor is None else self.expert_tensor

    def shards(self) -> list[tuple[int, int]]:
        """(tensor rank, expert rank) of the ranks of a stage that hold different weights, in the order of ranks."""
        across = math.lcm(self.tensor, self.tensor_of_experts * self.expert)
        return [(one % self.tensor, one // self.tensor_of_experts % self.expert) for one in range(across)]

    @property
    def row_multiple(self) -> int:
        """What a row's length must divide by; rows are padded up to it.

        Context parallel cuts a row into equal parts, ring and key gathering into two chunks a rank; sequence parallel cuts
        each rank's part again.
        """
        ring = self.context // self.ulysses
        chunks = 2 * ring if ring > 1 else 1
        return math.lcm(chunks, self.context * (self.tensor if self.sequence_parallel else 1))

    def stage_layers(self, num_layers: int) -> list[range]:
        """The global, zero-based layer numbers of each stage, in the order in which a token meets them.

        Stage ``s`` lies on pipeline rank ``s % pipeline``, as its chunk ``s // pipeline``.

        Raises:
            UserError: the layers do not divide.
        """
        return stage_ranges(
            num_layers,
            self.pipeline,
            chunk_layers=self.chunk_layers,
            layer_list=self.layer_list,
            first_layers=self.first_layers,
            last_layers=self.last_layers,
            noop_layers=self.noop_layers,
        )

    def chunks(self, num_layers: int) -> int:
        """Stages of each pipeline rank (Megatron's virtual pipeline size)."""
        return len(self.stage_layers(num_layers)) // self.pipeline


def world_size() -> int:
    """Processes that torchrun started, before the world is joined."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def layout_of(flags: LayoutFlags, world_size: int) -> Layout:
    """Turn the flags into a `Layout` for ``world_size`` ranks.

    Raises:
        UserError: sizes below 1, or a world that TP x PP x CP or the experts' sizes do not divide, or a Ulysses degree
            that does not fit.
    """
    tensor, pipeline, context = (
        flags.tensor_model_parallel_size,
        flags.pipeline_model_parallel_size,
        flags.context_parallel_size,
    )
    if tensor < 1 or pipeline < 1 or context < 1:
        raise UserError(
            "--tensor-model-parallel-size, --pipeline-model-parallel-size and --context-parallel-size must be at least 1"
        )
    size = flags.model_size
    if world_size % size:
        raise UserError(
            f"{world_size} processes do not divide by TP {tensor} x PP {pipeline} x CP {context} = {size}; change "
            "--nproc_per_node, --tensor-model-parallel-size, --pipeline-model-parallel-size or --context-parallel-size"
        )
    expert, expert_tensor = flags.expert_model_parallel_size, flags.expert_tensor_parallel_size
    if expert != 1 or expert_tensor is not None:
        _experts_fit(flags, world_size // pipeline)
    return Layout(
        tensor,
        pipeline,
        world_size // size,
        sequence_parallel=flags.sequence_parallel and tensor > 1,
        context=context,
        ulysses=_ulysses_degree(flags),
        gather_keys=flags.context_parallel_algo == "kvallgather_cp_algo" and context > 1,
        chunk_layers=_chunk_layers(flags),
        layer_list=_layer_list(flags),
        first_layers=_end_layers(flags, "decoder_first_pipeline_num_layers"),
        last_layers=_end_layers(flags, "decoder_last_pipeline_num_layers"),
        noop_layers=noop_layers(flags),
        expert=expert,
        expert_tensor=expert_tensor,
    )


def _experts_fit(flags: LayoutFlags, ranks: int) -> None:
    """Refuse sizes that do not divide the ranks of a stage."""
    expert, tensor = flags.expert_model_parallel_size, flags.tensor_model_parallel_size
    own = tensor if flags.expert_tensor_parallel_size is None else flags.expert_tensor_parallel_size
    if expert < 1 or own < 1:
        raise UserError("--expert-model-parallel-size and --expert-tensor-parallel-size must be at least 1")
    if tensor % own:
        raise UserError(
            f"--expert-tensor-parallel-size {own} does not divide --tensor-model-parallel-size {tensor}; give a divisor"
        )
    if ranks % (expert * own):
        raise UserError(
            f"{ranks} processes of a pipeline stage do not divide by EP {expert} x ETP {own} = {expert * own}; change"
            " --expert-model-parallel-size, --expert-tensor-parallel-size, or --nproc_per_node"
        )


def _chunk_layers(flags: LayoutFlags) -> int | None:
    layers = flags.num_layers_per_virtual_pipeline_stage
    if layers is None:
        return None
    if layers < 1:
        raise UserError(f"--num-layers-per-virtual-pipeline-stage {layers} must be at least 1")
    if flags.pipeline_model_parallel_size < 2:
        raise UserError("--num-layers-per-virtual-pipeline-stage needs --pipeline-model-parallel-size over 1")
    if flags.num_layer_list is not None:
        raise UserError("--num-layers-per-virtual-pipeline-stage and --num-layer-list exclude each other; give one")
    return layers


def _layer_list(flags: LayoutFlags) -> tuple[int, ...]:
    if flags.num_layer_list is None:
        return ()
    numbers = [part.strip() for part in flags.num_layer_list.split(",")]
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise UserError(
            f"--num-layer-list {flags.num_layer_list} must be numbers over 0 with commas between: 11,13,19,21"
        )
    return tuple(map(int, numbers))


def _end_layers(flags: LayoutFlags, name: str) -> int | None:
    layers, flag = getattr(flags, name), "--" + name.replace("_", "-")
    if layers is None:
        return None
    if layers < 1:
        raise UserError(f"{flag} {layers} must be at least 1")
    if flags.pipeline_model_parallel_size < 2:
        raise UserError(f"{flag} needs --pipeline-model-parallel-size over 1")
    for other in ("num_layer_list", "num_layers_per_virtual_pipeline_stage"):
        if getattr(flags, other) is not None:
            raise UserError(f"{flag} and --{other.replace('_', '-')} exclude each other; give one")
    return layers


def noop_layers(flags: LayoutFlags) -> tuple[int, ...]:
    """Numbers of the layers that do nothing.

    Raises:
        UserError: they are none, or one is named twice.
    """
    if flags.noop_layers is None:
        return ()
    numbers = [part.strip() for part in flags.noop_layers.split(",")]
    if not all(number.isdecimal() for number in numbers) or len(set(map(int, numbers))) < len(numbers):
        raise UserError(f"--noop-layers {flags.noop_layers} must be different numbers with commas between: 94,95")
    return tuple(sorted(map(int, numbers)))


def _ulysses_degree(flags: LayoutFlags) -> int:
    context, algorithm, degree = flags.context_parallel_size, flags.context_parallel_algo, flags.ulysses_degree_in_cp
    if context == 1:
        return 1
    if algorithm != "hybrid_cp_algo":
        if degree is not None:
            raise UserError(f"--ulysses-degree-in-cp is for --context-parallel-algo hybrid_cp_algo, not {algorithm}")
        return context if algorithm == "ulysses_cp_algo" else 1
    if degree is None or context % degree or not 1 < degree < context:
        raise UserError(
            f"hybrid_cp_algo needs --ulysses-degree-in-cp: a divisor of --context-parallel-size {context} between 1 and "
            f"{context} (given: {degree}); for all or nothing take ulysses_cp_algo or megatron_cp_algo"
        )
    return degree


def padded_vocab_size(vocab_size: int, divisible_by: int, tensor: int) -> int:
    """Rows of the Megatron embedding: ``vocab_size`` rounded up so that every tensor rank holds as many.

    Source: Megatron's ``--make-vocab-size-divisible-by``.
    """
    multiple = divisible_by * tensor
    return (vocab_size + multiple - 1) // multiple * multiple
