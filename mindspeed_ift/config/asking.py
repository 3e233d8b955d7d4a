"""Which model is asked, in which template, on how many devices: flags of ``inference.py`` and ``evaluation.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import refuse_less
from mindspeed_ift.config.layout import Layout, LayoutFlags, layout_of, world_size


@dataclass(frozen=True)
class AskedModel:
    """A model that answers."""

    load: Path | None = None
    """Hugging Face folder, or the --save folder of a run (its latest checkpoint)."""
    tokenizer_name_or_path: str | None = None
    """Tokenizer folder; default: the one the checkpoint names."""
    prompt_type: str | None = None
    """Template; default: the one the checkpoint was trained with, else qwen3."""
    prompt_type_path: str | None = None
    """File of templates; default: the one of the checkpoint's template."""
    enable_thinking: Literal["true", "false", "none"] | None = None
    """Thinking mode; default: the one the checkpoint was trained with, else none."""
    tensor_model_parallel_size: int = 1
    """Devices that share each weight matrix; start as many processes with torchrun. To evaluate, or a multiple: what is
    left of them shares the records."""
    pipeline_model_parallel_size: int = 1
    """Devices in a row that each hold some layers."""

    def check(self) -> None:
        """Refuse what cannot be asked.

        Raises:
            UserError: with the remedy.
        """
        if self.load is None:
            raise UserError("--load is missing: a Hugging Face folder, or the --save folder of a run")
        refuse_less(self, 1, "tensor_model_parallel_size", "pipeline_model_parallel_size")

    def layout(self) -> Layout:
        """Who holds what of the processes that were started.

        Raises:
            UserError: the sizes do not divide them.
        """
        sizes = LayoutFlags(self.tensor_model_parallel_size, self.pipeline_model_parallel_size)
        return layout_of(sizes, world_size())
