"""Prepares Megatron-core for the NPU as `mcore` does on a server, as far as that goes without a device."""

from __future__ import annotations

import importlib.metadata
import sys
import warnings


def main() -> None:
    """Fails where something is not as it should be."""
    from mindspeed_ift.devices import npu

    assert not npu.available()  # the stand-ins have no device; torch_npu is imported
    filters = list(warnings.filters)
    npu.prepare()
    assert warnings.filters == filters, "transfer_to_npu lets every warning through"
    assert "transformers.trainer" not in sys.modules and importlib.metadata.version("transformers")
    import torch
    from megatron.core.transformer.moe.router import TopKRouter
    from megatron.core.transformer.transformer_config import torch as torch_of_megatron

    assert torch_of_megatron is torch and torch.cuda.current_device is torch.npu.current_device
    assert torch.cuda.get_device_capability(0) == (0, 0)
    assert torch.nn.Module.cuda is torch.nn.Module.npu
    assert TopKRouter._apply_expert_bias.__qualname__.startswith("TopKRouter."), "it would be compiled"
    assert torch.compile.__module__ == "torch", "only Megatron is imported without a compiler"
    compiled = torch.compile(lambda number: number + 1, backend="eager")
    assert compiled(torch.ones(1)).item() == 2.0 and torch.ones(1).type() == "torch.FloatTensor"


if __name__ == "__main__":
    main()
