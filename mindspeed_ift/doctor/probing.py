"""The process in which the doctor touches torch, the device and Megatron-core.

``python -m mindspeed_ift.doctor.probing ACCOUNT`` writes what it finds into that file (see `finding.Account`).
"""

from __future__ import annotations

import sys
from pathlib import Path

from mindspeed_ift.devices.diagnosis.finding import Account, Finding
from mindspeed_ift.devices.diagnosis.probes import look


def _megatron() -> list[Finding]:
    import mindspeed_ift.mcore  # noqa: F401 - prepares the device, then imports megatron.core

    return [Finding("import megatron.core", "green", "with torch made ready for it")]


def main(words: list[str]) -> None:
    """Look at everything."""
    account = Account(Path(words[0]))
    look(account)
    account.step("import megatron.core", _megatron)
    account.end()


if __name__ == "__main__":
    main(sys.argv[1:])
