"""Adapters of any tensor layout under PEFT's names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.convert import convert
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.config.errors import UserError

HEADS, GROUPS, SIZE, HIDDEN, INNER, RANK = 4, 2, 6, 8, 10, 2
QKV_ROWS = (HEADS + 2 * GROUPS) * SIZE


def _checkpoint(folder: Path, tensor: int, **changes: object) -> Path:
    """One layer, adapters of known values, split over some tensor ranks; no weights."""
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    whole = {
        "self_attention.linear_qkv": (drawn(RANK, HIDDEN), drawn(QKV_ROWS, RANK)),
        "self_attention.linear_proj": (drawn(RANK, HEADS * SIZE), drawn(HIDDEN, RANK)),
        "mlp.linear_fc1": (drawn(RANK, HIDDEN), drawn(2 * INNER, RANK)),
        "mlp.linear_fc2": (drawn(RANK, INNER), drawn(HIDDEN, RANK)),
    }
    staging, files = megatron.begin_save(folder, 1), {}
    for rank in range(tensor):
        state = {}
        for name, (first, second) in whole.items():
            if name.endswith(("proj", "fc2")):
                first = first.chunk(tensor, 1)[rank].clone()
            elif name.endswith("fc1"):
                second = torch.cat([half.chunk(tensor)[rank] for half in second.chunk(2)])
            else:
                second = second.chunk(tensor)[rank].clone()
            state |= {f"decoder.layers.0.{name}.lora_A": first, f"decoder.layers.0.{name}.lora_B": second}
        if "extra" in changes:
            state["decoder.layers.0.mlp.experts.lora_A"] = torch.zeros(1)
        files |= megatron.save_file(staging, f"mp_rank_{rank:02d}/{megatron.MODEL_FILE}", {"model": state})
    sizes = {"num_layers": 1, "hidden_size": HIDDEN, "ffn_hidden_size": INNER, "num_attention_heads": HEADS}
    sizes |= {"num_query_groups": GROUPS, "kv_channels": SIZE, "vocab_size": 20}
    lora = {"lora_target_modules": [], "lora_r": RANK, "lora_alpha": 6, "use_rslora": False, "use_dora": False}
    lora |= {"lora_modules_to_save": changes.get("whole", []), "filtered": True}
    manifest = {"architecture": sizes, "layout": {"tensor": tensor, "pipeline": 1, "context": 1, "data": 1}}
    manifest |= {"stage_layers": [[0, 1]], "padded_vocab_size": 20, "dtype": "float32", "iteration": 1}
    manifest |= {"distributed_optimizer": False, "consumed_samples": 0, "lora": lora if "none" not in changes else None}
    megatron.commit(staging, folder, 1, manifest, files)
    return folder


def test_any_tensor_layout_gives_the_same_adapters(tmp_path: Path) -> None:
    folders = []
    for tensor in (1, 2):
        source = _checkpoint(tmp_path / f"tp{tensor}", tensor)
        folders.append(tmp_path / f"peft{tensor}")
        told = convert(ConvertConfig(load_dir=source, save_dir=folders[-1], save_lora_to_hf=True))
        assert "PEFT adapters of down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, rank 2" in told
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert len(one) == 14 and one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    prefix = "base_model.model.model.layers.0.self_attn."
    assert one[f"{prefix}q_proj.lora_B.weight"].shape == (HEADS * SIZE, RANK)
    assert one[f"{prefix}v_proj.lora_B.weight"].shape == (GROUPS * SIZE, RANK)
    assert torch.equal(one[f"{prefix}q_proj.lora_A.weight"], one[f"{prefix}k_proj.lora_A.weight"])
    content = json.loads((folders[0] / "adapter_config.json").read_text(encoding="utf-8"))
    assert (content["r"], content["lora_alpha"], content["use_dora"], content["bias"]) == (RANK, 6, False, "none")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"none": True}, "has no adapters"),
        ({"whole": ["word_embeddings"]}, "modules that were trained whole"),
        ({"extra": True}, "PEFT has no place for"),
    ],
)
def test_what_peft_cannot_hold_is_refused(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    source = _checkpoint(tmp_path / "run", 1, **changes)
    with pytest.raises(UserError, match=expected):
        convert(ConvertConfig(load_dir=source, save_dir=tmp_path / "peft", save_lora_to_hf=True))
    assert not (tmp_path / "peft").exists()
