"""Files of torch.save: what torch loads, without torch, from anywhere in a file; what is damaged or would run code is not."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mindspeed_ift.checkpoint.loading import StoredTensor, load_places, load_without_code
from mindspeed_ift.checkpoint.placed import Place
from mindspeed_ift.checkpoint.torch_file import read_tensor

DTYPES = [
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
]
DTYPES += [torch.uint8, torch.bool, torch.uint16, torch.float8_e4m3fn]
WHOLE = torch.arange(24.0).view(4, 6)


def some_state() -> dict[str, Any]:
    told = torch.ones(2)
    told.partition_dim = 0  # type: ignore[attr-defined]
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.shared = True  # type: ignore[attr-defined]
    return {
        "dtypes": {str(dtype): (torch.arange(6) % 2).to(dtype) for dtype in DTYPES},
        "views": [WHOLE, WHOLE.T, WHOLE[1:3, ::2], WHOLE[2, 3], WHOLE[:0]],
        "typed": (torch.nn.Parameter(torch.ones(2, 2)), parameter, told, torch.empty(0), torch.tensor(3)),
        "plain": collections.OrderedDict(number=1, text="\u00e9", size=torch.Size([2]), dtype=torch.int8, none=None),
    }


def tensors_of(content: Any, kind: type) -> list[Any]:
    if isinstance(content, kind):
        return [content]
    values = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return [one for value in values for one in tensors_of(value, kind)]


@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_are_what_torch_loads(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "some.pt"
    torch.save(some_state(), path, pickle_protocol=protocol)
    expected = torch.load(path, weights_only=False)
    found, stored = load_without_code(path), load_places(path)
    assert found["plain"] == stored["plain"] == expected["plain"] and type(found["plain"]) is type(expected["plain"])
    wanted, placed = tensors_of(expected, Tensor), tensors_of(stored, StoredTensor)
    assert len(wanted) == len(placed) == len(DTYPES) + 10
    for one, whole, place in zip(wanted, tensors_of(found, Tensor), placed, strict=True):
        for other in (whole, read_tensor(path, place)):
            assert (other.dtype, other.shape, other.stride()) == (one.dtype, one.shape, one.stride())
            assert other.tolist() == one.tolist()
    assert len({one.place for one in stored["views"]}) == 1
    found["views"][0].zero_()
    assert not found["views"][2].any()  # they share their storage here too


def test_an_archive_lies_anywhere_in_a_file(tmp_path: Path) -> None:
    path, places = tmp_path / "many", []
    with open(path, "wb") as file:
        for number in range(3):
            file.write(b"PK\5\6"[: 1 + number])  # begins anywhere, and what is around it looks like an end
            start = file.tell()
            torch.save(WHOLE + number, file)
            places.append(Place(start, file.tell() - start))
        file.write(b"PK\5\6")
    for number, place in enumerate(places):
        assert torch.equal(read_tensor(path, load_places(path, place)), WHOLE + number)


def test_places_beyond_four_gibibytes(tmp_path: Path) -> None:
    path, last = tmp_path / "large.pt", torch.empty(5, dtype=torch.int16)
    with torch.serialization.skip_data(), open(path, "wb") as file:  # a hole, which takes no disk
        torch.save([torch.empty(5 << 30, dtype=torch.uint8), last], file)
    place = load_places(path)[1].place
    assert place.start > 5 << 30
    with open(path, "r+b") as file:
        file.seek(place.start)
        file.write(torch.arange(5, dtype=torch.int16).numpy().tobytes())
    assert torch.load(str(path), weights_only=True, mmap=True)[1].tolist() == [0, 1, 2, 3, 4]
    assert read_tensor(path, load_places(path)[1]).tolist() == [0, 1, 2, 3, 4]


def test_tensors_that_were_saved_on_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ascend's extension of torch names a function of its own."""
    module = types.ModuleType("torch_npu.utils.storage")

    def _rebuild_npu_tensor(*_: Any) -> None:
        raise AssertionError("not called")

    _rebuild_npu_tensor.__module__, _rebuild_npu_tensor.__qualname__ = module.__name__, _rebuild_npu_tensor.__name__
    module._rebuild_npu_tensor = _rebuild_npu_tensor  # type: ignore[attr-defined]
    for name in ("torch_npu", "torch_npu.utils", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)

    class OnDevice:
        def __reduce__(self) -> tuple[Any, ...]:
            tensor = WHOLE.T
            arguments = tensor._typed_storage(), 0, tuple(tensor.size()), tensor.stride(), False, {}, 2
            return _rebuild_npu_tensor, arguments

    torch.save({"model": {"w": OnDevice()}}, tmp_path / "device.pt")
    assert torch.equal(load_without_code(tmp_path / "device.pt")["model"]["w"], WHOLE.T)


def rewritten(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """The same archive with other bytes in its parts."""
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in parts.items():
            new.writestr(name, change(name.partition("/")[2], content))


def outside(name: str, content: bytes) -> bytes:
    """The tensor is to have 25 columns in place of 6."""
    changed = content.replace(b"K\x04K\x06\x86", b"K\x04K\x19\x86")
    assert name != "data.pkl" or changed != content
    return changed


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: rewritten(path, outside), r"shape \(4, 25\) does not lie within its bytes"),
        (lambda path: rewritten(path, lambda name, content: content[:-8] if name == "data/0" else content), "88 bytes"),
        (lambda path: rewritten(path, lambda _, content: content, zipfile.ZIP_DEFLATED), "is damaged"),
        (
            lambda path: rewritten(path, lambda name, content: b"big" if name == "byteorder" else content),
            "order is big",
        ),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"PK\3\4", b"PK\0\4")), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "not a zip file"),
        (lambda path: torch.save(WHOLE, path, _use_new_zipfile_serialization=False), "not a zip file"),
        (lambda path: torch.save({"model": Path("some")}, path), "has no place beside weights"),
    ],
    ids=["shape", "size", "compressed", "byte order", "header", "cut", "before torch 1.6", "other classes"],
)
def test_what_is_wrong_is_said(tmp_path: Path, harm: Callable[[Path], Any], message: str) -> None:
    path = tmp_path / "some.pt"
    torch.save(WHOLE, path)
    harm(path)
    for load in (load_places, load_without_code):
        with pytest.raises((pickle.UnpicklingError, zipfile.BadZipFile), match=message):
            load(path)


class Call:
    """Calls a function of ours or others when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments, self.state


def test_beside_arguments_all_that_is_not_known_is_nothing(tmp_path: Path) -> None:
    path, ran = tmp_path / "some.pt", tmp_path / "ran"
    others = [Call(os.mkdir, str(ran)), Call(argparse.Namespace, state={"run": Call(eval, f"open({str(ran)!r}, 'w')")})]
    torch.save({"args": argparse.Namespace(a=others), "others": others, "w": WHOLE}, path)
    found = load_without_code(path)
    assert torch.equal(found["w"], WHOLE) and type(found["args"]) is argparse.Namespace
    assert not ran.exists()
    torch.save({"others": others[:1], "w": WHOLE}, path)
    with pytest.raises(pickle.UnpicklingError, match="mkdir has no place beside weights"):
        load_without_code(path)
    assert not ran.exists()
