"""Names, interfaces, ports and timeouts of worlds that are right and wrong."""

from __future__ import annotations

import pytest

from mindspeed_ift.devices.diagnosis.facts import Facts, port_free
from mindspeed_ift.devices.diagnosis.network import check_host, check_interfaces, check_ports, check_timeouts


def world(busy: tuple[int, ...] = (), **environment: str) -> Facts:
    return Facts(
        environment=environment,
        interfaces=("lo", "eth0", "bond1"),
        host="here",
        port_free=lambda port: port not in busy,
    )


def test_the_name_of_the_machine() -> None:
    (good,), (bad,) = check_host(Facts(host="here")), check_host(Facts(host="here", host_resolves=False))
    assert (good.level, bad.level) == ("green", "yellow") and "/etc/hosts" in bad.remedy


@pytest.mark.parametrize(
    ("kind", "name", "value", "level"),
    [
        ("npu", "HCCL_SOCKET_IFNAME", "eth", "green"),
        ("npu", "HCCL_SOCKET_IFNAME", "=eth", "red"),
        ("npu", "HCCL_SOCKET_IFNAME", "=eth0", "green"),
        ("cuda", "NCCL_SOCKET_IFNAME", "^docker0,lo", "green"),
        ("cuda", "NCCL_SOCKET_IFNAME", "ib0", "red"),
        ("cpu", "GLOO_SOCKET_IFNAME", "eth0", "green"),
        ("cpu", "GLOO_SOCKET_IFNAME", "eth7", "red"),
    ],
)
def test_interfaces(kind: str, name: str, value: str, level: str) -> None:
    found = {one.name: one for one in check_interfaces(world(**{name: value}), kind)}
    assert found[name].level == level
    assert (found[name].remedy != "") == (level == "red")
    assert "bond1" in {one.name: one for one in check_interfaces(world(), kind)}[name].found


@pytest.mark.parametrize(
    ("environment", "level"),
    [
        ({}, "green"),
        ({"MASTER_PORT": "6000"}, "red"),
        ({"MASTER_PORT": "6000", "MASTER_ADDR": "here"}, "red"),
        ({"MASTER_PORT": "6000", "MASTER_ADDR": "10.0.0.1"}, "green"),
        ({"MASTER_PORT": "6001"}, "green"),
        ({"MASTER_PORT": "70000"}, "red"),
        ({"MASTER_PORT": "six"}, "red"),
    ],
)
def test_where_ranks_meet(environment: dict[str, str], level: str) -> None:
    (finding,) = check_ports(world((6000,), **environment), "cpu")
    assert finding.level == level and bool(finding.remedy) == (level == "red")


def test_ports_of_hccl() -> None:
    assert [one.level for one in check_ports(world(), "npu")] == ["green", "green"]
    taken = check_ports(world((60015,)), "npu")[1]
    assert taken.level == "yellow" and "60015" in taken.found
    assert check_ports(world((60015,), HCCL_IF_BASE_PORT="50000"), "npu")[1].level == "green"
    assert check_ports(world(HCCL_IF_BASE_PORT="80"), "npu")[1].level == "red"


def test_timeouts() -> None:
    assert [one.level for one in check_timeouts(world(HCCL_EXEC_TIMEOUT="60"), "cpu")] == ["green"]
    assert [one.level for one in check_timeouts(world(HCCL_EXEC_TIMEOUT="1836"), "npu")] == ["green"]
    short = check_timeouts(world(HCCL_EXEC_TIMEOUT="60"), "npu")[1]
    assert (short.name, short.level, short.remedy) == ("HCCL_EXEC_TIMEOUT", "yellow", "export HCCL_EXEC_TIMEOUT=1800")


def test_a_port_that_is_taken() -> None:
    import socket

    with socket.socket() as one:
        one.bind(("", 0))
        one.listen()
        assert not port_free(one.getsockname()[1])
    assert not port_free(70000)
