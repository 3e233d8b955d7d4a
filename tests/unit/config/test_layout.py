"""Degrees of parallelism and what follows from them."""

from __future__ import annotations

import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout, LayoutFlags, layout_of, padded_vocab_size


@pytest.mark.parametrize(
    ("tensor", "pipeline", "world", "data"),
    [(1, 1, 1, 1), (1, 1, 8, 8), (8, 1, 8, 1), (2, 2, 8, 2), (1, 4, 12, 3), (8, 2, 16, 1)],
)
def test_what_is_left_of_the_world_is_data_parallel(tensor: int, pipeline: int, world: int, data: int) -> None:
    layout = layout_of(LayoutFlags(tensor, pipeline), world)
    assert layout == Layout(tensor, pipeline, data)
    assert layout.world == world


@pytest.mark.parametrize(("tensor", "pipeline", "world"), [(8, 1, 4), (2, 2, 6), (3, 1, 4), (1, 5, 8)])
def test_a_world_that_does_not_divide_is_refused(tensor: int, pipeline: int, world: int) -> None:
    with pytest.raises(UserError, match=f"{world} processes do not divide by TP {tensor} x PP {pipeline}"):
        layout_of(LayoutFlags(tensor, pipeline), world)


@pytest.mark.parametrize(("tensor", "pipeline"), [(0, 1), (1, 0), (-2, -2)])
def test_sizes_below_one_are_refused(tensor: int, pipeline: int) -> None:
    with pytest.raises(UserError, match="must be at least 1"):
        layout_of(LayoutFlags(tensor, pipeline), 4)


def test_sequence_parallel_over_one_device_is_nothing() -> None:
    """As in Megatron: scripts give the flag with TP 1 too."""
    assert not layout_of(LayoutFlags(1, 1, sequence_parallel=True), 4).sequence_parallel
    assert layout_of(LayoutFlags(2, 1, sequence_parallel=True), 4).sequence_parallel
    assert not layout_of(LayoutFlags(2, 1), 4).sequence_parallel


@pytest.mark.parametrize(
    ("pipeline", "layers", "expected"),
    [
        (1, 3, [range(0, 3)]),
        (2, 4, [range(0, 2), range(2, 4)]),
        (4, 4, [range(0, 1), range(1, 2), range(2, 3), range(3, 4)]),
    ],
)
def test_stages_hold_equal_runs_of_layers(pipeline: int, layers: int, expected: list[range]) -> None:
    assert Layout(pipeline=pipeline).stage_layers(layers) == expected


def test_stages_of_several_chunks_and_of_unequal_lengths() -> None:
    """Stage s lies on pipeline rank s % PP as chunk s // PP, in the order in which a token meets them."""
    interleaved = layout_of(LayoutFlags(1, 2, num_layers_per_virtual_pipeline_stage=1), 2)
    assert interleaved.stage_layers(4) == [range(0, 1), range(1, 2), range(2, 3), range(3, 4)]
    assert interleaved.chunks(4) == 2 and interleaved.chunks(2) == 1
    uneven = layout_of(LayoutFlags(1, 3, num_layer_list="1, 3,2"), 3)
    assert uneven.stage_layers(6) == [range(0, 1), range(1, 4), range(4, 6)] and uneven.chunks(6) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (LayoutFlags(1, 1, num_layers_per_virtual_pipeline_stage=1), "needs --pipeline-model-parallel-size over 1"),
        (LayoutFlags(1, 2, num_layers_per_virtual_pipeline_stage=0), "must be at least 1"),
        (LayoutFlags(1, 2, num_layers_per_virtual_pipeline_stage=2, num_layer_list="3,3"), "exclude each other"),
        (LayoutFlags(1, 2, num_layers_per_virtual_pipeline_stage=2), "6 layers do not divide"),
        (LayoutFlags(1, 2, num_layer_list="3,2"), "must name 2 numbers .* that sum up to 6 layers"),
        (LayoutFlags(1, 2, num_layer_list="2,2,2"), "must name 2 numbers"),
        (LayoutFlags(1, 2, num_layer_list="6,0"), "must be numbers over 0 with commas between"),
        (LayoutFlags(1, 2, num_layer_list="a,b"), "must be numbers over 0 with commas between"),
        (LayoutFlags(1, 2, decoder_first_pipeline_num_layers=0), "--decoder-first-pipeline-num-layers 0 must be at"),
        (LayoutFlags(decoder_last_pipeline_num_layers=1), "needs --pipeline-model-parallel-size over 1"),
        (LayoutFlags(1, 2, decoder_first_pipeline_num_layers=2, num_layer_list="3,3"), "exclude each other"),
        (
            LayoutFlags(1, 2, decoder_last_pipeline_num_layers=2, num_layers_per_virtual_pipeline_stage=1),
            "--decoder-last-pipeline-num-layers and --num-layers-per-virtual-pipeline-stage exclude each other",
        ),
        (
            LayoutFlags(1, 2, decoder_first_pipeline_num_layers=2, decoder_last_pipeline_num_layers=3),
            "-first-pipeline-num-layers 2 --decoder-last-pipeline-num-layers 3: the other 1 layers do not divide over the"
            " other 0 ranks",
        ),
        (LayoutFlags(1, 2, decoder_first_pipeline_num_layers=6), "the other 0 layers do not divide over the other 1"),
        (LayoutFlags(1, 2, noop_layers="1,1"), "--noop-layers 1,1 must be different numbers"),
        (LayoutFlags(1, 2, noop_layers="-1"), "--noop-layers -1 must be different numbers"),
        (LayoutFlags(1, 2, noop_layers="8,9"), "--noop-layers 9: the layers are 0 to 7"),
        (LayoutFlags(1, 2, noop_layers="7"), "--noop-layers 7: the layers are 0 to 6, those that do nothing included"),
        (LayoutFlags(1, 2, noop_layers="0,1,2,3,4,5"), "leaves a pipeline stage without a layer"),
    ],
)
def test_stages_that_do_not_fit_are_refused(flags: LayoutFlags, message: str) -> None:
    with pytest.raises(UserError, match=message):
        layout_of(flags, 2).stage_layers(6)


