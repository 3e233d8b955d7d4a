"""Files of ``torch.save`` read without running what others have put into them."""

from __future__ import annotations

import argparse
import collections
import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

_ARGUMENTS = "argparse.Namespace"
_KNOWN = {
    _ARGUMENTS: argparse.Namespace,
    "collections.OrderedDict": collections.OrderedDict,
    "torch.Size": torch.Size,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
}


def load_without_code(file: Any, *, places: bool = False) -> Any:
    """What `torch.save` wrote, on the host.

    Megatron keeps its arguments beside the tensors, with objects of classes that are not here; of these files plain values
    and tensors are taken, and nothing is known of the rest. Any other file may have nothing but plain values and tensors.

    Args:
        file: a path, or a file of one tensor.
        places: leave the tensors' bytes where they are; their storages say where that is.

    Raises:
        Exception: of many kinds, if it is damaged, or would run code.
    """
    device = "meta" if places else "cpu"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError:  # MindSpeed-LLM's protocol, or arguments, of which torch takes nothing
        if not isinstance(file, str | Path):
            raise
        return _load_beside_arguments(file, device)


def _load_beside_arguments(path: str | Path, device: str) -> Any:
    met: set[str] = set()

    class Unpickler(pickle.Unpickler):
        """Makes tensors and plain values, and of everything else nothing."""

        def find_class(self, module: str, name: str) -> Any:
            if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
                return getattr(torch, name)
            met.add(f"{module}.{name}")
            return _KNOWN.get(f"{module}.{name}", _Nothing)

    reader: Any = SimpleNamespace(__name__=__name__, Unpickler=Unpickler)  # all of a pickle module that torch asks for
    content = torch.load(path, map_location=device, weights_only=False, pickle_module=reader)
    if _ARGUMENTS not in met:
        raise pickle.UnpicklingError(f"{min(met - _KNOWN.keys(), default='what it holds')} has no place beside weights")
    return content


class _Nothing:
    """Stands for whatever is not known here."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass
