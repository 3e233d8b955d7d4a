"""Which positions of a row a context parallel rank holds."""

from __future__ import annotations

import torch
from torch import Tensor

from mindspeed_ift.config.layout import Layout


def local_positions(length: int, layout: Layout, context_rank: int) -> Tensor:
    """Positions, int64 ``[length / CP]`` on the host, that one rank holds of a row of ``length`` tokens.

    With causal attention late positions cost more than early ones, so where each rank computes for its own queries
    (ring, gathered keys) the row is cut into two chunks a rank and rank ``r`` takes the ``r``-th from the front and from the
    back (zigzag). The ranks of a Ulysses exchange hold neighbouring parts of what the exchange puts together again.

    Args:
        length: tokens of a row, a multiple of `Layout.row_multiple`.
        layout: the degrees of parallelism.
        context_rank: position among the context parallel peers, Ulysses fastest.
    """
    rank, part = divmod(context_rank, layout.ulysses)
    ranks = layout.context // layout.ulysses
    positions = torch.arange(length)
    if ranks > 1:
        chunks = positions.chunk(2 * ranks)
        positions = torch.cat([chunks[rank], chunks[2 * ranks - 1 - rank]])
    return positions.chunk(layout.ulysses)[part]
