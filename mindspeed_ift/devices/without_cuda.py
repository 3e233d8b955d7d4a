"""What Megatron-core must be told where there is no CUDA.

Megatron-core writes ``torch.cuda`` and ``device="cuda"`` in its own modules. An import hook gives each of them a
stand-in of torch whose ``cuda`` is the CPU; torch itself stays as it is for everybody else (patching it for all breaks
``torch.device("meta")`` contexts in other libraries without a word). Only the Tensor and Module methods that name a
device are patched for all, and they act on nothing but "cuda".
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch

_PREFIX = "megatron.core"
_CPU = torch.device("cpu")
_FACTORIES = (
    "tensor zeros ones empty full arange rand randn randint randperm linspace eye as_tensor "
    "zeros_like empty_like ones_like full_like rand_like randn_like empty_strided"
).split()


def install() -> None:
    """Install the import hook and the method patches, once.

    Raises:
        RuntimeError: Megatron-core was imported before; its modules already hold the real torch.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    if any(name == _PREFIX or name.startswith(_PREFIX + ".") for name in sys.modules):
        raise RuntimeError("megatron.core was imported before mindspeed_ift.mcore; import mindspeed_ift.mcore first")
    sys.meta_path.insert(0, _Finder(_stand_in_of_torch()))
    _patch_tensor_methods()


def import_uncompiled() -> None:
    """Let Megatron-core's modules define what they would compile as plain functions, and change nothing else of them.

    For devices whose torch has no compiler: Megatron compiles small functions of its router whatever the configuration.
    """
    sys.meta_path.insert(0, _Finder(None))


class _Shadow(types.ModuleType):
    """A module with some names replaced; all others are looked up in the real one."""

    def __init__(self, real: types.ModuleType, **replaced: Any) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(replaced, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)


class _Stream:
    """The CPU's one stream or event: it has always finished."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def _nothing(self, *_: Any, **__: Any) -> None:
        return None

    record = wait = synchronize = wait_stream = wait_event = _nothing

    def record_event(self, event: Any = None) -> Any:
        return event or _Stream()

    def query(self) -> bool:
        return True

    def elapsed_time(self, _other: Any) -> float:
        return 0.0


class _Generators:
    """``torch.cuda.default_generators``: Megatron indexes it with the current device."""

    def __getitem__(self, _: Any) -> torch.Generator:
        return torch.default_generator


def _always(value: Any = None) -> Callable[..., Any]:
    def answer(*_: Any, **__: Any) -> Any:
        return value

    return answer


def _is_cuda(device: Any) -> bool:
    return isinstance(device, (str, torch.device)) and str(device).startswith("cuda")


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def make(*args: Any, **options: Any) -> torch.Tensor:
        if _is_cuda(options.get("device")):
            options["device"] = _CPU
        if options.get("pin_memory"):
            options["pin_memory"] = False
        return factory(*args, **options)

    return make


def _stand_in_of_torch() -> types.ModuleType:
    random = {
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        "manual_seed": lambda seed: torch.default_generator.manual_seed(seed) and None,
    }
    cuda = _Shadow(
        torch.cuda,
        **random,
        random=_Shadow(torch.cuda.random, **random),
        default_generators=_Generators(),
        current_device=_always(_CPU),  # a device, never 0: Megatron also passes it as device=
        current_stream=_always(_Stream()),
        default_stream=_always(_Stream()),
        is_current_stream_capturing=_always(False),
        memory_allocated=_always(0),
        max_memory_allocated=_always(0),
        Stream=_Stream,
        Event=_Stream,
        stream=lambda _: contextlib.nullcontext(),
        _lazy_call=lambda function, **_: function(),  # a CPU build queues these for ever
        nvtx=_Shadow(torch.cuda.nvtx, range_push=_always(), range_pop=_always()),
        **{name: _always() for name in ("set_device", "synchronize", "empty_cache", "_lazy_init")},
    )
    factories = {name: _on_cpu(getattr(torch, name)) for name in _FACTORIES}
    distributed = _Shadow(torch.distributed, all_gather=_all_gather, reduce_scatter=_reduce_scatter)
    return _Shadow(torch, cuda=cuda, distributed=distributed, compile=_not_compiled, **factories)


def _all_gather(outputs: list[torch.Tensor], tensor: torch.Tensor, group: Any = None) -> None:
    """``torch.distributed.all_gather`` of unequal lengths (tokens of experts), for which gloo wants the longest."""
    longest = max(map(len, outputs))
    padded = tensor.new_zeros(longest, *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    gathered = [torch.empty_like(padded) for _ in outputs]
    torch.distributed.all_gather(gathered, padded, group=group)
    for output, found in zip(outputs, gathered, strict=True):
        output.copy_(found[: len(output)])


def _reduce_scatter(output: torch.Tensor, tensors: list[torch.Tensor], group: Any = None) -> None:
    """``torch.distributed.reduce_scatter`` of unequal lengths, which gloo does not have: the sum of all, and its part."""
    whole = torch.cat(tensors)
    torch.distributed.all_reduce(whole, group=group)
    output.copy_(whole.split(list(map(len, tensors)))[torch.distributed.get_rank(group)])


def _on_host(tensor: torch.Tensor | None, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Megatron's ``maybe_move_tensor_to_cpu``, whose numbers become those of numpy only where they come from CUDA."""
    del record_stream
    return tensor.numpy() if as_numpy and tensor is not None else tensor


