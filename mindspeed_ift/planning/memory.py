"""Flags, architecture and layout in, the memory of each pipeline rank's device out, part by part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.layout import Layout, padded_vocab_size
from mindspeed_ift.config.tuning import TuneConfig
from mindspeed_ift.planning.activations import Layers, Tokens, end_bytes, layer_bytes
from mindspeed_ift.planning.parameters import Count, stage_parameters

_GRADIENT = 4
_STATES = {2: 12, 4: 8}
"""Bytes of optimizer state a parameter, by those of a weight: two moments in fp32, and beside bf16 weights a copy in fp32."""

PIECE_BYTES, KEPT_BYTES, TILE_POSITIONS = 1 << 26, 1 << 29, 1 << 12
"""Of `model.head`: logits of a piece, the largest gradient of the output layer that is held, and the positions of a tile
where it is not (a test compares them)."""

_PIECES = 3
"""Tensors of a piece's size that live at once: logits, the ones before, and their copies in bf16."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
        weights: and frozen ones.
        gradients: Megatron's buffers in fp32.
        optimizer: moments, and main weights in fp32 beside bf16.
        activations: of all micro-batches in flight.
        temporary: the most that lives besides at any time: head and loss, the layer whose backward pass runs, what it
            recomputes, the gradient of the embedding, the optimizer's update.
        moment: which of these it is.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    temporary: int
    moment: str

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.temporary


