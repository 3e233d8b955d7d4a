"""Where a step spends its time: functions and modules in, milliseconds a part out."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch

from mindspeed_ift.devices.device import Device

_IN_FORWARD = ("attention forward", "mlp forward", "head and loss")


class Parts(contextlib.AbstractContextManager["Parts"]):
    """Times what it is told to watch, until it ends, and waits for the device before and after each part.

    Recomputed activations count as part of the backward pass.
    """

    def __init__(self, device: Device) -> None:
        self._device, self._open = device, dict[str, float]()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._undo = contextlib.ExitStack()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        self._begin(name)
        yield
        self._end(name)

    def watch_module(self, module: torch.nn.Module, name: str) -> None:
        """Time its forward pass."""
        begun = module.register_forward_pre_hook(lambda *_: self._begin(name))
        ended = module.register_forward_hook(lambda *_: self._end(name))
        self._undo.callback(begun.remove)
        self._undo.callback(ended.remove)

    def watch_function(self, owner: Any, attribute: str, name: str) -> None:
        """Time a function of a module or a method of an object."""
        function: Callable[..., Any] = getattr(owner, attribute)
        own = attribute in vars(owner)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.span(name):
                return function(*arguments, **options)

        setattr(owner, attribute, timed)
        self._undo.callback(setattr, owner, attribute, function) if own else self._undo.callback(
            delattr, owner, attribute
        )

    def milliseconds(self, steps: int) -> dict[str, float]:
        """Of a step, on average; parts add up to the whole."""
        of = defaultdict(float, {name: 1e3 * seconds / steps for name, seconds in self._seconds.items()})
        both = of["forward and backward"]
        backward = both - of["forward"] if both else of["backward"]
        found = {name: of[name] for name in ("data", *_IN_FORWARD)}
        found["rest of forward"] = of["forward"] - sum(of[name] for name in _IN_FORWARD)
        found |= {"backward": backward, "optimizer": of["optimizer"]}
        found["rest of step"] = of["whole step"] - sum(found.values())
        return {name: round(value, 3) for name, value in (found | {"whole step": of["whole step"]}).items()}

    def _begin(self, name: str) -> None:
        self._device.synchronize()
        self._open[name] = time.perf_counter()

    def _end(self, name: str) -> None:
        self._device.synchronize()
        seconds = time.perf_counter() - self._open.pop(name)
        if name not in _IN_FORWARD or "forward" in self._open:
            self._seconds[name] += seconds
