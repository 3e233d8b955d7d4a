"""Flags of ``convert_ckpt.py``, named as MindSpeed-LLM's convert_ckpt_v2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import refuse_less
from mindspeed_ift.config.layout import LayoutFlags


@dataclass(frozen=True)
class ConvertConfig:
    """From where to where."""

    load_model_type: Literal["hf", "mg"] = "mg"
    """What --load-dir holds: a Hugging Face folder or a Megatron checkpoint."""
    save_model_type: Literal["hf", "mg"] = "hf"
    """What --save-dir becomes."""
    load_dir: Path | None = None
    """Folder to read."""
    save_dir: Path | None = None
    """Folder to write; must not exist or be empty."""
    hf_cfg_dir: Path | None = None
    """Hugging Face folder to compare with and to take the tokenizer from."""
    model_type_hf: Literal["qwen3", "qwen3-moe", "qwen2"] = "qwen3"
    """Family of the model; config.json says which it is."""
    lora_load: Path | None = None
    """--save folder of a run with adapters only (--lora-ckpt-filter), to merge into the weights of --load-dir,
    whatever their layout."""
    lora_r: int | None = None
    """Rank of these adapters; their checkpoint says it anyway."""
    lora_alpha: int | None = None
    """Their alpha; their checkpoint says it anyway."""
    lora_target_modules: tuple[str, ...] = ()
    """Modules that have them; their checkpoint says it anyway."""
    save_lora_to_hf: bool = False
    """Write the adapters of --lora-load, or of --load-dir, alone: a folder that PEFT loads."""
    ckpt_format: Literal["torch", "torch_dist"] = "torch"
    """Of a Megatron checkpoint that is written. torch: a file a rank (iter_*/mp_rank_*), as MindSpeed-LLM reads it, for the
    layout that is given. torch_dist: tensors whole, for any layout."""
    target_tensor_parallel_size: int = 1
    """Tensor parallel size to write."""
    target_pipeline_parallel_size: int = 1
    """Pipeline parallel size to write."""
    target_expert_parallel_size: int = 1
    """Expert parallel size to write, for a mixture of experts."""
    expert_tensor_parallel_size: int | None = None
    """Devices that share the matrices of each expert; default: the tensor parallel size."""
    num_layers_per_virtual_pipeline_stage: int | None = None
    """Layers of one chunk to write, where a pipeline device holds several."""
    num_layer_list: str | None = None
    """Layers of each pipeline device to write, with commas between; default: as many everywhere."""
    noop_layers: str | None = None
    """Numbers of layers that do nothing, as training is told them: the pipeline devices that would hold them hold fewer."""
    make_vocab_size_divisible_by: int = 1
    """Pad the embedding to this times the tensor parallel size."""
    workers: int = 2
    """Threads that read and write; each holds one group of tensors. What is written does not depend on it."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""

    @property
    def target_layout(self) -> LayoutFlags:
        """The layout to write, as training's flags would say it."""
        return LayoutFlags(
            self.target_tensor_parallel_size,
            self.target_pipeline_parallel_size,
            expert_model_parallel_size=self.target_expert_parallel_size,
            expert_tensor_parallel_size=self.expert_tensor_parallel_size,
            num_layers_per_virtual_pipeline_stage=self.num_layers_per_virtual_pipeline_stage,
            num_layer_list=self.num_layer_list,
            noop_layers=self.noop_layers,
        )

    def check(self) -> None:
        """Refuse what cannot be converted.

        Raises:
            UserError: with the remedy.
        """
        if self.load_dir is None or self.save_dir is None:
            raise UserError("--load-dir and --save-dir are both needed: the folder to read and the folder to write")
        if self.load_dir == self.save_dir:
            raise UserError(f"--save-dir {self.save_dir} is also --load-dir; give another folder")
        if self.save_lora_to_hf and (
            self.save_model_type != "hf" or (self.load_model_type, self.lora_load) == ("hf", None)
        ):
            raise UserError(
                "--save-lora-to-hf makes a PEFT folder of adapters: give --save-model-type hf, and --lora-load or"
                " --load-model-type mg"
            )
        if self.load_model_type == self.save_model_type == "hf" and self.lora_load is None:
            raise UserError(
                "--load-model-type hf --save-model-type hf would only copy; give mg on one side, or --lora-load to merge"
            )
        refuse_less(self, 1, "target_tensor_parallel_size", "target_pipeline_parallel_size")
        refuse_less(self, 1, "target_expert_parallel_size", "expert_tensor_parallel_size")
        refuse_less(self, 1, "make_vocab_size_divisible_by", "workers")
