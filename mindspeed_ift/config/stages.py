"""Which pipeline stage holds which layers."""

from __future__ import annotations

import itertools

from mindspeed_ift.config.errors import UserError


def stage_ranges(
    num_layers: int,
    pipeline: int,
    *,
    chunk_layers: int | None = None,
    layer_list: tuple[int, ...] = (),
    first_layers: int | None = None,
    last_layers: int | None = None,
    noop_layers: tuple[int, ...] = (),
) -> list[range]:
    """The global, zero-based layer numbers of each stage, in the order in which a token meets them.

    Args:
        num_layers: that do something.
        pipeline: ranks.
        chunk_layers: of each stage, where a rank holds several.
        layer_list: of each rank.
        first_layers: of the first rank; those between the ends share what is left.
        last_layers: of the last rank.
        noop_layers: numbers, among all, of layers that do nothing: they count when layers are dealt out, and are then
            left out.

    Raises:
        UserError: the layers do not divide.
    """
    total = num_layers + len(noop_layers)
    if noop_layers and max(noop_layers) >= total:
        raise UserError(
            f"--noop-layers {max(noop_layers)}: the layers are 0 to {total - 1}, those that do nothing included"
        )
    if layer_list:
        counts = _listed(total, pipeline, layer_list)
    elif chunk_layers is not None:
        counts = _chunks(total, pipeline, chunk_layers)
    elif first_layers is not None or last_layers is not None:
        counts = _ends(total, pipeline, first_layers, last_layers)
    elif total % pipeline:
        raise UserError(
            f"{total} layers do not divide over --pipeline-model-parallel-size {pipeline}; choose a divisor, or say with"
            " --num-layer-list who holds how many"
        )
    else:
        counts = [total // pipeline] * pipeline
    ends = list(itertools.accumulate(counts, initial=0))
    real = [sum(one not in noop_layers for one in range(start, stop)) for start, stop in itertools.pairwise(ends)]
    if 0 in real:
        raise UserError("--noop-layers leaves a pipeline stage without a layer; name others, or a smaller pipeline")
    ends = list(itertools.accumulate(real, initial=0))
    return [range(start, stop) for start, stop in itertools.pairwise(ends)]


def _listed(total: int, pipeline: int, counts: tuple[int, ...]) -> list[int]:
    if len(counts) != pipeline or sum(counts) != total:
        raise UserError(
            f"--num-layer-list {','.join(map(str, counts))} must name {pipeline} numbers (--pipeline-model-parallel-size"
            f" {pipeline}) that sum up to {total} layers"
        )
    return list(counts)


def _chunks(total: int, pipeline: int, layers: int) -> list[int]:
    if total % (pipeline * layers):
        raise UserError(
            f"{total} layers do not divide over --pipeline-model-parallel-size {pipeline} x"
            f" --num-layers-per-virtual-pipeline-stage {layers}; choose divisors"
        )
    return [layers] * (total // layers)


def _ends(total: int, pipeline: int, first: int | None, last: int | None) -> list[int]:
    given = [one for one in (first, last) if one is not None]
    ranks, rest = pipeline - len(given), total - sum(given)
    if rest < ranks or (rest % ranks if ranks else rest):
        flags = {"--decoder-first-pipeline-num-layers": first, "--decoder-last-pipeline-num-layers": last}
        said = " ".join(f"{flag} {count}" for flag, count in flags.items() if count is not None)
        raise UserError(f"{said}: the other {rest} layers do not divide over the other {ranks} ranks of the pipeline")
    middle = [rest // ranks] * ranks if ranks else []
    return [*([first] if first is not None else []), *middle, *([last] if last is not None else [])]
