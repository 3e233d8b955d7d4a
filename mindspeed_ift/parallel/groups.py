"""A layout in, this rank's coordinates and process groups out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_ift.config.layout import Layout
from mindspeed_ift.devices.device import Device
from mindspeed_ift.mcore import ProcessGroupCollection, parallel_state, seed_random_streams


@dataclass(frozen=True)
class Groups:
    """Where this process stands in the layout, and whom it talks to.

    Attributes:
        layout: the degrees of parallelism.
        rank: number of this process in the world.
        tensor_rank: position among the tensor parallel peers.
        pipeline_rank: pipeline stage.
        context_rank: position among the context parallel peers.
        expert_rank: which of the experts this rank holds.
        data_rank: position among the data parallel replicas: ranks of one number read the same samples.
        collection: Megatron's process groups, for its constructors.
        chunks: stages of this rank (Megatron's virtual pipeline size).
        owns_world: whether `start` joined the world, so that `stop` leaves it.
    """

    layout: Layout
    rank: int
    tensor_rank: int
    pipeline_rank: int
    context_rank: int
    expert_rank: int
    data_rank: int
    collection: ProcessGroupCollection
    chunks: int = 1
    owns_world: bool = True

    def stage(self, chunk: int) -> int:
        """Number of the stage that is this rank's ``chunk``: 0 embeds tokens, the last computes the loss."""
        return chunk * self.layout.pipeline + self.pipeline_rank

    @property
    def replica_rank(self) -> int:
        """Position among the ranks that hold the same weights: data and context parallel."""
        return self.collection.dp_cp.rank()

    @property
    def model_writer(self) -> bool:
        """Whether this rank writes its model shard: the first of those that hold the same weights does it for all."""
        return self.replica_rank * self.layout.tensor + self.tensor_rank < len(self.layout.shards())

    @property
    def stage_distance(self) -> int:
        """From this rank to the one that holds the same part of the next stage, in ranks."""
        return self.layout.world // self.layout.pipeline

    @property
    def speaker(self) -> int:
        """The rank that speaks for the model that this one is a part of: the first tensor rank of its last stage."""
        ranks_of_model = self.layout.tensor * self.layout.context
        return self.stage_distance * (self.layout.pipeline - 1) + self.data_rank * ranks_of_model

    @property
    def totals_writer(self) -> bool:
        """Whether this rank counts its samples: of the ranks that share them, one that computes their loss."""
        return self.tensor_rank == 0 and self.pipeline_rank == self.layout.pipeline - 1

    def sum_over_world(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks of a few ``values`` of any dtype: all ranks get all and add them, for which HCCL, unlike for
        adding, takes float64."""
        of_ranks = [torch.empty_like(values) for _ in range(self.layout.world)]
        dist.all_gather(of_ranks, values)
        return torch.stack(of_ranks).sum(0)

    def gather(self, value: Any) -> list[Any]:
        """What every rank gives, in the order of ranks; any object that can be pickled."""
        values: list[Any] = [None] * self.layout.world
        dist.all_gather_object(values, value)
        return values

    def say(self, text: str) -> None:
        """Print a line, once for all ranks."""
        if self.rank == 0:
            print(text, flush=True)

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier()


def start(
    layout: Layout,
    device: Device,
    *,
    seed: int,
    chunks: int = 1,
    backend: str | None = None,
    timeout_minutes: int = 30,
) -> Groups:
    """Join the world (``RANK``, ``WORLD_SIZE``, ... as torchrun sets them) and build the groups of ``layout``.

    ``seed`` starts the random generators of the host and of Megatron; ``chunks`` are the stages that each rank holds.
    """
    owns_world = not dist.is_initialized()
    if owns_world:
        timeout = timedelta(minutes=timeout_minutes)
        if "RANK" in os.environ:
            found, rank, size = next(dist.rendezvous("env://", timeout=timeout))
            # torchrun keeps its store over restarts, with the addresses of processes that are gone.
            store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", found)
            dist.init_process_group(backend or device.backend, store=store, rank=rank, world_size=size, timeout=timeout)
        else:  # started without torchrun: a world of one needs no port
            dist.init_process_group(
                backend or device.backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout
            )
    ring = layout.context // layout.ulysses
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
        context_parallel_size=layout.context,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=layout.tensor_of_experts,
        hierarchical_context_parallel_sizes=[layout.ulysses, ring] if 1 < layout.ulysses < layout.context else None,
    )
    torch.manual_seed(seed)  # the host's generator: fresh weights are drawn there, of every rank the same
    seed_random_streams(seed)
    return Groups(
        layout=layout,
        rank=dist.get_rank(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        context_rank=parallel_state.get_context_parallel_rank(),
        expert_rank=parallel_state.get_expert_model_parallel_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
        collection=ProcessGroupCollection.use_mpu_process_groups(),
        chunks=chunks,
        owns_world=owns_world,
    )


def leave() -> None:
    """Take Megatron's groups apart and stay in the world, to build those of another model."""
    parallel_state.destroy_model_parallel()


def stop(groups: Groups) -> None:
    """Take Megatron's groups apart, and leave the world if `start` joined it."""
    parallel_state.destroy_model_parallel()
    if groups.owns_world:
        dist.destroy_process_group()
