"""Kernels of the emulated NPU: what torch_npu serves with an operator library is computed by the CPU's kernel.

Whatever neither manages memory, nor is computed here, nor is put together from what is, raises. What torch_npu itself has
no kernel for, it takes to the CPU and back, as it does on a server.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C import _dispatch_has_kernel_for_dispatch_key as has_kernel
from torch.utils._pytree import tree_map

from tests.device.contract import require
from tests.device.emulated_npu.memory import is_on_device, on_device, on_host

LIBRARIES: list[torch.library.Library] = []
"""What is registered goes with its library."""

MEMORY = frozenset(
    "empty empty_strided empty_like new_empty_strided resize_ resize_as_ set_ is_set_to is_pinned _pin_memory "
    "record_stream empty_with_format unsafe_empty_with_format get_npu_format get_storage_size".split()
)
"""torch_npu's own kernels serve: they reserve and describe memory, and compute nothing."""

FROM_THE_HOST = frozenset("copy_ _to_copy _copy_from _copy_from_and_resize index index_put_ _index_put_impl_".split())
"""Take tensors of the host too."""

_COMPOSITE = ("CompositeExplicitAutograd", "CompositeImplicitAutograd", "CompositeExplicitAutogradNonFunctional")


_PLAIN_FORMATS = (0, 2)  # NCHW and ND
_OVERRIDE: dict[str, Any] = {"allow_override": True}
if "allow_override" not in inspect.signature(torch.library.Library.impl).parameters:
    _OVERRIDE = {}  # torch before 2.8 does so without being asked


class Unserved(NotImplementedError):
    """An operator that the emulated NPU does not compute."""


def install(own: dict[str, Callable[..., Any]]) -> None:
    """Put a kernel in the place of each of torch_npu's.

    Args:
        own: operator of torch_npu without its namespace -> function of tensors on the host.
    """
    libraries = {name: torch.library.Library(name, "IMPL") for name in ("aten", "npu")}
    LIBRARIES.extend(libraries.values())
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, overload_name = name.partition("::")
        base, _, overload = overload_name.partition(".")
        if namespace not in libraries or not has_kernel(name, "PrivateUse1") or base in MEMORY:
            continue
        packet = getattr(getattr(torch.ops, namespace), base, None)
        in_python = f"{namespace}/{overload_name}/PrivateUse1" in torch.library._impls
        if packet is None or in_python:  # a kernel of an operator that does not exist; put together from others
            continue
        kernel = _kernel_for(name, base, getattr(packet, overload or "default"), own)
        if kernel is not None:
            libraries[namespace].impl(overload_name, kernel, "PrivateUse1", **_OVERRIDE)


def _kernel_for(
    name: str, base: str, operator: torch._ops.OpOverload, own: dict[str, Callable[..., Any]]
) -> Callable[..., Any] | None:
    """None where torch_npu's own does no more than describe the same memory anew."""
    if name == "aten::contiguous":
        return _contiguous
    if name == "npu::npu_format_cast":
        return _format_cast
    if base in own:
        return computed(operator, own[base])
    if any(result.alias_info and not result.alias_info.is_write for result in operator._schema.returns):
        return None
    if any(has_kernel(name, key) for key in ("CPU", *_COMPOSITE)):
        return computed(operator, operator)
    return _refusal(name)


def _contiguous(tensor: Tensor, *, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    if tensor.is_contiguous(memory_format=memory_format):
        return tensor
    return tensor.clone(memory_format=memory_format)


def _format_cast(tensor: Tensor, acl_format: int) -> Tensor:
    """The emulated memory knows no layout but the plain ones, which are one."""
    require(acl_format in _PLAIN_FORMATS, f"npu_format_cast: no layout {acl_format} here")
    return tensor


def _refusal(name: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise Unserved(f"{name}: no kernel of the emulated NPU serves it")

    return refuse


def computed(operator: torch._ops.OpOverload, function: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that runs ``function`` on the same memory as CPU tensors.

    Results that are new are copied to the device; what changed in place is in place.
    """
    schema = operator._schema
    takes_host = schema.name.partition("::")[2] in FROM_THE_HOST
    draws = torch.Tag.nondeterministic_seeded in operator.tags or schema.name == "npu::_npu_dropout"

    def kernel(*args: Any, **options: Any) -> Any:
        visit = _Visit(schema.name, takes_host)
        device = options.get("device")
        generator = options.get("generator")
        moved_args, moved_options = tree_map(visit.to_host, args), tree_map(visit.to_host, options)
        with _numbers_of(generator, visit.device) if draws else contextlib.nullcontext():
            result = function(*moved_args, **moved_options)
        visit.keep_changes()
        if device is not None and torch.device(device).type != "npu":
            return result
        return tree_map(visit.from_host, result)

    return kernel


class _Visit:
    """The tensors of one call, there and back."""

    def __init__(self, name: str, takes_host: bool) -> None:
        self.name, self.takes_host = name, takes_host
        self.device: torch.device | None = None
        self.pairs: dict[int, tuple[Tensor, Tensor, int]] = {}

    def to_host(self, value: Any) -> Any:
        if isinstance(value, torch.Generator):
            return None  # the kernel draws what `_numbers_of` says
        if isinstance(value, torch.device):
            if value.type == "npu":
                self.device = value
                return torch.device("cpu")
            return value
        if not isinstance(value, Tensor):
            return value
        if not is_on_device(value):
            if value.dim() and not self.takes_host:
                raise RuntimeError(f"{self.name}: expected all tensors on the NPU, but found one on {value.device}")
            return value
        if self.device is not None and self.device.index not in (None, value.device.index) and not self.takes_host:
            raise RuntimeError(f"{self.name}: found tensors on {self.device} and {value.device}")
        self.device = self.device or value.device
        host = on_host(value)
        self.pairs[id(host)] = (value, host, host.data_ptr())
        return host

    def keep_changes(self) -> None:
        """What the function made larger or smaller, as it may do with ``out``."""
        for value, host, place in self.pairs.values():
            if host.shape != value.shape or host.data_ptr() != place:
                value.resize_(host.shape)
                on_host(value).copy_(host)

    def from_host(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in self.pairs:
            return self.pairs[id(value)][0]
        return on_device(value, self.device or torch.device("npu"))


@contextlib.contextmanager
def _numbers_of(generator: torch.Generator | None, device: torch.device | None) -> Iterator[None]:
    """Let the host draw what follows from the device generator's seed and offset, and move that on, as the device does."""
    if generator is None:
        index = None if device is None else device.index
        module = torch.get_device_module("npu")
        generator = module.default_generators[module.current_device() if index is None else index]
    host = torch.default_generator
    before, offset = host.get_state(), generator.get_offset()
    host.manual_seed(hash((generator.initial_seed(), offset)) % 2**63)
    try:
        yield
    finally:
        host.set_state(before)
        generator.set_offset(offset + 4)
