"""A dispatch mode under which tensors of the device are fake, those of the host real, and what happens is noted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

ROOT = Path(__file__).resolve().parents[3]
_aten = torch.ops.aten
_COPIES = (_aten._to_copy.default, _aten.copy_.default)
_NO_KERNEL = {"empty", "new_empty", "empty_like", "empty_strided", "_unsafe_view", "lift_fresh", "set_", "detach_"}
_ROWS_OF = {"index_select", "embedding", "gather"}
"""Operators that read as much as they write of their first tensor."""


class Wait(NamedTuple):
    """The host waits for the device: for what, and where, from the innermost place outwards."""

    what: str
    places: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.what} at {' <- '.join(self.places)}"


class Launch(NamedTuple):
    """What would start a kernel: an operator, bytes read and written, operations of a product, and the innermost place."""

    name: str
    read: int
    written: int
    operations: int
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    place: str


class FakeCuda(TorchDispatchMode):
    """Device "cuda", whose operators give shapes only; tensors of the host among those of the device are refused.

    Attributes:
        waits: of the host for the device.
        launches: what would start a kernel: no views.
        answers: what a tensor that is read from the device holds; ones, unless told otherwise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []
        self.launches: list[Launch] = []
        self.answers: Callable[[Tensor], Tensor] = lambda tensor: torch.ones(tensor.shape, dtype=tensor.dtype)
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._fused = False

    def wait(self, what: str) -> None:
        """Note that the host waits here."""
        self.waits.append(Wait(what, tuple(_places())))

    @contextmanager
    def fused(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> Iterator[None]:
        """All that is done within is one kernel, which reads the inputs and writes what ``outputs`` holds in the end."""
        before, self._fused = self._fused, True
        try:
            yield
        finally:
            self._fused = before
        if not before:
            self._launch(name, inputs, sum(map(_bytes, inputs)), sum(map(_bytes, outputs)), 0)

    def __enter__(self) -> FakeCuda:
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) goes by way of the host, as in truth
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        hosts = [tensor for tensor in tensors if not isinstance(tensor, FakeTensor)]
        asked = kwargs.get("device")
        kind = None if asked is None else torch.device(asked).type
        if len(hosts) == len(tensors) and kind != "cuda":
            return func(*args, **kwargs)
        if func.namespace == "c10d":
            return self._collective(func, args)
        if func in _COPIES and (hosts or kind == "cpu"):
            return self._crossing(func, args, kwargs)
        if func is _aten._local_scalar_dense.default:
            self.wait("a number is read")
            return self.answers(args[0]).item()
        _refuse(func, hosts)
        return self._run(func, args, kwargs)

    def _crossing(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """From the host to the device or back; the host waits, unless it said that it will not, and its memory is pinned."""
        in_place = func is _aten.copy_.default
        source = args[1] if in_place else args[0]
        patient = not (len(args) > 2 and args[2] if in_place else kwargs.get("non_blocking"))
        if isinstance(source, FakeTensor):
            if patient:
                self.wait(f"{source.numel()} numbers are read")
            answer = self.answers(source)
            return args[0].copy_(answer) if in_place else answer.to(kwargs.get("dtype") or answer.dtype)
        if patient or not source.is_pinned():
            how = "" if source.is_pinned() else "pageable "
            self.wait(f"{_bytes(source)} bytes of {how}memory go to the device")
        return self._run(func, args, kwargs)

    def _collective(self, func: Any, args: tuple[Any, ...]) -> Any:
        """Among one rank: nothing to be done."""
        work = FakeWork().boxed()
        found = [args[0] if "Tensor" in str(result.type) else work for result in func._schema.returns]
        return found[0] if len(found) == 1 else tuple(found)

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = tree_map_only(Tensor, self._faked, (args, kwargs))
        with self._fake:
            out = func(*args, **kwargs)
        if not (self._fused or func.is_view or func.namespace == "prim" or func._opname in _NO_KERNEL):
            self._note(func, args, kwargs, out)
        return out

    def _faked(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self._fake.from_tensor(tensor)

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Whoever is written in place is read too, unless it is overwritten as a whole."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        changed = [
            leaf
            for parameter, value in zip(func._schema.arguments, args)
            if parameter.alias_info is not None and parameter.alias_info.is_write
            for leaf in tree_leaves(value)
            if isinstance(leaf, Tensor)
        ]
        name = func._opname
        read = inputs[len(changed) :] if name in ("copy_", "zero_", "fill_") else inputs
        written = changed or [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        count = sum(map(_bytes, read))
        if name in _ROWS_OF:
            count += sum(map(_bytes, written)) - _bytes(inputs[0])
        self._launch(name, inputs, count, sum(map(_bytes, written)), _operations(func, args, kwargs, out))

    def _launch(self, name: str, inputs: list[Tensor], read: int, written: int, operations: int) -> None:
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        dtypes = tuple(str(tensor.dtype).removeprefix("torch.") for tensor in inputs)
        place = next(_places(), "autograd")
        self.launches.append(Launch(name, read, written, operations, shapes, dtypes, place))


def _operations(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Of a product; else 0."""
    formula = flop_registry.get(func._overloadpacket)
    factors = [one for one in args if not isinstance(one, torch.dtype)]
    return formula(*factors, **kwargs, out_val=out) if formula is not None else 0


def _refuse(func: Any, hosts: list[Tensor]) -> None:
    """Numbers of the host go along with a launch; more than one do not."""
    if any(tensor.dim() for tensor in hosts):
        raise RuntimeError(f"{func}: of the host, among tensors of the device: {[one.shape for one in hosts]}")


def _bytes(tensor: Tensor) -> int:
    """That lie in memory: what is expanded lies there once."""
    numbers = 1
    for size, stride in zip(tensor.shape, tensor.stride()):
        numbers *= size if stride or not size else 1
    return numbers * tensor.element_size()


def _places() -> Iterator[str]:
    """Lines of ours and of Megatron's that led here, the innermost first."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(str(ROOT / "mindspeed_ift")):
            yield f"{name[len(str(ROOT)) + 1 :]}:{frame.f_lineno} {frame.f_code.co_name}"
        elif "/megatron/core/" in name:
            yield f"{name[name.index('megatron/core/') :]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
