"""The vendor's MindSpeed, installed or not: nothing here imports it, and what it would patch stays as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
_STAND_INS = {
    "mindspeed": "import megatron.core.parallel_state as state\nstate.get_tensor_model_parallel_rank = lambda: 7\n",
    "mindspeed_llm": "raise RuntimeError('mindspeed_llm was imported')",
}
_IMPORTS_ALL = """
import importlib, pkgutil, sys
import mindspeed_ift
for module in pkgutil.walk_packages(mindspeed_ift.__path__, "mindspeed_ift."):
    importlib.import_module(module.name)
assert not [name for name in sys.modules if name.split(".")[0] in ("mindspeed", "mindspeed_llm")]
from mindspeed_ift.mcore import parallel_state
assert parallel_state.get_tensor_model_parallel_rank.__name__ != "<lambda>"
"""


def test_an_installed_mindspeed_is_left_alone(tmp_path: Path) -> None:
    for name, text in _STAND_INS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text, encoding="utf-8")
        (tmp_path / name / "megatron_adaptor.py").write_text("", encoding="utf-8")
    environment = dict(os.environ, PYTHONPATH=f"{tmp_path}:{ROOT}", MINDSPEED_IFT_DEVICE="cpu")
    command = [sys.executable, "-W", "ignore", "-c", _IMPORTS_ALL]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
