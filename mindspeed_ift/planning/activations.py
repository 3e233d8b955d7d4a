"""What tokens leave in memory for the backward pass, layer by layer: every tensor that autograd keeps, by its shape.

The tests hold the sums to what autograd keeps of a built model. Kernels are the plain ones of `devices.kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.layout import Layout
from mindspeed_ift.config.lora import LoraFlags


@dataclass(frozen=True)
class Tokens:
    """A micro-batch as one rank meets it.

    Attributes:
        held: positions of its rows that the rank holds (context parallel cuts them).
        row: length of a whole row.
        packed: attention stays within segments.
        width: bytes of a weight or activation.
    """

    held: int
    row: int
    packed: bool
    width: int


@dataclass(frozen=True)
class Layers:
    """Bytes that a layer keeps.

    Attributes:
        whole: without recomputation.
        attention: of these, what is not kept if core attention is recomputed, less what is kept instead.
        entry: hidden states at its door: all that is kept if it is recomputed.
        working: what its backward pass needs besides.
    """

    whole: int
    attention: int
    entry: int
    working: int


def layer_bytes(
    architecture: Architecture, layout: Layout, lora: LoraFlags, tokens: Tokens, *, experts: bool
) -> Layers:
    """What one layer keeps on a rank.

    Args:
        architecture: of the model.
        layout: degrees of parallelism.
        lora: adapters, or none: a frozen weight needs no input for its gradient.
        tokens: of a micro-batch.
        experts: the layer has experts.
    """
    a, held, width = architecture, tokens.held, tokens.width
    # Norms, residuals and inputs of column-parallel layers are split over the tensor ranks under sequence parallelism.
    split = held // layout.tensor if layout.sequence_parallel else held
    heads, groups = a.num_attention_heads // layout.tensor, a.num_query_groups // layout.tensor
    queries, keys, hidden = heads * a.kv_channels, groups * a.kv_channels, a.hidden_size
    norms = sum(
        (4 * hidden + 4) + _scaled(lora, norm, width * hidden) + _kept(lora, after, width * hidden)
        for norm, after in (("input_layernorm", "linear_qkv"), ("pre_mlp_layernorm", "linear_fc1"))
    )
    core = width * queries + 4 * heads
    # Segments are joined in a copy; otherwise what attention returns is what the projection keeps.
    joined = _kept(lora, "linear_proj", width * queries) if tokens.packed and layout.context == 1 else 0
    keeps = split * norms + held * (_projections(a, lora, heads, groups, width) + core + joined)
    keeps += _experts(a, layout, split, width) if experts else held * _feed_forward(a, layout, lora, width)
    keeps += held * width * lora.lora_r * len(lora.lora_target_modules)
    if lora.use_dora:  # the output, for the gradient of its lengths
        columns = 2 * a.ffn_hidden_size // layout.tensor
        outputs = {"linear_qkv": held * (queries + 2 * keys), "linear_fc1": held * columns}
        keeps += width * sum(outputs.get(module, split * hidden) for module in lora.lora_target_modules)
    again, entry = held * (core if joined else 4 * heads), split * width * hidden
    return Layers(keeps, again, entry, _working(a, layout, tokens, split, experts=experts))


def _kept(lora: LoraFlags, module: str, size: int) -> int:
    """Of an input, what its module keeps."""
    trained = not lora.active or module in lora.lora_target_modules or module in lora.lora_modules_to_save
    return size if trained else 0


def _scaled(lora: LoraFlags, module: str, size: int) -> int:
    """Of a norm, what its weight's gradient takes."""
    return size if not lora.active or module in lora.lora_modules_to_save else 0


def _projections(architecture: Architecture, lora: LoraFlags, heads: int, groups: int, width: int) -> int:
    """Of a token: queries, keys and values, normalized and turned."""
    queries, keys = heads * architecture.kv_channels, groups * architecture.kv_channels
    size = width * (queries + 2 * keys)
    if architecture.qk_layernorm:
        # In fp32 a norm keeps its input, which is a view of the product where nothing has moved it.
        moved = width == 2 or heads != groups
        size += (4 * queries if moved else 0) + 4 * heads + _scaled(lora, "q_layernorm", width * queries)
        size += (4 * keys if width == 2 else 0) + 4 * groups + _scaled(lora, "k_layernorm", width * keys)
    return size + width * (queries + keys)  # turned


def end_bytes(architecture: Architecture, layout: Layout, lora: LoraFlags, tokens: Tokens) -> tuple[int, int]:
    """What the embedding keeps, and what final norm and head keep with every token learnt."""
    hidden, width, held = architecture.hidden_size, tokens.width, tokens.held
    split = held // layout.tensor if layout.sequence_parallel else held
    scaled = _scaled(lora, "final_layernorm", width * hidden)
    return 8 * held, split * (4 * hidden + 4 + scaled) + held * (8 + width * hidden)


def _feed_forward(architecture: Architecture, layout: Layout, lora: LoraFlags, width: int) -> int:
    columns = architecture.ffn_hidden_size // layout.tensor
    # Gate and up in one product, silu of the gate, and what both make, as the next layer's input.
    return width * 3 * columns + _kept(lora, "linear_fc2", width * columns)


def _experts(architecture: Architecture, layout: Layout, split: int, width: int) -> int:
    """With tokens evenly among the experts."""
    chosen, columns = architecture.moe_router_topk, architecture.moe_ffn_hidden_size // layout.tensor_of_experts
    arrived = split * chosen * layout.tensor_of_experts
    routing = split * (20 * chosen + 5 * architecture.num_experts)
    return routing + arrived * (4 + width * (architecture.hidden_size + 5 * columns))


def _working(architecture: Architecture, layout: Layout, tokens: Tokens, split: int, *, experts: bool) -> int:
    """Gradients that live while all that the layer keeps still does: those of its last products.

    What attention among context parallel ranks computes comes later, when the feed-forward block is gone.
    """
    a, width, held = architecture, tokens.width, tokens.held
    if not experts:
        columns = a.ffn_hidden_size // layout.tensor
        products, gone = held * width * (columns + a.hidden_size), held * width * 4 * columns
    else:
        columns = a.moe_ffn_hidden_size // layout.tensor_of_experts
        arrived = split * a.moe_router_topk * layout.tensor_of_experts
        products = arrived * 4 * (a.hidden_size + columns) + held * width * a.hidden_size
        gone = arrived * width * (a.hidden_size + 5 * columns)
    if layout.context == 1:
        return products
    heads, groups = (count // layout.tensor for count in (a.num_attention_heads, a.num_query_groups))
    tile, seen = min(1024, held), tokens.row if layout.gather_keys else tokens.row // layout.context
    scores = 4 * 4 * heads * tile * seen  # weights, their gradients and two steps between, in fp32
    gradients = 4 * a.kv_channels * (held * heads + 4 * seen * groups)
    return max(products, scores + gradients - gone)
