"""What is done where torch_npu is installed, with a stand-in for it; the real one runs in tests/device."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mindspeed_ift.config.errors import RunError
from mindspeed_ift.devices import npu


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user who has set one of the variables."""
    for name in npu.ENVIRONMENT:
        monkeypatch.setenv(name, "of the user")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("TASK_QUEUE_ENABLE", "1")


def put_in_path(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (folder / "torch_npu.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)


def test_without_torch_npu_nothing_is_set(environment: None) -> None:
    assert not npu.available()
    assert "HCCL_CONNECT_TIMEOUT" not in os.environ


def test_the_environment_is_set_before_the_import(
    environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_in_path(tmp_path, monkeypatch, "import os\nseen = dict(os.environ)\n")
    monkeypatch.setattr(torch, "get_device_module", lambda _: types.SimpleNamespace(is_available=lambda: True))
    assert npu.available()
    seen = sys.modules.pop("torch_npu").seen
    assert {name: seen[name] for name in npu.ENVIRONMENT} == npu.ENVIRONMENT | {"TASK_QUEUE_ENABLE": "1"}


def test_a_torch_npu_that_fails_is_named(environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_in_path(tmp_path, monkeypatch, "raise ImportError('libascendcl.so: cannot open shared object file')\n")
    with pytest.raises(RunError, match=r"torch_npu .* \(libascendcl.so: cannot open shared .*set_env.sh.*=cpu"):
        npu.available()


def test_the_type_of_a_tensor_is_said_as_megatron_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "type", lambda self, dtype=None: dtype or "torch.npu.BFloat16Tensor")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: None)
    npu.speak_of_cuda()
    assert torch.cuda.get_device_capability(torch.device("cpu"))[0] < 9  # as dist.broadcast asks
    assert torch.ones(1).type() == "torch.cuda.BFloat16Tensor"
    assert torch.ones(1).type(torch.float16) is torch.float16


def test_megatron_seeds_the_generators_of_the_device_once_it_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Callable[[], None]] = []
    module = types.SimpleNamespace(default_generators=(), _lazy_call=started.append)
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    monkeypatch.setattr(torch.cuda, "default_generators", ())
    npu.share_generators()
    module.default_generators = ("of device 0",)
    assert torch.cuda.default_generators == ()
    started[0]()
    assert torch.cuda.default_generators == ("of device 0",)


def test_megatron_must_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "megatron.core", types.ModuleType("megatron.core"))
    with pytest.raises(RunError, match="megatron.core was imported before mindspeed_ift.mcore"):
        npu.prepare()
