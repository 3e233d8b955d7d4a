"""Kernels of torch_npu for Ascend, each equal to its twin in `reference`.

Operators get tensors by position, because their names differ among torch_npu's versions, and all else by keyword; only
arguments that every version from 2.1 on has are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mindspeed_ift.devices.kernels import reference
from mindspeed_ift.devices.kernels.table import Kernel, Offer

# Shapes: B rows, S positions of a row, T tokens, N query heads, G key/value heads, D head size.

MOST_SEGMENTS = 1024
"""Segments in one call of attention, as its documentation says for rows of several lengths; more take several calls."""

_MASK_SIZE = 2048
_GROUPS_OF_ROWS, _GROUPS_OF_COLUMNS = 0, 2  # group_type: the axis of the left matrix that the groups divide
_CAUSAL = 3  # sparse_mode: the last query of a segment sees its last key (aligned at the bottom right)


def attention(query_SBND: Tensor, key_SBGD: Tensor, value_SBGD: Tensor, boundaries: Tensor | None) -> Tensor:
    """As `reference.attention`: fixed rows as they lie in memory (SBH), segments as rows of tokens (TND)."""
    heads, size = query_SBND.shape[2:]
    if boundaries is None:
        rows = [tensor.flatten(2) for tensor in (query_SBND, key_SBGD, value_SBGD)]
        out = _npu().npu_fusion_attention(
            *rows, head_num=heads, input_layout="SBH", scale=size**-0.5, **_mask(True, query_SBND.device)
        )[0]
        return out.unflatten(2, (heads, size))
    ends = boundaries.tolist()
    tokens = [tensor.transpose(0, 1).flatten(0, 1) for tensor in (query_SBND, key_SBGD, value_SBGD)]
    parts = [_attend(*_tokens_of(call, *tokens), call, causal=True)[0] for call in _calls(ends, ends)]
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out.unflatten(0, (query_SBND.shape[1], -1)).transpose(0, 1)


def attention_forward(
    query_TND: Tensor,
    key_TGD: Tensor,
    value_TGD: Tensor,
    query_ends: Sequence[int],
    key_ends: Sequence[int],
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """As `blocks.attention_forward`."""
    outs, sums = [], []
    for call in _calls(query_ends, key_ends):
        out, largest, total = _attend(*_tokens_of(call, query_TND, key_TGD, value_TGD), call, causal)[:3]
        outs.append(out)
        sums.append(call.by_token(largest[..., 0] + total[..., 0].log()))
    return (outs[0], sums[0]) if len(outs) == 1 else (torch.cat(outs), torch.cat(sums))


def attention_backward(
    grad_TND: Tensor,
    query_TND: Tensor,
    key_TGD: Tensor,
    value_TGD: Tensor,
    out_TND: Tensor,
    lse_TN: Tensor,
    query_ends: Sequence[int],
    key_ends: Sequence[int],
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `blocks.attention_backward`.

    The operator divides ``exp(score - maximum)`` by a sum: with the log-sum-exp of the merged attention for the maximum
    and one for the sum, these are the weights of the whole.
    """
    parts = []
    for call in _calls(query_ends, key_ends):
        largest = call.by_segment(lse_TN[call.queries])[..., None].expand(-1, -1, 8).contiguous()
        grads = _npu().npu_fusion_attention_grad(
            *_tokens_of(call, query_TND, key_TGD, value_TGD),
            grad_TND[call.queries].contiguous(),
            head_num=query_TND.shape[1],
            input_layout="TND",
            softmax_max=largest,
            softmax_sum=torch.ones_like(largest),
            attention_in=out_TND[call.queries].contiguous(),
            scale_value=query_TND.shape[-1] ** -0.5,
            actual_seq_qlen=list(call.query_ends),
            actual_seq_kvlen=list(call.key_ends),
            **_mask(causal, query_TND.device),
        )
        parts.append([grad.float() for grad in grads[:3]])
    query, key, value = (grads[0] if len(grads) == 1 else torch.cat(grads) for grads in zip(*parts, strict=True))
    return query, key, value


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """As `reference.rms_norm`."""
    return _npu().npu_rms_norm(hidden, weight, epsilon=epsilon)[0]


def swiglu(gate_and_up: Tensor) -> Tensor:
    """As `reference.swiglu`; the operator takes nothing empty, which an expert without tokens is."""
    if not gate_and_up.numel():
        return reference.swiglu(gate_and_up)
    return _npu().npu_swiglu(gate_and_up.contiguous(), dim=-1)


