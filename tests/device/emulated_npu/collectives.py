"""The process group "hccl" of the emulated NPU: gloo on the same memory, for tensors of the NPU and types that HCCL takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from tests.device.contract import require
from tests.device.emulated_npu.memory import is_on_device, on_host

_MOVED = "int8 int16 int32 int64 uint8 bool float16 float32 float64 bfloat16".split()
_REDUCED = "int8 int16 int32 int64 float16 float32 bfloat16".split()
_AVERAGE = dist.ReduceOp.AVG


def install() -> None:
    """Take the place of the process group that needs HCCL, which torch before 2.7 would not let go."""
    dist.Backend._plugins.pop("HCCL")
    del dist.Backend.HCCL
    dist.Backend.register_backend("hccl", EmulatedHCCL, devices=["npu"])


class _Work(dist.Work):  # type: ignore[misc]
    """What gloo is at; keeps the memory that it works on, and says what was done of it when it is done."""

    def __init__(self, work: Any, kept: Any, finish: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.work, self.kept, self.finish = work, kept, finish

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        self.work.wait(timeout) if timeout else self.work.wait()
        if self.finish is not None:
            self.finish()
            self.finish = None
        return True

    def is_completed(self) -> bool:
        return self.work.is_completed()

    def result(self) -> Any:
        return self.kept

    def synchronize(self) -> None:
        self.wait()


class EmulatedHCCL(dist.ProcessGroup):
    """Every collective as torch.distributed calls it, point to point included; each works when it is called."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)
        self._name = self._description = "hccl"
        self._running: list[_Work] = []

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        return "hccl"

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device("npu")]

    @property
    def group_name(self) -> str:
        return self._name

    @property
    def pg_name(self) -> str:
        return self._name

    @property
    def group_desc(self) -> str:
        return self._description

    def _set_group_name(self, name: str) -> None:
        self._name = name

    def _set_group_desc(self, description: str) -> None:
        self._description = description

    def _get_backend(self, device: torch.device) -> EmulatedHCCL:
        if torch.device(device).type != "npu":
            raise RuntimeError(f"HCCL has no backend for {device}")
        return self

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> _Work:
        operation = _sum_for_average(opts)
        mean = _divide_by(self.size(), tensors) if operation else None
        return self._start("allreduce", _REDUCED, (tensors,), opts, mean)

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> _Work:
        works = [self.allreduce([tensor], _like(dist.AllreduceOptions(), opts)) for tensor in tensors]
        return _Together(works, tensors)

    def broadcast(self, tensors: list[Tensor], opts: Any) -> _Work:
        return self._start("broadcast", _MOVED, (tensors,), opts)

    def reduce(self, tensors: list[Tensor], opts: Any) -> _Work:
        require(opts.reduceOp != _AVERAGE, "reduce to the average is not for this")
        return self._start("reduce", _REDUCED, (tensors,), opts)

    def allgather(self, outputs: list[list[Tensor]], tensors: list[Tensor], opts: Any = None) -> _Work:
        return self._start("allgather", _MOVED, (outputs, tensors), opts)

    def _allgather_base(self, output: Tensor, tensor: Tensor, opts: Any = None) -> _Work:
        return self._start("_allgather_base", _MOVED, (output, tensor), opts)

    def allgather_into_tensor_coalesced(self, outputs: list[Tensor], tensors: list[Tensor], opts: Any = None) -> _Work:
        return _Together([self._allgather_base(*pair) for pair in zip(outputs, tensors, strict=True)], outputs)

    def _reduce_scatter_base(self, output: Tensor, tensor: Tensor, opts: Any = None) -> _Work:
        opts = opts or dist.ReduceScatterOptions()
        mean = _divide_by(self.size(), [output]) if _sum_for_average(opts) else None
        return self._start("_reduce_scatter_base", _REDUCED, (output, tensor), opts, mean)

    def reduce_scatter_tensor_coalesced(self, outputs: list[Tensor], tensors: list[Tensor], opts: Any = None) -> _Work:
        pairs = zip(outputs, tensors, strict=True)
        works = [self._reduce_scatter_base(*pair, opts=_like(dist.ReduceScatterOptions(), opts)) for pair in pairs]
        return _Together(works, outputs)

    def alltoall_base(
        self, output: Tensor, tensor: Tensor, output_sizes: list[int], sizes: list[int], opts: Any = None
    ) -> _Work:
        opts = opts or dist.AllToAllOptions()
        _check("alltoall_base", _MOVED, [output, tensor])
        work = self._gloo.alltoall_base(on_host(output), on_host(tensor), output_sizes, sizes, opts)
        return self._keep(_Work(work, [output, tensor]))

    def alltoall(self, outputs: list[Tensor], tensors: list[Tensor], opts: Any = None) -> _Work:
        require(len({tensor.dtype for tensor in [*outputs, *tensors]}) == 1, "alltoall: tensors differ in dtype")
        whole = torch.cat([tensor.flatten() for tensor in tensors])
        received = whole.new_empty(sum(output.numel() for output in outputs))
        counts = [[tensor.numel() for tensor in some] for some in (outputs, tensors)]
        work = self.alltoall_base(received, whole, *counts)

        def spread() -> None:
            for output, part in zip(outputs, received.split(counts[0]), strict=True):
                output.copy_(part.view_as(output))

        return self._keep(_Work(work, outputs, spread))

    # The names that torch.distributed calls since 2.13.
    all_gather_single = _allgather_base
    all_gather_single_coalesced = allgather_into_tensor_coalesced
    reduce_scatter_single = _reduce_scatter_base
    reduce_scatter_single_coalesced = reduce_scatter_tensor_coalesced
    all_to_all_single = alltoall_base

    def gather(self, outputs: list[list[Tensor]], tensors: list[Tensor], opts: Any) -> _Work:
        return self._start("gather", _MOVED, (outputs, tensors), opts)

    def scatter(self, outputs: list[Tensor], tensors: list[list[Tensor]], opts: Any) -> _Work:
        return self._start("scatter", _MOVED, (outputs, tensors), opts)

    def send(self, tensors: list[Tensor], peer: int, tag: int = 0) -> _Work:
        return self._point_to_point("send", tensors, peer, tag)

    def recv(self, tensors: list[Tensor], peer: int, tag: int = 0) -> _Work:
        return self._point_to_point("recv", tensors, peer, tag)

    def batch_isend_irecv(self, operations: list[str], tensors: list[Tensor], peers: list[int]) -> _Work:
        """Several at once, as torch_npu's process group takes them."""
        works = [
            self.send([tensor], peer) if operation == "isend" else self.recv([tensor], peer)
            for operation, tensor, peer in zip(operations, tensors, peers, strict=True)
        ]
        return _Together(works, tensors)

    def _start_coalescing(self, device: torch.device) -> None:
        """Nothing is put together here: each works when it is called."""

    def _end_coalescing(self, device: torch.device) -> _Work:
        return _Together(list(self._running), [])

    def barrier(self, opts: Any = None) -> _Work:
        return self._keep(_Work(self._gloo.barrier(dist.BarrierOptions()), []))

    def _start(
        self,
        name: str,
        dtypes: list[str],
        arguments: Sequence[Any],
        opts: Any,
        finish: Callable[[], None] | None = None,
    ) -> _Work:
        tensors = [value for value in tree_flatten(arguments)[0] if isinstance(value, Tensor)]
        _check(name, dtypes, tensors)
        given = [*tree_map(on_host, arguments), *([] if opts is None else [opts])]
        return self._keep(_Work(getattr(self._gloo, name)(*given), tensors, finish))

    def _point_to_point(self, name: str, tensors: list[Tensor], peer: int, tag: int) -> _Work:
        require(tag == 0, f"{name}: HCCL knows no tags")
        _check(name, _MOVED, tensors)
        work = getattr(self._gloo, name)([on_host(tensor) for tensor in tensors], peer, tag)
        return self._keep(_Work(work, tensors))

    def _keep(self, work: _Work) -> _Work:
        """Until gloo has done with it, whether or not anybody waits."""
        self._running = [*(one for one in self._running if not one.is_completed()), work]
        return work


class _Together(_Work):
    """Several as one."""

    def __init__(self, works: list[_Work], kept: Any) -> None:
        super().__init__(None, kept)
        self.works = works

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        return all([work.wait(timeout) for work in self.works])

    def is_completed(self) -> bool:
        return all(work.is_completed() for work in self.works)


def _check(name: str, dtypes: list[str], tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        require(is_on_device(tensor), f"{name}: HCCL takes tensors of the NPU, not of {tensor.device}")
        require(str(tensor.dtype).removeprefix("torch.") in dtypes, f"{name}: HCCL does not take {tensor.dtype}")
        require(tensor.is_contiguous(), f"{name}: a tensor is not contiguous")


def _sum_for_average(opts: Any) -> bool:
    """Whether the average is wanted, for which gloo then gives the sum."""
    if opts is None or opts.reduceOp != _AVERAGE:
        return False
    opts.reduceOp = dist.ReduceOp.SUM
    return True


def _divide_by(size: int, tensors: list[Tensor]) -> Callable[[], None]:
    def divide() -> None:
        for tensor in tensors:
            tensor.div_(size)

    return divide


def _like(fresh: Any, opts: Any) -> Any:
    if opts is not None:
        fresh.reduceOp = opts.reduceOp
    return fresh
