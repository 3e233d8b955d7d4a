"""How a process gets the emulated NPU: by its environment alone."""

from __future__ import annotations

from pathlib import Path

from tests.device import torch_npu_wheel

HERE = Path(__file__).parent


def environment(folder: Path) -> dict[str, str]:
    """Environment of a process in which torch_npu finds eight devices; ``folder`` is for the stand-ins of CANN's libraries.

    Raises:
        Unavailable: there is no wheel, C compiler or nm.
    """
    runtime = (HERE / "runtime.c").read_text(encoding="utf-8")
    made = torch_npu_wheel.environment(torch_npu_wheel.build_stand_ins(folder, runtime))
    made.pop("MINDSPEED_IFT_DEVICE", None)
    # Kernels here read memory at once: what torch_npu moves by itself must not wait in the queue of another thread.
    return made | {"PYTHONPATH": f"{HERE / 'hook'}:{made['PYTHONPATH']}", "TASK_QUEUE_ENABLE": "0"}
