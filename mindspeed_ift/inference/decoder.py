"""A model that reads prompts once and then a token at a time: keys and values of what it has read are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as functional
from torch import Tensor

from mindspeed_ift.devices.device import current
from mindspeed_ift.mcore import tensor_parallel
from mindspeed_ift.model.build import Qwen3Model
from mindspeed_ift.parallel.groups import Groups


class LayerCache:
    """A layer's attention, over the keys and values of all that its rows have read.

    Stands in for ``BoundaryAttention.attend``. Rows are padded on the right: a pad's key lies where that row's next
    token will put its own, and until then behind all that is asked for.
    """

    def __init__(self) -> None:
        self.keys = self.values = torch.empty(0)
        self.lengths = torch.empty(0, dtype=torch.int64)

    def start(self, capacity: int) -> None:
        """Forget everything; the next call reads prompts, of whole rows no longer than ``capacity`` when answered."""
        self.capacity, self.filled = capacity, False

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, _: Tensor | None) -> Tensor:
        """Attend; ``[S, B, N, D]`` and ``[S, B, G, D]``: whole prompts in the first call, one position a row after it."""
        if not self.filled:
            length, rows, *rest = key.shape
            self.filled = True
            self.keys = key.new_zeros(rows, rest[0], self.capacity, rest[1])
            self.values = torch.zeros_like(self.keys)
            self.keys[:, :, :length], self.values[:, :, :length] = key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3)
            return current().kernels.attention(query, key, value, None)
        row = torch.arange(len(self.keys), device=key.device)
        self.keys[row, :, self.at] = key[0]
        self.values[row, :, self.at] = value[0]
        out = functional.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            self.keys[:, :, : self.longest],
            self.values[:, :, : self.longest],
            attn_mask=self.seen,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return out.permute(2, 0, 1, 3)

    def place(self, at: Tensor, longest: int, seen: Tensor | None) -> None:
        """Where each row's next token stands (int64 ``[B]``), how many keys there are then, and which of them it sees
        (bool ``[B, 1, 1, longest]``; None: all)."""
        self.at, self.longest, self.seen = at, longest, seen

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, int64."""
        self.keys, self.values = self.keys[rows], self.values[rows]


class Decoder:
    """A model, or this rank's part of it: all ranks of a layout take the same calls in the same order.

    Args:
        model: this rank's stage, in evaluation mode; in calls of this decoder its layers attend through caches.
        groups: tensor and pipeline parallel peers; no other kind of parallelism.
    """

    def __init__(self, model: Qwen3Model, groups: Groups) -> None:
        self.model, self.groups, self.device = model, groups, current().torch_device
        self._attentions = [layer.self_attention.core_attention for layer in model.decoder.layers]
        self._caches = [LayerCache() for _ in self._attentions]
        self._lengths: list[int] = []
        self._speaker = groups.layout.tensor * (groups.layout.pipeline - 1)  # first tensor rank of the last stage

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Tensor | None:
        """Read prompts, none empty.

        Returns:
            Logits of the token after each, ``[B, vocabulary]``, on the one rank that chooses it.
        """
        self._lengths = [len(prompt) for prompt in prompts]
        longest = max(self._lengths)
        for cache in self._caches:
            cache.start(longest + max_new_tokens)
        tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
        asked = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
            asked[row, len(prompt) - 1] = True
        return self._forward(tokens, torch.arange(longest).expand(tokens.shape), asked)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor | None:
        """Read one token a row; returns the logits of the one after it, as `start` does."""
        at = torch.tensor(self._lengths)
        self._lengths = [length + 1 for length in self._lengths]
        longest = max(self._lengths)
        even = min(self._lengths) == longest
        seen = None if even else (torch.arange(longest) <= at[:, None])[:, None, None].to(self.device)
        for cache in self._caches:
            cache.place(at.to(self.device), longest, seen)
        return self._forward(torch.tensor(tokens)[:, None], at[:, None], torch.ones(len(tokens), 1, dtype=torch.bool))

    def agree(self, tokens: Sequence[int] | None) -> list[int]:
        """What the rank that has logits chose, on every rank; int64 ``[B]`` as a list."""
        if self.groups.layout.world == 1:
            assert tokens is not None
            return list(tokens)
        shared = torch.tensor(tokens if tokens is not None else [0] * len(self._lengths), device=self.device)
        dist.broadcast(shared, self._speaker)
        return shared.tolist()

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only; the others are forgotten."""
        self._lengths = [self._lengths[row] for row in rows]
        for cache in self._caches:
            cache.keep(torch.tensor(rows, device=self.device))

    def _forward(self, tokens: Tensor, positions: Tensor, asked: Tensor) -> Tensor | None:
        tokens, positions, asked = (tensor.to(self.device) for tensor in (tokens, positions, asked))
        rank, tensor_size = dist.get_rank(), self.groups.layout.tensor
        if not self.model.pre_process:
            rows, length = tokens.shape
            hidden = torch.empty(
                length, rows, self.model.config.hidden_size, dtype=self.model.options.dtype, device=self.device
            )
            dist.recv(hidden, rank - tensor_size)
            self.model.set_input_tensor(hidden)
        own = [attention.attend for attention in self._attentions]
        self._attend_through(self._caches)
        try:
            out = self.model(tokens, positions, None, loss_mask=asked)
        finally:
            self._attend_through(own)
        if not self.model.post_process:
            dist.send(out.contiguous(), rank + tensor_size)
            return None
        if tensor_size > 1:
            out = tensor_parallel.gather_from_tensor_model_parallel_region(out, group=self.groups.collection.tp)
        return out[:, 0, : self.model.architecture.vocab_size] if rank == self._speaker else None

    def _attend_through(self, ways: Sequence[Any]) -> None:
        for attention, way in zip(self._attentions, ways, strict=True):
            attention.attend = way