@pytest.mark.parametrize(
    ("flags", "layers", "counts"),
    [
        (LayoutFlags(1, 4, decoder_first_pipeline_num_layers=2, decoder_last_pipeline_num_layers=4), 12, [2, 3, 3, 4]),
        (LayoutFlags(1, 3, decoder_first_pipeline_num_layers=2), 8, [2, 3, 3]),
        (LayoutFlags(1, 3, decoder_last_pipeline_num_layers=2), 8, [3, 3, 2]),
        (LayoutFlags(1, 2, decoder_first_pipeline_num_layers=3, decoder_last_pipeline_num_layers=1), 4, [3, 1]),
        # 94 layers as 96 of which two do nothing.
        (LayoutFlags(1, 4, noop_layers="94, 95"), 94, [24, 24, 24, 22]),
        (LayoutFlags(1, 4, noop_layers="95,0"), 94, [23, 24, 24, 23]),
        (LayoutFlags(1, 2, noop_layers="7,0", num_layers_per_virtual_pipeline_stage=2), 6, [1, 2, 2, 1]),
        (LayoutFlags(1, 2, noop_layers="1", num_layer_list="2,5"), 6, [1, 5]),
        (LayoutFlags(1, 1, noop_layers="1"), 3, [3]),
    ],
)
def test_ends_with_fewer_layers_and_layers_that_do_nothing(flags: LayoutFlags, layers: int, counts: list[int]) -> None:
    """Numbers go on without gaps: a layer that does nothing is not there."""
    stages = layout_of(flags, flags.pipeline_model_parallel_size).stage_layers(layers)
    assert [len(stage) for stage in stages] == counts
    assert [number for stage in stages for number in stage] == list(range(layers))


@pytest.mark.parametrize(("pipeline", "layers"), [(2, 3), (4, 2), (3, 64)])
def test_layers_that_do_not_divide_are_refused(pipeline: int, layers: int) -> None:
    with pytest.raises(
        UserError, match=f"{layers} layers do not divide over --pipeline-model-parallel-size {pipeline}"
    ):
        Layout(pipeline=pipeline).stage_layers(layers)


@pytest.mark.parametrize(
    ("vocab", "divisible_by", "tensor", "expected"),
    [
        (151936, 1, 1, 151936),
        (151936, 1, 8, 151936),
        (151936, 128, 1, 151936),
        (151936, 128, 8, 152576),
        (151669, 1, 8, 151672),
        (151643, 128, 1, 151680),
        (400, 1, 3, 402),
        (1, 128, 2, 256),
    ],
)
def test_the_vocabulary_is_padded_as_in_megatron(vocab: int, divisible_by: int, tensor: int, expected: int) -> None:
    assert padded_vocab_size(vocab, divisible_by, tensor) == expected


