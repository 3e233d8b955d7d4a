"""Attention over boundaries by torch's FlexAttention: one kernel for all samples of a row, written by the compiler.

For a torch without ``varlen_attn`` where flash-attn is not installed. Which blocks of keys a block of queries sees follows
from the boundaries on the host: it goes to the device once for all layers, and no matrix of queries by keys is made.
Parts of a ring are none of it: its backward pass takes no log-sum-exp of a whole.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from mindspeed_ift.devices.kernels import reference
from mindspeed_ift.devices.transfer import upload

# Shapes: B rows, S positions of a row, T tokens, N query heads, G key/value heads, D head size, Q and K blocks of
# queries and of keys.

BLOCK = 128
"""Tokens of a block, as FlexAttention has them unless told otherwise; tokens are filled up to a multiple of it."""
_DTYPES = (torch.bfloat16, torch.float16)
_HEADS = (16, 32, 64, 128, 256)
_BACKEND = "inductor"


def there() -> bool:
    """Whether this torch has it (since 2.5)."""
    return importlib.util.find_spec("torch.nn.attention.flex_attention") is not None


def fits(query: Tensor) -> bool:
    """Whether dtype and head size are those for which its kernels are written."""
    return query.dtype in _DTYPES and query.shape[-1] in _HEADS


def attention(query_SBND: Tensor, key_SBGD: Tensor, value_SBGD: Tensor, boundaries: Tensor | None) -> Tensor:
    """As `reference.attention`, which serves where dtype or head size are none of FlexAttention's."""
    if not fits(query_SBND):
        return reference.attention(query_SBND, key_SBGD, value_SBGD, boundaries)
    length, rows = query_SBND.shape[:2]
    tokens = length * rows
    ends = range(0, tokens + 1, length) if boundaries is None else boundaries.tolist()
    fill = -tokens % BLOCK
    query, key, value = (
        tensor.permute(2, 1, 0, 3).flatten(1, 2)[None] for tensor in (query_SBND, key_SBGD, value_SBGD)
    )
    if fill:
        query, key, value = (functional.pad(tensor, (0, 0, 0, fill)) for tensor in (query, key, value))
    mask = _mask((*ends, tokens + fill), query.device)
    out = _compiled()(query, key, value, block_mask=mask, enable_gqa=query.shape[1] != key.shape[1])
    return out[0, :, :tokens].unflatten(1, (rows, length)).permute(2, 1, 0, 3)


@cache
def _compiled() -> Callable[..., Tensor]:
    """Compiled at its first call for the number of its tokens, and once more, for any, where another number comes."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, backend=_BACKEND)


@lru_cache(maxsize=16)  # every layer of a stage asks for the same; of rows of 256K tokens one takes 64 MiB
def _mask(ends: tuple[int, ...], device: torch.device) -> Any:
    """A BlockMask: within each segment, of the keys up to the query's own.

    Args:
        ends: of the segments, from 0 to a multiple of `BLOCK`.
        device: where it is used.
    """
    from torch.nn.attention.flex_attention import BlockMask

    starts = np.repeat(ends[:-1], np.diff(ends))  # of each token's segment
    with torch.inference_mode(False):  # the backward pass of later calls keeps them too
        blocks = [upload(torch.from_numpy(array), device) for array in _blocks(starts)]
        segments = upload(torch.from_numpy(starts.astype(np.int32)), device)

        def visible(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (key >= segments[query])

        return BlockMask.from_kv_blocks(*blocks, BLOCK_SIZE=BLOCK, mask_mod=visible)


def _blocks(starts_T: np.ndarray) -> tuple[np.ndarray, ...]:
    """For each block of queries: of which blocks of keys it sees a part, and which it sees whole.

    Args:
        starts_T: where each token's segment begins.

    Returns:
        int32, with the two first dimensions of one row and all heads: their number ``[1, 1, Q]``, then which these are
        ``[1, 1, Q, K]``, the others behind them; of the parts, then of the whole.
    """
    first_seen, last_seen = starts_T[::BLOCK], starts_T[BLOCK - 1 :: BLOCK]  # from where the first and last query see
    query, key = np.ogrid[: len(first_seen), : len(first_seen)]
    seen = (key <= query) & ((key + 1) * BLOCK > first_seen[:, None])
    # Segments begin one after another: what the last query sees, all before it see, if they are not of an earlier one.
    whole = (key < query) & (key * BLOCK >= last_seen[:, None])
    found = []
    for blocks in (seen & ~whole, whole):
        order = np.argsort(~blocks, axis=1, kind="stable")
        found += [one.astype(np.int32)[None, None] for one in (blocks.sum(1), order)]
    return tuple(found)