def _not_compiled(function: Callable | None = None, **_: Any) -> Callable:
    """``torch.compile`` as identity: compiling on import costs seconds, and fused CPU kernels gain nothing here."""
    return function if function is not None else lambda inner: inner


class _Finder(importlib.abc.MetaPathFinder):
    """Finds Megatron-core's modules as usual, runs them without a compiler, then swaps the torch they hold, if asked to."""

    def __init__(self, stand_in: types.ModuleType | None) -> None:
        self.stand_in = stand_in

    def find_spec(self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None) -> Any:
        if name != _PREFIX and not name.startswith(_PREFIX + "."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self._execute(execute, module)  # type: ignore[method-assign]
        return spec

    def _execute(self, execute: Callable[[types.ModuleType], None], module: types.ModuleType) -> None:
        real_compile, torch.compile = torch.compile, _not_compiled  # decorators run during the import
        try:
            execute(module)
        finally:
            torch.compile = real_compile
        if self.stand_in is None:
            return
        self._adopt(module, self.stand_in)
        if module.__name__ == _PREFIX + ".transformer.moe.moe_utils":
            module.maybe_move_tensor_to_cpu = _on_host  # type: ignore[attr-defined]

    @staticmethod
    def _adopt(module: types.ModuleType, stand_in: types.ModuleType) -> None:
        cuda = stand_in.cuda
        replaced = {name: value for name, value in vars(cuda).items() if not name.startswith("__")}
        for name, value in list(vars(module).items()):
            if value is torch:
                setattr(module, name, stand_in)
            elif value is torch.cuda:
                setattr(module, name, cuda)
            elif name in replaced and value is getattr(torch.cuda, name, None):  # from torch.cuda import ...
                setattr(module, name, replaced[name])


def _patch_tensor_methods() -> None:
    tensor = torch.Tensor
    move, kind = tensor.to, tensor.type

    @functools.wraps(move)
    def to(self: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if args and _is_cuda(args[0]):
            args = (_CPU, *args[1:])
        if _is_cuda(options.get("device")):
            options["device"] = _CPU
        return move(self, *args, **options)

    @functools.wraps(kind)
    def type_of(self: torch.Tensor, dtype: Any = None, *args: Any, **options: Any) -> Any:
        # Megatron's optimizers sort parameters by comparing type() with 'torch.cuda.FloatTensor'.
        if dtype is None and self.device.type == "cpu":
            return kind(self).replace("torch.", "torch.cuda.", 1)
        return kind(self, dtype, *args, **options)

    def itself(self: Any, *_: Any, **__: Any) -> Any:
        return self

    tensor.to, tensor.type = to, type_of
    tensor.cuda = tensor.pin_memory = itself
    tensor.record_stream = lambda self, stream: None
    torch.nn.Module.cuda = itself
