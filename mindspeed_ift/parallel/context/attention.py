"""The attention of a layer under context parallelism: which algorithm, over which groups."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from mindspeed_ift.config.layout import Layout
from mindspeed_ift.devices.kernels.table import Kernels
from mindspeed_ift.mcore import ProcessGroupCollection
from mindspeed_ift.parallel.context.gather import gathered_attention
from mindspeed_ift.parallel.context.ring import ring_attention
from mindspeed_ift.parallel.context.ulysses import ulysses_attention

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Query, key, value ``[S, B, heads, D]`` and boundaries of whole rows -> ``[S, B, N, D]``."""


def choose_attention(communication: str | None, collection: ProcessGroupCollection, kernels: Kernels) -> Attention:
    """The attention over the group's share of each row.

    Args:
        communication: Megatron's ``cp_comm_type``, see `communication_type`; None without context parallelism.
        collection: Megatron's process groups.
        kernels: the device's.
    """
    if communication is None:
        return kernels.attention
    if communication == "a2a":
        return partial(ulysses_attention, group=collection.cp, inner=kernels.attention)
    if communication == "a2a+p2p":
        exchange, ring = collection.hcp
        inner = partial(ring_attention, group=ring, kernels=kernels)
        return partial(ulysses_attention, group=exchange, inner=inner)
    parts = {"p2p": ring_attention, "all_gather": gathered_attention}
    return partial(parts[communication], group=collection.cp, kernels=kernels)


def communication_type(layout: Layout) -> str | None:
    """Megatron's name of the layout's algorithm, as its ``cp_comm_type`` takes it."""
    if layout.context == 1:
        return None
    if layout.gather_keys:
        return "all_gather"
    return {1: "p2p", layout.context: "a2a"}.get(layout.ulysses, "a2a+p2p")
