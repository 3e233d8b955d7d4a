"""What torch_npu's documentation promises of its operators, as checks of their arguments: a wrong call raises here.

Sources: the pages of npu_fusion_attention, npu_rms_norm, npu_swiglu, npu_rotary_mul and npu_grouped_matmul in torch_npu's
API reference (Atlas A2 and A3 training products).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
LAYOUTS = ("BSH", "SBH", "BSND", "BNSD", "TND")
MOST_SEGMENTS, MOST_TOKENS, MOST_HEADS, LARGEST_HEAD = 1024, 2**20, 256, 768
MOST_EXPERTS = 512
COMPRESSED = (2, 3, 4, 6, 7, 8)
"""sparse_modes that take the triangle of 2048 x 2048 whatever the lengths."""


class ContractError(AssertionError):
    """A call that a real device would refuse, or answer with garbage."""


def require(condition: bool, sentence: str) -> None:
    """Raise with the sentence unless the condition holds."""
    if not condition:
        raise ContractError(sentence)


def attention(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> None:
    """``npu_fusion_attention`` and its gradient; ``options`` are the arguments after the tensors, defaults filled in."""
    layout, heads = options["input_layout"], options["head_num"]
    require(layout in LAYOUTS, f"input_layout {layout} is none of {LAYOUTS}")
    rank = 3 if layout in ("BSH", "SBH", "TND") else 4
    require(query.dim() == key.dim() == value.dim() == rank, f"{layout} takes {rank} dimensions")
    require(query.dtype in FLOATS, f"dtype {query.dtype} is none of {FLOATS}")
    require(query.dtype == key.dtype == value.dtype, "query, key and value differ in dtype")
    require(key.shape == value.shape, "key and value differ in shape")
    query_heads, key_heads, size = _heads(query, key, layout, heads)
    require(query_heads == heads, f"head_num {heads} is not the number of query heads, {query_heads}")
    require(1 <= size <= LARGEST_HEAD, f"heads of {size} channels; 1 to {LARGEST_HEAD} are taken")
    require(1 <= heads <= MOST_HEADS, f"{heads} query heads; 1 to {MOST_HEADS} are taken")
    require(key_heads > 0 and heads % key_heads == 0, f"{heads} query heads are no multiple of {key_heads} key heads")
    for name in ("pse", "padding_mask", "prefix", "sink", "dropout_mask"):
        require(options.get(name) is None, f"{name} is not for this")
    require(not options.get("softmax_layout"), "softmax_layout is not known to torch_npu before 7.2")
    require(options["keep_prob"] == 1.0, "there is no dropout")
    if layout == "TND":
        require(query.shape[1:] == (heads, size) and key.shape[2] == size, "query and key differ in head size")
        _ends(options["actual_seq_qlen"], len(query), "actual_seq_qlen")
        _ends(options["actual_seq_kvlen"], len(key), "actual_seq_kvlen")
        same = len(options["actual_seq_qlen"]) == len(options["actual_seq_kvlen"])
        require(same, "actual_seq_qlen and actual_seq_kvlen differ in length")
    else:
        none = options["actual_seq_qlen"] is None and options["actual_seq_kvlen"] is None
        require(none, f"{layout} takes no actual_seq_qlen and actual_seq_kvlen")
    _mask(query, options)
    _no_hidden_row(query, key, options)


def attention_grad(query: Tensor, grad: Tensor, options: dict[str, Any]) -> None:
    """What ``npu_fusion_attention_grad`` takes besides: the gradient, the output, maximum and sum of the softmax."""
    for name, tensor in (("dy", grad), ("attention_in", options["attention_in"])):
        require(tensor is not None, f"{name} is needed")
        require(tensor.shape == query.shape and tensor.dtype == query.dtype, f"{name} is not like the query")
    shape = softmax_shape(query, options["input_layout"], options["head_num"])
    for name in ("softmax_max", "softmax_sum"):
        tensor = options[name]
        require(tensor is not None and tensor.dtype == torch.float32, f"{name} must be fp32")
        require(tuple(tensor.shape) == shape, f"{name} has the shape {tuple(tensor.shape)}, not {shape}")
        require(bool((tensor == tensor[..., :1]).all()), f"the last eight numbers of {name} must be one")


def softmax_shape(query: Tensor, layout: str, heads: int) -> tuple[int, ...]:
    """Shape of maximum and sum."""
    if layout == "TND":
        return (len(query), heads, 8)
    batch, length = {"BSH": (0, 1), "SBH": (1, 0), "BSND": (0, 1), "BNSD": (0, 2)}[layout]
    return (query.shape[batch], heads, query.shape[length], 8)


def rms_norm(hidden: Tensor, gamma: Tensor) -> None:
    """``npu_rms_norm``."""
    require(1 <= hidden.dim() <= 8, "1 to 8 dimensions are taken")
    require(gamma.shape == hidden.shape[hidden.dim() - gamma.dim() :], "gamma is not as the last dimensions")
    pairs = [(dtype, dtype) for dtype in FLOATS] + [(torch.float16, torch.float32), (torch.bfloat16, torch.float32)]
    require((hidden.dtype, gamma.dtype) in pairs, f"gamma of {gamma.dtype} does not go with {hidden.dtype}")


def swiglu(gate_and_up: Tensor, dim: int) -> None:
    """``npu_swiglu``."""
    require(gate_and_up.dtype in FLOATS, f"dtype {gate_and_up.dtype} is none of {FLOATS}")
    require(gate_and_up.is_contiguous() and gate_and_up.numel() > 0, "what is empty or not contiguous is not taken")
    require(gate_and_up.shape[dim] % 2 == 0, "the dimension of gate and up is not even")


def rotary(tensor: Tensor, r1: Tensor, r2: Tensor, mode: str, rotate: Tensor | None) -> str:
    """``npu_rotary_mul`` on ``[S, B, N, D]``; the layouts of tensor and turns."""
    require(mode == "half" and rotate is None, "only halves are turned")
    require(tensor.dim() == r1.dim() == 4 and r1.shape == r2.shape, "4 dimensions are taken")
    require(tensor.dtype in FLOATS and tensor.dtype == r1.dtype == r2.dtype, "tensor and turns differ in dtype")
    length, rows, heads, size = tensor.shape
    require(size < 896 and size % 2 == 0, f"heads of {size} channels; an even number below 896 is taken")
    require(rows < 1000 and heads < 1000, "less than 1000 rows and heads are taken")
    layouts = {(length, 1, 1, size): "S11D", (length, rows, 1, size): "SB1D"}
    require(tuple(r1.shape) in layouts, f"turns of the shape {tuple(r1.shape)} do not go with SBND")
    return "SBND, S11D or SB1D"


def grouped_matmul(
    x: Sequence[Tensor],
    weight: Sequence[Tensor],
    group_list: Tensor | None,
    split_item: int,
    group_type: int | None,
    group_list_type: int,
) -> None:
    """``npu_grouped_matmul`` of one left and one right tensor into one."""
    require(len(x) == len(weight) == 1 and split_item in (2, 3), "one tensor each, one result (split_item 2 or 3)")
    require(x[0].dtype in FLOATS and x[0].dtype == weight[0].dtype, "x and weight differ in dtype")
    require(group_list is not None and group_list.dtype == torch.int64, "group_list must be an int64 tensor")
    assert group_list is not None
    require(group_list.dim() == 1 and group_list_type == 0, "group_list must be ends: one dimension, type 0")
    ends = group_list.tolist()
    require(ends[0] >= 0 and all(a <= b for a, b in zip(ends, ends[1:])), "group_list must not fall")
    require(max(x[0].shape[-1], weight[0].shape[-1]) < 65536, "last dimensions must be below 65536")
    require(x[0].numel() > 0, "what is empty is not taken")
    require(group_type in (0, 2), "group_type must be 0 (rows) or 2 (columns)")
    if group_type == 0:
        require(x[0].dim() == 2 and weight[0].dim() == 3 and len(weight[0]) == len(ends), "a matrix for each group")
        require(ends[-1] == len(x[0]), f"group_list ends at {ends[-1]}, but there are {len(x[0])} rows")
    else:
        require(x[0].dim() == weight[0].dim() == 2, "two matrices")
        require(ends[-1] == x[0].shape[1] == len(weight[0]), "group_list does not end where the columns do")


def permute(tokens: Tensor, indices: Tensor, num_out_tokens: int | None, padded_mode: bool) -> None:
    """``npu_moe_token_permute``."""
    require(
        tokens.dim() == 2 and tokens.dtype in FLOATS and len(tokens) > 0, "tokens must be two-dimensional, not empty"
    )
    require(indices.dtype in (torch.int32, torch.int64), "indices must be int32 or int64")
    require(indices.dim() == 2 and len(indices) == len(tokens), "indices must be [tokens, experts of a token]")
    require(indices.shape[1] <= MOST_EXPERTS, f"at most {MOST_EXPERTS} experts a token are taken")
    require(num_out_tokens is None and not padded_mode, "no token is dropped, none padded")


def unpermute(
    copies: Tensor, places: Tensor, probs: Tensor | None, padded_mode: bool, restore_shape: Sequence[int] | None
) -> None:
    """``npu_moe_token_unpermute``."""
    require(
        copies.dim() == 2 and copies.dtype in FLOATS and len(copies) > 0, "tokens must be two-dimensional, not empty"
    )
    require(
        places.dtype == torch.int32 and places.shape == copies.shape[:1], "sorted_indices must be as permute gave them"
    )
    require(probs is not None and probs.dim() == 2 and probs.numel() == len(copies), "probs must be [tokens, experts]")
    assert probs is not None
    require(probs.shape[1] <= MOST_EXPERTS, f"at most {MOST_EXPERTS} experts a token are taken")
    require(probs.dtype in FLOATS, f"dtype {probs.dtype} is none of {FLOATS}")
    require(not padded_mode and restore_shape is None, "no token is dropped, none padded")


def _heads(query: Tensor, key: Tensor, layout: str, heads: int) -> tuple[int, int, int]:
    """Query heads, key heads and head size."""
    if layout in ("BSH", "SBH"):
        require(heads > 0 and query.shape[2] % heads == 0, "head_num does not divide the query's last dimension")
        size = query.shape[2] // heads
        require(key.shape[2] % size == 0, "the key's last dimension is no multiple of the head size")
        return heads, key.shape[2] // size, size
    place = {"TND": 1, "BSND": 2, "BNSD": 1}[layout]
    return query.shape[place], key.shape[place], query.shape[-1]


def _ends(ends: Sequence[int] | None, tokens: int, name: str) -> None:
    require(ends is not None, f"TND takes {name}")
    assert ends is not None
    require(all(type(end) is int for end in ends), f"{name} must be a list of int on the host")
    require(1 <= len(ends) <= MOST_SEGMENTS, f"{name} has {len(ends)} segments; 1 to {MOST_SEGMENTS} are taken")
    require(ends[0] > 0, f"{name} must be the ends of the segments, without a leading 0")
    require(all(a <= b for a, b in zip(ends, ends[1:])), f"{name} must not fall")
    require(ends[-1] == tokens, f"{name} ends at {ends[-1]}, but there are {tokens} tokens")
    require(tokens <= MOST_TOKENS, f"{tokens} tokens; at most {MOST_TOKENS} are taken")


def _mask(query: Tensor, options: dict[str, Any]) -> None:
    mask, mode, varlen = options["atten_mask"], options["sparse_mode"], options["input_layout"] == "TND"
    require(mode in (range(9) if varlen else range(7)) and not (varlen and mode == 5), f"no sparse_mode {mode} here")
    if mask is None:
        require(mode == 0, f"sparse_mode {mode} without atten_mask has no effect: every query would see every key")
        return
    require(mask.dtype in (torch.bool, torch.uint8), f"atten_mask must be bool or uint8, not {mask.dtype}")
    require(mask.device == query.device, "atten_mask is on another device")
    if mode in COMPRESSED:
        require(tuple(mask.shape) == (2048, 2048), f"sparse_mode {mode} takes a mask of 2048 x 2048")
        right = torch.equal(mask.bool(), _above_the_diagonal(mask.device))
        require(right, "atten_mask must be True (masked) above the diagonal, False elsewhere")
    else:
        require(not bool(mask.bool().all(-1).any()), "atten_mask hides all keys from a query")


@lru_cache(maxsize=1)
def _above_the_diagonal(device: torch.device) -> Tensor:
    return torch.ones(2048, 2048, dtype=torch.bool, device=device).triu(1)


def _no_hidden_row(query: Tensor, key: Tensor, options: dict[str, Any]) -> None:
    """Aligned at the bottom right, a segment with fewer keys than queries would have queries that see nothing."""
    if options["sparse_mode"] not in (3, 7):
        return
    if options["input_layout"] == "TND":
        pairs = (
            zip((0, *options["actual_seq_qlen"]), options["actual_seq_qlen"]),
            zip((0, *options["actual_seq_kvlen"]), options["actual_seq_kvlen"]),
        )
        lengths = [[stop - start for start, stop in segments] for segments in pairs]
    else:
        place = {"BSH": 1, "SBH": 0, "BSND": 1, "BNSD": 2}[options["input_layout"]]
        lengths = [[query.shape[place]], [key.shape[place]]]
    require(all(q <= k for q, k in zip(*lengths)), "sparse_mode 3: a segment has fewer keys than queries")
