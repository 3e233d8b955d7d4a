"""A model that reads prompts once and then a token at a time: keys and values of what it has read are kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed_ift.devices.device import current
from mindspeed_ift.devices.kernels.reference import scaled_dot_products
from mindspeed_ift.inference.layers import PlainLayer, plain_linear, plain_norm
from mindspeed_ift.inference.stages import hand_on, receive
from mindspeed_ift.mcore import tensor_parallel
from mindspeed_ift.model.build import Qwen3Model
from mindspeed_ift.parallel.groups import Groups


class LayerCache:
    """A layer's attention, over the keys and values of all that its rows have read.

    Rows are padded on the right: a pad's key lies where that row's next token will put its own, and until then behind all
    that is asked for.
    """

    def __init__(self) -> None:
        self.keys = self.values = torch.empty(0)

    def start(self, capacity: int) -> None:
        """Forget everything; the next call reads prompts, of whole rows no longer than ``capacity`` when answered."""
        self.capacity, self.filled = capacity, False

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend; ``[S, B, N, D]`` and ``[S, B, G, D]``: whole prompts in the first call, one position a row after it."""
        if not self.filled:
            length, rows, *rest = key.shape
            self.filled = True
            self.keys = key.new_zeros(rows, rest[0], self.capacity, rest[1])
            self.values = torch.zeros_like(self.keys)
            self.keys[:, :, :length], self.values[:, :, :length] = key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3)
            return current().kernels.attention(query, key, value, None)
        if self.mask is None:
            self.keys[:, :, self.longest - 1], self.values[:, :, self.longest - 1] = key[0], value[0]
        else:
            self.keys[self.row, :, self.at], self.values[self.row, :, self.at] = key[0], value[0]
        out = scaled_dot_products(
            query.permute(1, 2, 0, 3),
            self.keys[:, :, : self.longest],
            self.values[:, :, : self.longest],
            attn_mask=self.mask,
        )
        return out.permute(2, 0, 1, 3)

    def place(self, row: Tensor, at: Tensor, longest: int, mask: Tensor | None) -> None:
        """Where each row's next token stands (int64 ``[B]`` both), how many keys there are then, and what is added to their
        scores (``[B, 1, 1, longest]``; None: nothing, and all rows are of that length)."""
        self.row, self.at, self.longest, self.mask = row, at, longest, mask

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, int64."""
        self.keys, self.values = self.keys[rows], self.values[rows]


class Decoder:
    """A model, or this rank's part of it: all ranks that hold parts of one take the same calls in the same order.

    Args:
        model: this rank's stage, in evaluation mode; read through its own weights (`layers.PlainLayer`).
        groups: tensor and pipeline parallel peers; data parallel ones hold models of their own.
    """

    def __init__(self, model: Qwen3Model, groups: Groups) -> None:
        self.model, self.groups, self.device = model, groups, current().torch_device
        self._caches = [LayerCache() for _ in model.decoder.layers]
        self._layers = [
            PlainLayer(layer, cache) for layer, cache in zip(model.decoder.layers, self._caches, strict=True)
        ]
        if model.post_process:
            shared = model.shared_embedding_or_output_weight() if model.share_embeddings_and_output_weights else None
            self._last_norm = plain_norm(model.decoder.final_layernorm)
            self._head = plain_linear(model.output_layer, shared)
        self._lengths: list[int] = []

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Tensor | None:
        """Read prompts, none empty.

        Returns:
            Logits of the token after each, ``[B, vocabulary]``, on the one rank that chooses it.
        """
        self._lengths = [len(prompt) for prompt in prompts]
        longest = max(self._lengths)
        capacity = longest + max_new_tokens
        for cache in self._caches:
            cache.start(capacity)
        places = torch.arange(capacity, device=self.device)
        self.model.rotary_pos_emb.set_positions(places[None])
        self._turns = self.model.rotary_pos_emb()[:, :, 0]  # [2, capacity, 1, D]
        self._mask = torch.zeros(len(prompts), capacity, dtype=self.model.options.dtype, device=self.device)
        self._mask.masked_fill_(places >= self._tensor(self._lengths)[:, None], -torch.inf)
        tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        turns = self._turns[:, :longest, None]
        return self._forward(tokens.to(self.device), turns, self._tensor(self._lengths) - 1)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor | None:
        """Read one token a row; returns the logits of the one after it, as `start` does."""
        at, row = self._tensor(self._lengths), torch.arange(len(tokens), device=self.device)
        self._mask[row, at] = 0
        self._lengths = [length + 1 for length in self._lengths]
        longest = max(self._lengths)
        mask = None if min(self._lengths) == longest else self._mask[:, None, None, :longest]
        for cache in self._caches:
            cache.place(row, at, longest, mask)
        return self._forward(self._tensor(tokens)[:, None], self._turns[:, at][:, None], None)

    def agree(self, tokens: Sequence[int] | None) -> list[int]:
        """What the rank that has logits chose, on every rank; int64 ``[B]`` as a list."""
        if self.groups.layout.tensor * self.groups.layout.pipeline == 1:
            assert tokens is not None
            return list(tokens)
        shared = self._tensor(tokens if tokens is not None else [0] * len(self._lengths))
        dist.broadcast(shared, self.groups.speaker, group=self.groups.collection.mp)
        return shared.tolist()

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only; the others are forgotten."""
        self._lengths = [self._lengths[row] for row in rows]
        kept = self._tensor(rows)
        self._mask = self._mask[kept]
        for cache in self._caches:
            cache.keep(kept)

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)

    def _forward(self, tokens: Tensor, turns: Tensor, last: Tensor | None) -> Tensor | None:
        """Through this rank's layers.

        Args:
            tokens: int64 ``[B, S]``.
            turns: cosines and sines of their angles, ``[2, S, B or 1, 1, D]``.
            last: position of each row whose logits are asked for, int64 ``[B]``; None: there is one.
        """
        if self.model.pre_process:
            hidden = self.model.embedding(tokens, None)
        else:
            hidden = receive(self.model, self.groups, *tokens.shape)
        cosine, sine = turns
        for layer in self._layers:
            hidden = layer(hidden, cosine, sine)
        if not self.model.post_process:
            hand_on(hidden, self.groups)
            return None
        if last is not None:
            hidden = hidden[last, torch.arange(len(last), device=self.device)][None]
        out = self._head(self._last_norm(hidden))
        if self.groups.layout.tensor > 1:
            out = tensor_parallel.gather_from_tensor_model_parallel_region(out, group=self.groups.collection.tp)
        speaks = self.groups.rank == self.groups.speaker
        return out[0, :, : self.model.architecture.vocab_size] if speaks else None
