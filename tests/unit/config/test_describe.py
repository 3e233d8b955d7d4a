"""What a run says of its configuration."""

from __future__ import annotations

from pathlib import Path

from mindspeed_ift.config.accepted import ACCEPTED
from mindspeed_ift.config.describe import describe, flags_by_origin
from mindspeed_ift.config.flags import Parsed, parse_with_origins, values
from mindspeed_ift.config.tuning import TuneConfig


def read(tmp_path: Path) -> tuple[Parsed, str]:
    file = tmp_path / "run.yaml"
    file.write_text("lr: 2e-6\ndata-path: [a, b]", encoding="utf-8")
    line = ["--config", str(file), "--no-shuffle", "--save", "out", "--swiglu"]
    return parse_with_origins(TuneConfig, line, program="test", accepted=ACCEPTED), str(file)


def test_what_is_not_default_is_told_with_its_origin(tmp_path: Path) -> None:
    parsed, file = read(tmp_path)
    assert describe(parsed).splitlines() == [
        "configuration (all else is default):",
        f"  --config = {file}   (flag)",
        "  --shuffle = False   (flag)",
        "  --save = out   (flag)",
        f"  --data-path = a b   ({file})",
        f"  --lr = 2e-06   ({file})",
        "--swiglu changes nothing here: it is always so for Qwen3",
    ]


def test_every_value_stands_under_one_origin(tmp_path: Path) -> None:
    parsed, file = read(tmp_path)
    groups = flags_by_origin(parsed)
    assert list(groups) == ["flag", file, "default"]
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(name.replace("_", "-") for name in values(parsed.config))
