"""What the stages of a pipeline receive where micro-batches differ in length.

All ranks of a pipeline read the same rows, so each knows the shape of what comes before it comes: none is sent ahead, and
no host waits for one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from mindspeed_ift.mcore import TAKES_COMMUNICATOR, P2PCommunicator, TransformerConfig, get_schedule_table
from mindspeed_ift.parallel.groups import Groups

Shape = tuple[int, int, int]
"""Positions of this rank, rows, hidden size."""


class KnownShapes(P2PCommunicator):
    """Megatron's communicator, of one pass through its schedule, that asks no peer for the shape of what it receives.

    Args:
        groups: whom this rank talks to.
        config: of the model.
        shapes: of each micro-batch's activations, in their order; gradients have the same.
    """

    def __init__(self, groups: Groups, config: TransformerConfig, shapes: Sequence[Shape]) -> None:
        super().__init__(groups.collection.pp, config)
        chunks, last = groups.chunks, groups.layout.pipeline - 1
        order = get_schedule_table(len(shapes), chunks, config.microbatch_group_size_per_vp_stage)
        self._forward = _received(shapes, order, chunks, around=groups.pipeline_rank == 0)
        self._backward = _received(shapes, order, chunks, around=groups.pipeline_rank == last)

    def _communicate_shapes(
        self, tensor_send_next: Tensor | None, tensor_send_prev: Tensor | None, recv_prev: bool, recv_next: bool
    ) -> tuple[Shape | None, Shape | None]:
        """Shapes of what comes from the stage before, and from the one after; Megatron's name."""
        return next(self._forward) if recv_prev else None, next(self._backward) if recv_next else None


def _received(shapes: Sequence[Shape], order: Sequence[tuple[int, int]], chunks: int, around: bool) -> Iterator[Shape]:
    """Shapes in the order of arrival, which is the order in which the neighbour works.

    Args:
        shapes: of the micro-batches.
        order: (micro-batch, chunk) in the order in which every rank works (backwards with the chunks reversed).
        chunks: of each rank.
        around: what comes, comes from the other end of the pipeline, which keeps what its last chunk makes.
    """
    return (shapes[number] for number, chunk in order if not around or chunk < chunks - 1)


def communication(config: TransformerConfig, groups: Groups, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """What Megatron's schedule is told about the way between stages: nothing, unless micro-batches differ in length.

    Args:
        config: of the model.
        groups: whom this rank talks to.
        sizes: (rows, positions that this context parallel rank holds) of each micro-batch.
    """
    if groups.layout.pipeline == 1 or not config.variable_seq_lengths or not TAKES_COMMUNICATOR:
        return {}
    split = groups.layout.tensor if groups.layout.sequence_parallel else 1
    shapes = [(positions // split, rows, config.hidden_size) for rows, positions in sizes]
    return {"p2p_communicator": KnownShapes(groups, config, shapes), "pg_collection": groups.collection}
