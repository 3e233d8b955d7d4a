"""Device "cuda" without CUDA or values: what goes where, and where the host waits, in training as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.device.checks import HERE, assert_passed, report_of
from tests.device.fake_cuda.environment import Unavailable, environment

CHECKS = sorted((HERE / "on_fake_cuda").glob("check_*.py"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of all checks."""
    try:
        made = environment(tmp_path_factory.mktemp("cuda"))
    except Unavailable as reason:
        pytest.skip(str(reason))
    return report_of("on_fake_cuda", made, "-p", "tests.device.fake_cuda.plugin")


@pytest.mark.parametrize("checks", CHECKS, ids=lambda path: path.stem)
def test_checks_on_fake_cuda(report: str, checks: Path) -> None:
    assert_passed(report, checks)
