"""What ranks need to find each other: name of the machine, interfaces, ports, timeouts."""

from __future__ import annotations

from mindspeed_ift.devices.diagnosis.facts import Facts
from mindspeed_ift.devices.diagnosis.finding import Finding

_INTERFACES = {"npu": "HCCL_SOCKET_IFNAME", "cuda": "NCCL_SOCKET_IFNAME"}
_HCCL_PORT, _HCCL_PORTS = 60000, 16
_LEAST_SECONDS = {"HCCL_CONNECT_TIMEOUT": 120, "HCCL_EXEC_TIMEOUT": 1800}
"""Of a rank that loads large weights, others wait for it; --distributed-timeout-minutes is 30."""


def check_host(facts: Facts) -> list[Finding]:
    """Ranks of gloo and of torchrun look up the name of their machine."""
    if facts.host_resolves:
        return [Finding("host name", "green", facts.host)]
    remedy = f"add '127.0.0.1 {facts.host}' to /etc/hosts (of several machines: the address the others reach)"
    return [Finding("host name", "yellow", f"{facts.host} has no address", remedy)]


def check_interfaces(facts: Facts, kind: str) -> list[Finding]:
    """Interfaces that are asked for are there."""
    findings = []
    for name in filter(None, (_INTERFACES.get(kind), "GLOO_SOCKET_IFNAME")):
        value = facts.environment.get(name, "")
        if not value:
            findings.append(Finding(name, "green", f"not set: chosen among {', '.join(facts.interfaces) or 'none'}"))
            continue
        missing = [word for word in value.lstrip("^=").split(",") if not _is_there(word, value, facts.interfaces)]
        if missing and not value.startswith("^"):
            told = f"{value}, but there is no {missing[0]}; there are {', '.join(facts.interfaces)}"
            findings.append(Finding(name, "red", told, f"export {name}= one that all machines have, or unset it"))
        else:
            findings.append(Finding(name, "green", value))
    return findings


def _is_there(word: str, value: str, interfaces: tuple[str, ...]) -> bool:
    """NCCL and HCCL take the beginning of a name, and behind '=' the whole."""
    return any(one == word if value.startswith("=") else one.startswith(word) for one in interfaces)


def check_ports(facts: Facts, kind: str) -> list[Finding]:
    """Ports where ranks meet can be bound."""
    findings = []
    here = facts.environment.get("MASTER_ADDR", "localhost") in ("localhost", "127.0.0.1", facts.host)
    port = facts.environment.get("MASTER_PORT", "")
    if not port:
        findings.append(Finding("MASTER_PORT", "green", "not set: one machine takes a free port, several 6000"))
    elif not port.isdecimal() or not 0 < int(port) < 65536:
        findings.append(Finding("MASTER_PORT", "red", f"{port} is no port", "export MASTER_PORT=6000"))
    elif here and not facts.port_free(int(port)):
        remedy = "end the run that has it, or export another MASTER_PORT"
        findings.append(Finding("MASTER_PORT", "red", f"{port} is taken on this machine", remedy))
    else:
        findings.append(Finding("MASTER_PORT", "green", port if here else f"{port} of another machine, not tried"))
    return findings + (_hccl_ports(facts) if kind == "npu" else [])


def _hccl_ports(facts: Facts) -> list[Finding]:
    name, text = "HCCL_IF_BASE_PORT", facts.environment.get("HCCL_IF_BASE_PORT", str(_HCCL_PORT))
    if not text.isdecimal() or not 1024 <= int(text) <= 65520:
        return [Finding(name, "red", f"{text} is not within 1024 and 65520", f"export {name}={_HCCL_PORT}")]
    first = int(text)
    taken = [port for port in range(first, first + _HCCL_PORTS) if not facts.port_free(port)]
    if taken:
        remedy = f"end what has it, or export {name}= the first of {_HCCL_PORTS} free ports, the same on all machines"
        return [Finding(name, "yellow", f"{text}: port {taken[0]} is taken", remedy)]
    return [Finding(name, "green", f"{text} to {first + _HCCL_PORTS - 1} are free")]


def check_timeouts(facts: Facts, kind: str) -> list[Finding]:
    """Patience of HCCL; NCCL's and gloo's is a flag."""
    flag = "--distributed-timeout-minutes (30 unless given)"
    findings = [Finding("timeout of collectives", "green", flag)]
    for name, least in _LEAST_SECONDS.items() if kind == "npu" else ():
        value = facts.environment.get(name, "")
        if value and (not value.isdecimal() or int(value) < least):
            findings.append(Finding(name, "yellow", f"{value} seconds", f"export {name}=1800"))
    return findings