def rotary(tensor_SBND: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """As `reference.rotary`: layout SBND with turns S11D or SB1D."""
    return _npu().npu_rotary_mul(tensor_SBND.contiguous(), cosine, sine)


def grouped_matmul(tokens_TI: Tensor, weights_EIO: Tensor, counts: Sequence[int]) -> Tensor:
    """As `reference.grouped_matmul`; the operator takes nothing empty, which a rank's experts can be."""
    if not len(tokens_TI):
        return reference.grouped_matmul(tokens_TI, weights_EIO, counts)
    ends = torch.tensor(counts).cumsum(0).to(tokens_TI.device)
    return _GroupedMatmul.apply(tokens_TI.contiguous(), weights_EIO, ends)


class _GroupedMatmul(torch.autograd.Function):
    """The operator has no gradient of its own; it serves for the products of the backward pass too."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, weights, ends)
        return _grouped(tokens, weights, ends, group_type=_GROUPS_OF_ROWS)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        tokens, weights, ends = ctx.saved_tensors
        grad = grad.contiguous()
        grad_tokens = _grouped(grad, weights.transpose(1, 2), ends, group_type=_GROUPS_OF_ROWS)
        grad_weights = _grouped(tokens.t(), grad, ends, group_type=_GROUPS_OF_COLUMNS)
        return grad_tokens, grad_weights.view_as(weights), None


def _grouped(left: Tensor, right: Tensor, ends: Tensor, group_type: int) -> Tensor:
    (product,) = _npu().npu_grouped_matmul(
        [left], [right], group_list=ends, split_item=3, group_type=group_type, group_list_type=0
    )
    return product


def permute(tokens_TH: Tensor, experts_TK: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.permute`."""
    if not len(tokens_TH):
        return reference.permute(tokens_TH, experts_TK)
    return _npu().npu_moe_token_permute(tokens_TH, experts_TK)


def unpermute(copies_CH: Tensor, places_C: Tensor, experts: int) -> Tensor:
    """As `reference.unpermute`; without weights the operator would put copies in order and not add them."""
    if not len(copies_CH):
        return reference.unpermute(copies_CH, places_C, experts)
    ones = copies_CH.new_ones(len(copies_CH) // experts, experts)
    return _npu().npu_moe_token_unpermute(copies_CH, places_C, probs=ones)


@dataclass(frozen=True)
class _Call:
    """One call of attention on some neighbouring segments.

    Attributes:
        queries: tokens among all queries.
        keys: tokens among all keys.
        query_ends: ends of the segments among these queries, without the leading 0.
        key_ends: ends among these keys.
    """

    queries: slice
    keys: slice
    query_ends: tuple[int, ...]
    key_ends: tuple[int, ...]

    def by_token(self, sums_TN: Tensor) -> Tensor:
        """``[T, N]`` in name only, in memory ``[N, length]`` for one segment after the other, to ``[T, N]``."""
        return sums_TN.reshape(-1)[_places(self.query_ends, sums_TN.shape[1], sums_TN.device)]

    def by_segment(self, sums_TN: Tensor) -> Tensor:
        """The way back of `by_token`."""
        places = _places(self.query_ends, sums_TN.shape[1], sums_TN.device)
        return sums_TN.new_empty(places.numel()).scatter_(0, places.flatten(), sums_TN.flatten()).view_as(sums_TN)


def _attend(query: Tensor, key: Tensor, value: Tensor, call: _Call, causal: bool) -> tuple[Any, ...]:
    return _npu().npu_fusion_attention(
        query,
        key,
        value,
        head_num=query.shape[1],
        input_layout="TND",
        scale=query.shape[-1] ** -0.5,
        actual_seq_qlen=list(call.query_ends),
        actual_seq_kvlen=list(call.key_ends),
        **_mask(causal, query.device),
    )


def _tokens_of(call: _Call, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return query[call.queries].contiguous(), key[call.keys].contiguous(), value[call.keys].contiguous()


def _calls(query_ends: Sequence[int], key_ends: Sequence[int]) -> Iterator[_Call]:
    """The segments that have tokens, no more than the operator takes at once."""
    pairs = list(zip(query_ends, key_ends, strict=True))
    kept = [pairs[0], *(after for before, after in zip(pairs, pairs[1:]) if after != before)]
    for first in range(0, len(kept) - 1, MOST_SEGMENTS):
        part = kept[first : first + MOST_SEGMENTS + 1]
        (query_start, key_start), (query_stop, key_stop) = part[0], part[-1]
        yield _Call(
            queries=slice(query_start, query_stop),
            keys=slice(key_start, key_stop),
            query_ends=tuple(end - query_start for end, _ in part[1:]),
            key_ends=tuple(end - key_start for _, end in part[1:]),
        )


def _mask(causal: bool, device: torch.device) -> dict[str, Any]:
    """What the operator wants to hear of the mask: the same small triangle whatever the lengths, or nothing at all."""
    return {"atten_mask": _triangle(device), "sparse_mode": _CAUSAL} if causal else {}


@lru_cache(maxsize=8)
def _triangle(device: torch.device) -> Tensor:
    """True where a key is hidden from a query."""
    with torch.inference_mode(False):  # the backward pass of later calls keeps it too
        return torch.ones(_MASK_SIZE, _MASK_SIZE, dtype=torch.bool, device=device).triu(1)


@lru_cache(maxsize=16)  # every layer of a stage asks for the same
def _places(ends: tuple[int, ...], heads: int, device: torch.device) -> Tensor:
    """Where the operator keeps the sum of a token and a head: int64 ``[T, N]``.

    It gives its sums the shape ``[T, N, 8]`` but lays them out as ``[N, length, 8]``, segment after segment, unless told
    otherwise by an argument that only its later versions know.
    """
    starts = torch.tensor((0, *ends[:-1]))
    lengths = torch.tensor(ends) - starts
    starts, lengths = (tensor.repeat_interleave(lengths).to(device)[:, None] for tensor in (starts, lengths))
    tokens = torch.arange(ends[-1], device=device)[:, None]
    return heads * starts + torch.arange(heads, device=device) * lengths + tokens - starts


def _npu() -> Any:
    import torch_npu

    return torch_npu


_ATTENTION_ARGUMENTS = "head_num input_layout atten_mask actual_seq_qlen actual_seq_kvlen sparse_mode".split()
NEEDED: dict[str, dict[str, list[str]]] = {
    "attention": {
        "npu_fusion_attention": [*_ATTENTION_ARGUMENTS, "scale"],
        "npu_fusion_attention_grad": [
            *_ATTENTION_ARGUMENTS,
            *"softmax_max softmax_sum attention_in scale_value".split(),
        ],
    },
    "rms_norm": {"npu_rms_norm": ["epsilon"], "npu_rms_norm_backward": []},
    "swiglu": {"npu_swiglu": ["dim"], "npu_swiglu_backward": []},
    "rotary": {"npu_rotary_mul": [], "npu_rotary_mul_backward": []},
    "grouped_matmul": {"npu_grouped_matmul": ["group_list", "split_item", "group_type", "group_list_type"]},
    "permute": {
        "npu_moe_token_permute": [],
        "npu_moe_token_permute_grad": [],  # 2.6.0 has no gradients: its operators serve answers alone
        "npu_moe_token_unpermute": ["probs"],
        "npu_moe_token_unpermute_grad": [],
    },
}
"""Group of `table.GROUPS` -> operators, those of the gradients too, and the arguments that they get by keyword."""

_FUNCTIONS: dict[str, list[Kernel]] = {
    "attention": [attention, attention_forward, attention_backward],
    "rms_norm": [rms_norm],
    "swiglu": [swiglu],
    "rotary": [rotary],
    "grouped_matmul": [grouped_matmul],
    "permute": [permute, unpermute],
}


def offers() -> dict[str, Offer]:
    """What the installed torch_npu can serve with; of what it has not, the reason. Some came with later versions."""
    found = {
        group: Offer(next(iter(NEEDED[group])), {one.__name__: one for one in functions}, _missing(group))
        for group, functions in _FUNCTIONS.items()
    }
    fused = torch._C._dispatch_has_kernel_for_dispatch_key("aten::_fused_adamw_", "PrivateUse1")
    missing = "" if fused else "this torch_npu has no _fused_adamw_"
    return found | {"adamw": Offer("fused AdamW", {"fused_adamw": True}, missing)}


def _missing(group: str) -> str:
    for operator, arguments in NEEDED[group].items():
        packet = getattr(torch.ops.npu, operator, None)
        if packet is None:
            return f"this torch_npu has no {operator}"
        known = {argument.name for argument in packet.default._schema.arguments}
        unknown = [argument for argument in arguments if argument not in known]
        if unknown:
            return f"{operator} of this torch_npu knows no {unknown[0]}"
    return ""
