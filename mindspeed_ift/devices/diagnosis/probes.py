"""What the doctor touches of the device: torch, the device, its memory, its kernels; in a process of its own."""

from __future__ import annotations

from mindspeed_ift.devices.diagnosis.facts import gather
from mindspeed_ift.devices.diagnosis.finding import Account, Finding
from mindspeed_ift.devices.diagnosis.software import check_choice

_LEAST_FREE = 0.9


def _torch() -> list[Finding]:
    import torch

    return [Finding("import torch", "green", f"{torch.__version__}, {torch.get_num_threads()} threads")]


def _device(account: Account) -> list[Finding]:
    from mindspeed_ift.devices import npu
    from mindspeed_ift.devices.device import count, current

    device = current()
    account.tell(
        kind=device.kind,
        backend=device.backend,
        devices=count(),
        environment=npu.ENVIRONMENT if device.kind == "npu" else {},
    )
    told = f"{device.kind}, {count()} of them: {device.reason}; kernels: {device.kernel_notice}"
    return [Finding("device", "green", told), *check_choice(gather({}), device.kind)]


def _memory() -> list[Finding]:
    import torch

    from mindspeed_ift.devices.device import count, current

    if not current().asynchronous:
        return []  # the host's is looked at elsewhere
    module, findings = torch.get_device_module(current().kind), []
    for number in range(count()):
        free, total = module.mem_get_info(number)
        told = f"{module.get_device_name(number)}: {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        taken = free < _LEAST_FREE * total
        remedy = "another process holds the rest: look at npu-smi info or nvidia-smi, and end it" if taken else ""
        findings.append(Finding(f"device {number}", "yellow" if taken else "green", told, remedy))
    return findings


def _kernels(account: Account) -> list[Finding]:
    from mindspeed_ift.devices.kernels.probes import PROBED

    for group in PROBED:
        account.step(f"kernel {group}", lambda group=group: _kernel(group))
    return []


def _kernel(group: str) -> list[Finding]:
    from mindspeed_ift.devices.device import current
    from mindspeed_ift.devices.kernels.probes import PROBED, TOLERANCES, deviations

    found, wrong = [], False
    for dtype in PROBED[group]:
        tolerance = TOLERANCES[dtype]
        largest = max(deviations(current().kernels, group, current().torch_device, dtype))
        wrong = wrong or not largest <= tolerance
        found.append(f"{largest:.1e} in {str(dtype).removeprefix('torch.')} (at most {tolerance:.0e})")
    told = f"largest deviation from plain fp32: {', '.join(found)}"
    if not wrong:
        return [Finding(f"kernel {group}", "green", told)]
    switch = group.split()[0]
    return [Finding(f"kernel {group}", "red", told, f"export MINDSPEED_IFT_PLAIN_KERNELS={switch}, and report it")]


def look(account: Account) -> None:
    """Touch everything; each step for itself."""
    account.step("import torch", _torch)
    account.step("device", lambda: _device(account))
    account.step("kernels", lambda: _kernels(account))
    # Once it has touched other devices, torch_npu's backward pass ends the process: they have no stream yet.
    account.step("memory of the devices", _memory)
