"""Command ``repack-dataset``: a dataset of single samples -> a pack index beside it, tokens untouched."""

from __future__ import annotations

import time

from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.repack import RepackConfig


def main(argv: list[str]) -> int:
    """Write the index, and say how full its rows are and how to train on it."""
    config = parse(
        RepackConfig,
        argv,
        program="repack_dataset.py",
        description="Pack a dataset of single samples into rows of any length, without touching its tokens.",
    )
    config.check()
    from mindspeed_ift.data.dataset import InstructionDataset
    from mindspeed_ift.data.pack_index import build_index
    from mindspeed_ift.data.packing import PackRules

    started = time.monotonic()
    rules = PackRules(
        config.seq_length, config.packing_algorithm, config.max_segments, config.pad_to_multiple_of, config.seed
    )
    index = build_index(InstructionDataset(config.data_path), rules, config.overlong)
    path = config.output or index.path(config.data_path)
    index.save(path)
    print(index.describe())
    print(f"{path} written in {time.monotonic() - started:.3f} s; train on it with --pack-index {path}")
    return 0