@dataclass(frozen=True)
class Case:
    """What memory is asked of.

    Attributes:
        config: flags of the run.
        architecture: of the model.
        layout: degrees of parallelism.
        row: tokens of the longest row, pads included.
        micro_batches: of a step and replica.
    """

    config: TuneConfig
    architecture: Architecture
    layout: Layout
    row: int
    micro_batches: int

    def with_global_batch(self, rows: int) -> Case:
        """The same with so many rows a step, said in its flags."""
        return replace(
            self, config=replace(self.config, optimizer=replace(self.config.optimizer, global_batch_size=rows))
        )

    @property
    def rows_of_a_step(self) -> int:
        """Of all replicas."""
        return self.micro_batches * self.config.optimizer.micro_batch_size * self.layout.data

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return 2 if self.config.optimizer.bf16 or self.config.optimizer.fp16 else 4

    @property
    def tokens(self) -> Tokens:
        """A micro-batch on one rank."""
        held = self.row * self.config.optimizer.micro_batch_size // self.layout.context
        return Tokens(held, self.row, self.config.data.reset_attention_mask, self.width)

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding."""
        model = self.config.model
        rows = max(self.architecture.vocab_size, model.padded_vocab_size or 0)
        return padded_vocab_size(rows, model.make_vocab_size_divisible_by, self.layout.tensor)

    @property
    def last_stage(self) -> int:
        """Number of the stage with the head."""
        return len(self.layout.stage_layers(self.architecture.num_layers)) - 1


def memory_of_ranks(case: Case) -> list[Memory]:
    """Of each pipeline rank the device with the most tokens and parameters (all of a rank are alike but for padding)."""
    return [_rank(case, rank) for rank in range(case.layout.pipeline)]


def _rank(case: Case, rank: int) -> Memory:
    count, peaks = count_of_rank(case, rank), peaks_of_rank(case, rank)
    activations = sum(_stage_bytes(case, stage) for stage in in_flight(case, rank))
    moment = max(peaks, key=lambda name: peaks[name])
    return Memory(
        weights=case.width * count.held,
        gradients=_GRADIENT * (count.trained + count.trained_experts),
        optimizer=_optimizer_bytes(case, count),
        activations=activations,
        temporary=max(0, peaks[moment] - activations),
        moment=moment,
    )


def count_of_rank(case: Case, rank: int) -> Count:
    """Parameters of all stages of a pipeline rank."""
    stages = range(rank, case.last_stage + 1, case.layout.pipeline)
    parts = (case.architecture, case.layout, case.config.lora, case.padded_vocab)
    return sum((stage_parameters(*parts, stage) for stage in stages), Count())


def peaks_of_rank(case: Case, rank: int) -> dict[str, int]:
    """Bytes besides weights, gradients and optimizer at each moment at which they may be most."""
    layout, lora, count = case.layout, case.config.lora, count_of_rank(case, rank)
    stages = range(rank, case.last_stage + 1, layout.pipeline)
    flights = [_stage_bytes(case, stage) for stage in in_flight(case, rank)]
    alive = sum(flights)
    peaks = {"backward pass of a layer": max(alive + _layer_peak(case, count, stage) for stage in stages)}
    if case.last_stage in stages:
        peaks["head and loss"] = alive + _head_peak(case)
    if rank == 0 and not lora.active:
        embedding = case.width * case.padded_vocab // layout.tensor * case.architecture.hidden_size
        peaks["gradient of the embedding"] = alive - flights[0] + embedding
    peaks["update"] = int(_GRADIENT * _owned(case, count) * (1 - _offloaded(case)))  # roots of the second moments
    return peaks


def _owned(case: Case, count: Count) -> int:
    """Parameters whose optimizer state a device holds."""
    layout = case.layout
    if not case.config.layout.use_distributed_optimizer:
        return count.trained + count.trained_experts
    holders = layout.world // layout.pipeline // (layout.expert * layout.tensor_of_experts)
    return -(-count.trained // layout.replicas) - (-count.trained_experts // max(holders, 1))


def _optimizer_bytes(case: Case, count: Count) -> int:
    """On the device; --optimizer-cpu-offload has the moments on the host."""
    return int(_owned(case, count) * (_STATES[case.width] - 8 * _offloaded(case)))


def _offloaded(case: Case) -> float:
    flags = case.config.optimizer
    return flags.optimizer_offload_fraction if flags.optimizer_cpu_offload else 0.0


def in_flight(case: Case, rank: int) -> list[int]:
    """Stage of each forward pass whose backward pass has not begun, where they are most.

    Source: the warm-up of 1F1B and of interleaved 1F1B (Narayanan et al. 2021), as Megatron's schedules count it.
    """
    size, chunks = case.layout.pipeline, case.layout.chunks(case.architecture.num_layers)
    if chunks == 1:
        return [rank] * min(case.micro_batches, size - rank)
    most = (size - rank - 1) * 2 + (chunks - 1) * size + 1
    return list(islice(_interleaved(case.micro_batches, size, chunks, rank), most))


def _interleaved(micro_batches: int, size: int, chunks: int, rank: int) -> Iterator[int]:
    for number in range(micro_batches * chunks):
        yield number % (size * chunks) // size * size + rank


def _layers(case: Case, stage: int) -> list[Layers]:
    a, layout = case.architecture, case.layout
    kinds = {
        experts: layer_bytes(a, layout, case.config.lora, case.tokens, experts=experts)
        for experts in {a.has_experts(layer) for layer in layout.stage_layers(a.num_layers)[stage]}
    }
    return [kinds[a.has_experts(layer)] for layer in layout.stage_layers(a.num_layers)[stage]]


def _stage_bytes(case: Case, stage: int) -> int:
    """What one micro-batch keeps in a stage."""
    layers, flags = _layers(case, stage), case.config.optimizer
    entry = layers[0].entry
    number = flags.recompute_num_layers or 1
    if flags.recompute_granularity == "full" and flags.recompute_method == "uniform":
        kept = -(-len(layers) // number) * entry
    elif flags.recompute_granularity == "full":
        kept = min(number, len(layers)) * entry + sum(one.whole for one in layers[number:])
    elif flags.recompute_granularity == "selective":
        kept = sum(one.whole - one.attention for one in layers)
    else:
        kept = sum(one.whole for one in layers)
    full = flags.recompute_granularity == "full"
    turns = 2 * case.architecture.kv_channels * case.tokens.held * case.width  # cosines and sines, of all layers
    first, last = end_bytes(case.architecture, case.layout, case.config.lora, case.tokens)
    # The schedule keeps what it received and what it sent until the gradient comes back.
    received = entry if stage > 0 and not full else 0
    return kept + turns + (first if stage == 0 else received) + (last if stage == case.last_stage else entry)


def _layer_peak(case: Case, count: Count, stage: int) -> int:
    """What the backward pass of the widest layer needs besides: what it recomputes, and the gradient of a weight."""
    layers, flags = _layers(case, stage), case.config.optimizer
    number = flags.recompute_num_layers or 1
    working, again = max(one.working for one in layers), 0
    if flags.recompute_granularity == "full" and flags.recompute_method == "uniform":
        again = max(sum(one.whole for one in layers[at : at + number]) for at in range(0, len(layers), number))
    elif flags.recompute_granularity == "full":
        # When the first layers are computed again, the others are done with.
        rest = sum(one.whole for one in layers[number:])
        again = max(0, max(one.whole for one in layers[:number]) - rest)
    gathered = case.tokens.held * case.architecture.hidden_size * case.width if case.layout.sequence_parallel else 0
    return again + working + case.width * count.largest_of_layer + gathered


def _head_peak(case: Case) -> int:
    """What output layer and loss need besides: all tokens learnt."""
    flags, rows = case.config.optimizer, case.padded_vocab // case.layout.tensor
    held, hidden, width = case.tokens.held, case.architecture.hidden_size, case.width
    chunk = flags.loss_chunk_size if flags.loss_compute_mode == "chunk" else max(1, PIECE_BYTES // (4 * rows))
    piece = _PIECES * 4 * rows * min(chunk, held)
    states = held * hidden * width  # as large as the hidden states
    norm = held * hidden * (20 if width == 2 else 16)  # gradients of the final norm, in fp32
    weight = rows * hidden
    if 4 * weight > KEPT_BYTES:  # the gradient of a tile's hidden states is summed in fp32
        piece += (4 + width) * min(TILE_POSITIONS, held) * hidden
    lora = case.config.lora
    if lora.active and not lora.is_trained("output_layer.weight", case.architecture.tied):
        return max(piece + 2 * states, norm)
    kept = 4 * weight if 4 * weight <= KEPT_BYTES else 0
    rounded = width * weight if width == 2 or not kept else 0
    return max(kept + states + max(piece, states + rounded), norm)
