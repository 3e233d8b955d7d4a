"""``npu_fusion_attention`` and its gradient on CPU tensors by the textbook, within the contract.

As on the device, the sums of the softmax are laid out segment by segment, whatever their shape.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.device import contract
from tests.device.recording import record


def _fusion_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = 2147483647,
    next_tockens: int = 2147483647,
    inner_precise: int = 0,
    prefix: Sequence[int] | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    seed: int = 0,
    offset: int = 0,
) -> tuple[Any, ...]:
    options = {**locals()}
    contract.attention(query, key, value, options)
    mode = f"sparse_mode {sparse_mode}" if atten_mask is not None else "no mask"
    record("npu_fusion_attention", f"{input_layout}, {mode}", query)
    out = torch.empty_like(query, dtype=torch.float64)
    shape = contract.softmax_shape(query, input_layout, head_num)
    largest, total = (query.new_empty(shape, dtype=torch.float32) for _ in range(2))
    for part in _segments(query, key, options):
        scores = _scores(part, query, key, options)
        most = scores.amax(-1, keepdim=True)
        weights = (scores - most).exp()
        sums = weights.sum(-1, keepdim=True)
        part.of_query(out).copy_(weights / sums @ part.of_key(value).double())
        part.sums(largest).copy_(most.expand(-1, -1, 8))
        part.sums(total).copy_(sums.expand(-1, -1, 8))
    return out.to(query.dtype), largest, total, query.new_empty(0), 0, 0, 0


def _fusion_attention_grad(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dy: Tensor,
    head_num: int,
    input_layout: str,
    *,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    softmax_max: Tensor | None = None,
    softmax_sum: Tensor | None = None,
    softmax_in: Tensor | None = None,
    attention_in: Tensor | None = None,
    scale_value: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = 2147483647,
    next_tockens: int = 2147483647,
    inner_precise: int = 0,
    seed: int = 0,
    offset: int = 0,
    numels: int = 0,
    prefix: Sequence[int] | None = None,
    actual_seq_qlen: Sequence[int] | None = None,
    actual_seq_kvlen: Sequence[int] | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
) -> tuple[Tensor, ...]:
    options = {**locals(), "scale": scale_value}
    contract.attention(query, key, value, options)
    contract.attention_grad(query, dy, options)
    mode = f"sparse_mode {sparse_mode}" if atten_mask is not None else "no mask"
    record("npu_fusion_attention_grad", f"{input_layout}, {mode}", query, softmax_max)
    grads = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in (query, key, value)]
    for part in _segments(query, key, options):
        scores = _scores(part, query, key, options)
        weights = (scores - part.sums(softmax_max)[..., :1]).exp() / part.sums(softmax_sum)[..., :1]
        grad, out = (part.of_query(tensor).double() for tensor in (dy, attention_in))
        grad_weights = grad @ part.of_key(value).double().mT
        grad_scores = weights * (grad_weights - (grad * out).sum(-1, keepdim=True)) * scale_value
        part.of_query(grads[0]).add_(grad_scores @ part.of_key(key).double())
        part.add_to_key(grads[1], grad_scores.mT @ part.of_query(query).double())
        part.add_to_key(grads[2], weights.mT @ grad)
    of_rest = (query.new_empty(0) for _ in range(_results("npu_fusion_attention_grad") - len(grads)))
    return (*(grad.to(query.dtype) for grad in grads), *of_rest)


class _Segment:
    """Queries and keys that may see each other; tensors of any layout as ``[heads, tokens, size]``."""

    def __init__(self, options: dict[str, Any], row: int, queries: slice, keys: slice) -> None:
        self.layout, self.heads = options["input_layout"], options["head_num"]
        self.size = options["query"].shape[-1] // (self.heads if self.layout in ("BSH", "SBH") else 1)
        self.row, self.queries, self.keys = row, queries, keys

    def of_query(self, tensor: Tensor) -> Tensor:
        """A view of the segment's queries, or of what is like them."""
        return self._view(tensor)[:, self.queries]

    def of_key(self, tensor: Tensor) -> Tensor:
        """The segment's keys, each head as often as queries share it."""
        heads = self._view(tensor)[:, self.keys]
        return heads.repeat_interleave(self.heads // len(heads), 0)

    def add_to_key(self, tensor: Tensor, grad: Tensor) -> None:
        """Add ``[query heads, keys, size]`` to the heads that they share."""
        heads = self._view(tensor)[:, self.keys]
        heads.add_(grad.unflatten(0, (len(heads), -1)).sum(1))

    def sums(self, tensor: Tensor) -> Tensor:
        """A view of a softmax's maximum or sum: ``[heads, queries, 8]``."""
        if self.layout != "TND":
            return tensor[self.row]
        length = self.queries.stop - self.queries.start
        first = self.queries.start * self.heads
        return tensor.view(-1, 8)[first : first + length * self.heads].view(self.heads, length, 8)

    def _view(self, tensor: Tensor) -> Tensor:
        if self.layout == "TND":
            return tensor.transpose(0, 1)
        row = tensor.select(1 if self.layout == "SBH" else 0, self.row)
        if self.layout in ("BSH", "SBH"):
            row = row.unflatten(-1, (-1, self.size))
        return row if self.layout == "BNSD" else row.transpose(0, 1)


def _segments(query: Tensor, key: Tensor, options: dict[str, Any]) -> Iterator[_Segment]:
    layout = options["input_layout"]
    if layout != "TND":
        rows, place = {"BSH": (0, 1), "SBH": (1, 0), "BSND": (0, 1), "BNSD": (0, 2)}[layout]
        for row in range(query.shape[rows]):
            yield _Segment(options, row, slice(0, query.shape[place]), slice(0, key.shape[place]))
        return
    start, first = 0, 0
    for stop, last in zip(options["actual_seq_qlen"], options["actual_seq_kvlen"]):
        if stop > start:
            yield _Segment(options, 0, slice(start, stop), slice(first, last))
        start, first = stop, last


def _scores(part: _Segment, query: Tensor, key: Tensor, options: dict[str, Any]) -> Tensor:
    scores = part.of_query(query).double() @ part.of_key(key).double().mT * options["scale"]
    if options["atten_mask"] is None:
        return scores
    queries, keys = scores.shape[1:]
    mode = options["sparse_mode"]
    contract.require(mode in (2, 3), f"sparse_mode {mode} is not computed here")
    hidden = torch.ones(queries, keys, dtype=torch.bool).triu(1 + (keys - queries if mode == 3 else 0))
    return scores.masked_fill(hidden, -torch.inf)


def _results(name: str) -> int:
    """How many an operator of this torch_npu has: its gradient has one more since there are sinks."""
    return len(getattr(torch.ops.npu, name).default._schema.returns)


class _DifferentiableAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Any, ...]:
        *given, _ = rest
        parameters = list(inspect.signature(_fusion_attention).parameters.values())[3:]
        ctx.options = {parameter.name: value for parameter, value in zip(parameters, given)}
        # An older torch_npu does not know all of them.
        known = {one.name: ctx.options[one.name] for one in parameters if ctx.options[one.name] is not one.default}
        with torch._C._AutoDispatchBelowAutograd():
            results = torch.ops.npu.npu_fusion_attention(query, key, value, **known)
        # The mask too, as torch_npu does: one that was made in inference mode cannot be.
        ctx.save_for_backward(query, key, value, *results[:3], ctx.options["atten_mask"])
        ctx.mark_non_differentiable(*results[1:4])
        return results

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        query, key, value, out, largest, total, mask = ctx.saved_tensors
        same = ("head_num", "input_layout", "actual_seq_qlen", "actual_seq_kvlen", "sparse_mode")
        grads = torch.ops.npu.npu_fusion_attention_grad(
            query,
            key,
            value,
            grad.contiguous(),
            **{name: ctx.options[name] for name in same},
            atten_mask=mask,
            softmax_max=largest,
            softmax_sum=total,
            attention_in=out,
            scale_value=ctx.options["scale"],
        )
        return (*grads[:3], *[None] * (len(ctx.options) + 1))


OPERATORS = {
    "npu_fusion_attention": _fusion_attention,
    "npu_fusion_attention_grad": _fusion_attention_grad,
}
DIFFERENTIABLE = {"npu_fusion_attention": (_fusion_attention, _DifferentiableAttention)}
