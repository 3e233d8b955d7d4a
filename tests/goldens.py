"""The public face of the command line as text: every flag, and what six command lines come to.

``python -m tests.goldens`` in the root of the repository writes the files anew; the difference then shows in review.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path

from mindspeed_ift.cli.main import COMMANDS
from mindspeed_ift.config.accepted import ACCEPTED
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.describe import as_text, flags_by_origin, settings
from mindspeed_ift.config.flags import options, parse_with_origins
from mindspeed_ift.config.layout import layout_of
from mindspeed_ift.config.resolve import resolve_architecture
from mindspeed_ift.config.rules import check_flags, check_layout
from mindspeed_ift.config.tuning import TuneConfig

GOLDEN = Path(__file__).parent / "golden"
REFRESH = "if this is meant, run `python -m tests.goldens` and look at the difference"

# Name of the golden file -> processes, command line. Relative paths are of the repository's root.
CONFIGS = {
    "fixed_8b_tp8_sp": (
        8,
        "--preset qwen3-8b --tensor-model-parallel-size 8 --sequence-parallel --bf16 --data-path data/qwen3 "
        "--train-iters 2000 --global-batch-size 16 --lr 1.25e-6 --min-lr 1.25e-7 --lr-warmup-fraction 0.01",
    ),
    "dynamic_0.6b": (
        8,
        "--preset qwen3-0.6b --bf16 --data-path data/qwen3 --no-pad-to-seq-lengths --seq-length 8192 "
        "--train-iters 100 --micro-batch-size 2 --global-batch-size 32 --no-shuffle --no-load-optim",
    ),
    "packed_1.7b": (
        4,
        "--preset qwen3-1.7b --bf16 --data-path data/qwen3_pack --reset-attention-mask --reset-position-ids "
        "--neat-pack --seq-length 32768 --train-iters 100 --recompute-granularity full --recompute-method uniform "
        "--recompute-num-layers 1 --loss-compute-mode chunk",
    ),
    "spelled_out_tp2_pp2_distributed_optimizer": (
        8,
        "--num-layers 4 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4 --group-query-attention "
        "--num-query-groups 2 --kv-channels 16 --qk-layernorm --untie-embeddings-and-output-weights "
        "--padded-vocab-size 152064 --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 "
        "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather --data-path data/qwen3 "
        "--train-iters 10 --swiglu --attention-dropout 0.0 --use-flash-attn",
    ),
    "hugging_face_8b_pp2": (
        8,
        "--load tests/golden/models/qwen3-8b --enable-hf2mg-convert --finetune --pipeline-model-parallel-size 2 "
        "--sequence-parallel --max-position-embeddings 4096 --bf16 --data-path data/qwen3 --prompt-type qwen3 "
        "--enable-thinking true --train-iters 2000 --save output/run --save-interval 1000",
    ),
    "file_and_flags_4b": (
        2,
        "--config tests/golden/models/run.yaml --preset qwen3-4b --train-iters 20 --pad-to-seq-lengths --no-bf16",
    ),
}


def flags_text() -> str:
    """A line ``command --flag: type = default`` for every flag of every command."""
    return "".join(f"{line}\n" for command in sorted(COMMANDS) for line in sorted(_flag_lines(command)))


def config_text(name: str) -> str:
    """What one of `CONFIGS` comes to, by the steps of a run that need no data."""
    world, line = CONFIGS[name]
    parsed = parse_with_origins(TuneConfig, line.split(), program="posttrain_gpt.py", accepted=ACCEPTED)
    config: TuneConfig = parsed.config
    check_flags(config)
    layout = layout_of(config.layout, world)
    folder = config.run.load
    loaded = {f"--load {folder}": Architecture.from_hugging_face(folder)} if folder is not None else {}
    architecture, _ = resolve_architecture(config.model, loaded, 151669, len(layout.noop_layers))
    check_layout(config, architecture, layout)
    found = settings(config, architecture, layout)
    content = {**found, "flags": flags_by_origin(parsed), "ignored": parsed.ignored}
    order = ("flags", "ignored", "architecture", "layout")
    return f"# {world} processes: {line}\n" + as_text({key: content[key] for key in order})


def _flag_lines(command: str) -> Iterator[str]:
    module = importlib.import_module(f"mindspeed_ift.cli.{command.replace('-', '_')}")
    found = [one for one in vars(module).values() if isinstance(one, type) and one.__name__.endswith("Config")]
    (config_class,) = (one for one in found if dataclasses.is_dataclass(one))
    for option in options(config_class):
        default = "" if option.default is dataclasses.MISSING else f" = {option.default!r}"
        yield f"{command} {option.flag}: {' '.join(option.written_type.split())}{default}"


def main() -> None:
    """Write every golden file."""
    (GOLDEN / "flags.txt").write_text(flags_text(), encoding="utf-8")
    for name in CONFIGS:
        (GOLDEN / "configs" / f"{name}.yaml").write_text(config_text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