@pytest.mark.parametrize(
    ("context", "algorithm", "degree", "ulysses", "gather_keys"),
    [
        (1, "hybrid_cp_algo", None, 1, False),
        (1, "kvallgather_cp_algo", 2, 1, False),
        (4, "megatron_cp_algo", None, 1, False),
        (4, "ulysses_cp_algo", None, 4, False),
        (4, "hybrid_cp_algo", 2, 2, False),
        (4, "kvallgather_cp_algo", None, 1, True),
    ],
)
def test_context_parallel_algorithms(
    context: int, algorithm: str, degree: int | None, ulysses: int, gather_keys: bool
) -> None:
    flags = LayoutFlags(context_parallel_size=context, context_parallel_algo=algorithm, ulysses_degree_in_cp=degree)
    layout = layout_of(flags, 8)
    assert layout == Layout(data=8 // context, context=context, ulysses=ulysses, gather_keys=gather_keys)
    assert layout.world == layout.replicas == 8


@pytest.mark.parametrize(
    ("context", "algorithm", "degree", "message"),
    [
        (0, "ulysses_cp_algo", None, "--context-parallel-size must be at least 1"),
        (3, "ulysses_cp_algo", None, "x CP 3 = 3"),
        (4, "ulysses_cp_algo", 2, "--ulysses-degree-in-cp is for --context-parallel-algo hybrid_cp_algo"),
        (4, "hybrid_cp_algo", None, "hybrid_cp_algo needs --ulysses-degree-in-cp"),
        (4, "hybrid_cp_algo", 3, "divisor of --context-parallel-size 4"),
        (4, "hybrid_cp_algo", 4, "for all or nothing take ulysses_cp_algo or megatron_cp_algo"),
        (4, "hybrid_cp_algo", 1, r"between 1 and 4 \(given: 1\)"),
        (4, "hybrid_cp_algo", -2, r"given: -2"),
    ],
)
def test_context_parallel_sizes_that_do_not_fit_are_refused(
    context: int, algorithm: str, degree: int | None, message: str
) -> None:
    flags = LayoutFlags(context_parallel_size=context, context_parallel_algo=algorithm, ulysses_degree_in_cp=degree)
    with pytest.raises(UserError, match=message):
        layout_of(flags, 8)


@pytest.mark.parametrize(
    ("layout", "multiple"),
    [
        (Layout(), 1),
        (Layout(tensor=4), 1),
        (Layout(tensor=4, sequence_parallel=True), 4),
        (Layout(context=4, ulysses=4), 4),
        (Layout(context=4), 8),
        (Layout(context=3, gather_keys=True), 6),
        (Layout(context=6, ulysses=3), 12),
        (Layout(context=6, ulysses=2), 6),
        (Layout(tensor=2, sequence_parallel=True, context=4), 8),
        (Layout(tensor=3, sequence_parallel=True, context=2), 12),
    ],
)
def test_rows_divide_into_what_each_rank_holds(layout: Layout, multiple: int) -> None:
    assert layout.row_multiple == multiple


@pytest.mark.parametrize(
    ("tensor", "expert", "own", "world", "expected"),
    [
        (1, 1, None, 2, [(0, 0)]),
        (2, 2, None, 4, [(0, 0), (1, 0), (0, 1), (1, 1)]),
        (2, 2, 1, 2, [(0, 0), (1, 1)]),
        (2, 4, 1, 4, [(0, 0), (1, 1), (0, 2), (1, 3)]),
        (4, 2, 2, 8, [(0, 0), (1, 0), (2, 1), (3, 1)]),
        (2, 3, 1, 6, [(0, 0), (1, 1), (0, 2), (1, 0), (0, 1), (1, 2)]),
    ],
)
def test_experts_are_laid_over_the_ranks_of_a_stage(
    tensor: int, expert: int, own: int | None, world: int, expected: list[tuple[int, int]]
) -> None:
    """Each pair of tensor and expert rank that some rank has: they hold different weights, and have a file each."""
    flags = LayoutFlags(tensor, expert_model_parallel_size=expert, expert_tensor_parallel_size=own)
    assert layout_of(flags, world).shards() == expected


@pytest.mark.parametrize(
    ("tensor", "expert", "own", "expected"),
    [
        (1, 3, None, "4 processes of a pipeline stage do not divide by EP 3 x ETP 1 = 3"),
        (2, 4, None, "do not divide by EP 4 x ETP 2 = 8"),
        (1, 1, 2, "--expert-tensor-parallel-size 2 does not divide --tensor-model-parallel-size 1"),
        (2, 0, 1, "must be at least 1"),
        (2, 1, 0, "must be at least 1"),
    ],
)
def test_experts_that_do_not_fit_the_ranks_are_refused(
    tensor: int, expert: int, own: int | None, expected: str
) -> None:
    flags = LayoutFlags(tensor, expert_model_parallel_size=expert, expert_tensor_parallel_size=own)
    with pytest.raises(UserError, match=expected):
        layout_of(flags, 4)
