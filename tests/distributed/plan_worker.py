"""Measures tiny models on two ranks: writes a JSON list, a list of figures for each of `CASES`."""

from __future__ import annotations

import json
from pathlib import Path

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.layout import LayoutFlags, layout_of
from mindspeed_ift.planning.memory import Case
from tests.measured_memory import config_of

_SIZES = {"num_layers": 4, "hidden_size": 128, "ffn_hidden_size": 384, "num_attention_heads": 8}
DENSE = Architecture(**_SIZES, num_query_groups=2, kv_channels=32, vocab_size=2000)
TENSOR = LayoutFlags(tensor_model_parallel_size=2, sequence_parallel=True)
PIPELINE = LayoutFlags(pipeline_model_parallel_size=2)
CONTEXT = LayoutFlags(context_parallel_size=2, use_distributed_optimizer=True)
# Flags, micro-batches of a step.
_RUNS = [
    (config_of(bf16=True, packed=True, micro_batch_size=2, layout=TENSOR), 1),
    (config_of(bf16=True, layout=CONTEXT), 1),
    (config_of(bf16=True, packed=True, micro_batch_size=2, layout=PIPELINE), 4),
]
CASES = [Case(config, DENSE, layout_of(config.layout, 2), 512, number) for config, number in _RUNS]


def run_line(words: list[str]) -> None:
    """Measure each case on both ranks; rank 0 writes what both found into the file that is the only word."""
    import torch.distributed as dist

    from mindspeed_ift.devices.device import current
    from mindspeed_ift.parallel import groups as process_groups
    from tests.measured_memory import measure

    found = []
    for case in CASES:
        groups = process_groups.start(case.layout, current(), seed=1)
        found.append([vars(one) for one in groups.gather(measure(case, groups))])
        process_groups.stop(groups)
    if dist.get_rank() == 0:
        Path(words[0]).write_text(json.dumps(found), encoding="utf-8")
