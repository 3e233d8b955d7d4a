"""Variables: set well, set otherwise, not set; for each kind of device its own."""

from __future__ import annotations

from mindspeed_ift.devices import npu
from mindspeed_ift.devices.diagnosis.environment import VARIABLES, check_environment
from mindspeed_ift.devices.diagnosis.facts import Facts
from mindspeed_ift.devices.diagnosis.finding import Finding
from mindspeed_ift.devices.kernels.table import SWITCH


def found(kind: str, own: dict[str, str] | None = None, **environment: str) -> dict[str, Finding]:
    return {one.name: one for one in check_environment(Facts(environment=environment, cpus=2), kind, own or {})}


def test_nothing_is_set_on_a_cpu() -> None:
    assert {one.level for one in found("cpu").values()} == {"green"}


def test_a_value_that_is_not_the_recommended_one() -> None:
    finding = found("cuda", CUDA_DEVICE_MAX_CONNECTIONS="8")["CUDA_DEVICE_MAX_CONNECTIONS"]
    assert (finding.level, finding.remedy) == ("yellow", "export CUDA_DEVICE_MAX_CONNECTIONS=1")
    assert found("cuda", CUDA_DEVICE_MAX_CONNECTIONS="1")["CUDA_DEVICE_MAX_CONNECTIONS"].level == "green"
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in found("cpu", CUDA_DEVICE_MAX_CONNECTIONS="8")


def test_what_should_not_be_set() -> None:
    assert found("npu", ASCEND_LAUNCH_BLOCKING="1")["ASCEND_LAUNCH_BLOCKING"].remedy == "unset ASCEND_LAUNCH_BLOCKING"
    assert found("npu", ASCEND_LAUNCH_BLOCKING="0")["ASCEND_LAUNCH_BLOCKING"].level == "green"
    assert SWITCH in [one.name for one in VARIABLES]
    assert found("cpu", **{SWITCH: "all"})[SWITCH].level == "yellow"


def test_what_nobody_sets() -> None:
    assert found("cuda")["PYTORCH_CUDA_ALLOC_CONF"].remedy == "export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"


def test_what_a_run_sets_itself() -> None:
    assert {found("npu", npu.ENVIRONMENT)[name].level for name in npu.ENVIRONMENT} == {"green"}
    assert (
        found("npu", npu.ENVIRONMENT, TASK_QUEUE_ENABLE="0")["TASK_QUEUE_ENABLE"].remedy == "export TASK_QUEUE_ENABLE=2"
    )


def test_threads() -> None:
    levels = {
        value: found("cpu", OMP_NUM_THREADS=value)["OMP_NUM_THREADS"].level for value in ("1", "2", "3", "0", "x")
    }
    assert levels == {"1": "green", "2": "green", "3": "yellow", "0": "yellow", "x": "yellow"}
