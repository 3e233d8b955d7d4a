"""Adapters that were saved alone, merged into the weights that they were trained on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.adapters import describe_adapters
from mindspeed_ift.checkpoint.convert import convert
from mindspeed_ift.checkpoint.source import Checkpoint
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout
from mindspeed_ift.config.lora import LoraFlags
from tests.training_runs import make_hugging_face_model

LORA = LoraFlags(("linear_fc2", "linear_fc1"), lora_r=2, lora_alpha=3, lora_ckpt_filter=True)
RANK, WIDTH, INNER = 2, 64, 128


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder in fp32."""
    return make_hugging_face_model(tmp_path_factory.mktemp("base") / "hf", tied=False, vocab_size=400, layers=4)


def save_adapters(folder: Path, base: Path, layout: Layout, dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint of adapters alone on ``mlp.linear_fc2`` and ``linear_fc1``, as a run in this layout leaves it."""
    architecture = Architecture.from_hugging_face(base)
    stages = layout.stage_layers(architecture.num_layers)
    chunks = layout.chunks(architecture.num_layers)
    staging, files = megatron.begin_save(folder, 1), {}
    for tensor in range(layout.tensor):
        for pipeline in range(layout.pipeline):
            state: dict[str, Any] = {}
            for chunk, key in enumerate(megatron.model_keys(chunks)):
                layers = stages[chunk * layout.pipeline + pipeline]
                state[key] = _factors(layers, tensor, layout.tensor, dtype)
            files |= megatron.save_file(staging, megatron.shard_path(layout, tensor, pipeline), state)
    manifest = {
        "architecture": asdict(architecture),
        "layout": {"tensor": layout.tensor, "pipeline": layout.pipeline, "data": 1},
        "stage_layers": [[stage.start, stage.stop] for stage in stages],
        "padded_vocab_size": 400,
        "dtype": str(dtype).removeprefix("torch."),
        "distributed_optimizer": False,
        "lora": describe_adapters(LORA),
        "iteration": 1,
    }
    megatron.commit(staging, folder, 1, manifest, files)
    return folder


def _factors(layers: range, rank: int, size: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A rank's adapters, drawn whole by layer and then cut."""
    state = {}
    for inside, layer in enumerate(layers):
        generator = torch.Generator().manual_seed(layer)
        a2, b2, a1, b1 = (
            torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)
            for shape in ((RANK, INNER), (WIDTH, RANK), (RANK, WIDTH), (2 * INNER, RANK))
        )
        gate_up = torch.cat([half.chunk(size)[rank] for half in b1.chunk(2)])
        prefix = f"decoder.layers.{inside}.mlp."
        state |= {prefix + "linear_fc2.lora_A": a2.chunk(size, 1)[rank].clone(), prefix + "linear_fc2.lora_B": b2}
        state |= {prefix + "linear_fc1.lora_A": a1, prefix + "linear_fc1.lora_B": gate_up}
    return state


def merge(base: Path, adapters: Path, target: Path, **flags: Any) -> dict[str, torch.Tensor]:
    kind = "hf" if (base / "config.json").is_file() else "mg"
    convert(ConvertConfig(load_model_type=kind, load_dir=base, lora_load=adapters, save_dir=target, **flags))
    return load_file(target / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_merged_weights_have_the_dtype_of_the_run(
    tmp_path: Path, base: Path, dtype: torch.dtype, kept: torch.dtype
) -> None:
    """Whatever the folder's is: a run in bf16 saw its weights rounded, and one in fp32 adapters that bf16 cannot hold."""
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    weights = {name: value.to(kept) for name, value in load_file(base / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    merged = merge(folder, save_adapters(tmp_path / "run", base, Layout(), dtype), tmp_path / "merged")
    assert {value.dtype for value in merged.values()} == {dtype}
    factors = _factors(range(1), 0, 1, dtype)
    b, a = (factors[f"decoder.layers.0.mlp.linear_fc2.lora_{one}"].float() for one in "BA")
    name = "model.layers.0.mlp.down_proj.weight"
    expected = (weights[name].to(dtype).float() + LORA.scale * (b @ a)).to(dtype)
    assert torch.equal(merged[name], expected)


@pytest.mark.parametrize(
    "layout",
    [Layout(tensor=2), Layout(pipeline=2), Layout(pipeline=2, chunk_layers=1), Layout(pipeline=4)],
    ids=["tp2", "pp2", "pp2 vpp2", "pp4"],
)
def test_a_layout_changes_nothing_and_weights_may_have_another(tmp_path: Path, base: Path, layout: Layout) -> None:
    """Stages of an interleaved pipeline of 2 are those of a plain one of 4, and lie in other files."""
    expected = merge(base, save_adapters(tmp_path / "one", base, Layout()), tmp_path / "expected")
    adapters = save_adapters(tmp_path / "run", base, layout)
    own = tmp_path / "own"
    options = dict(load_model_type="hf", save_model_type="mg", load_dir=base)
    convert(
        ConvertConfig(
            **options,  # type: ignore[arg-type]
            save_dir=own,
            target_tensor_parallel_size=layout.tensor,
            target_pipeline_parallel_size=layout.pipeline,
            num_layers_per_virtual_pipeline_stage=layout.chunk_layers,
        )
    )
    for number, weights in enumerate((base, own)):
        merged = merge(weights, adapters, tmp_path / f"merged {number}")
        assert merged.keys() == expected.keys()
        assert all(torch.equal(merged[name], value) for name, value in expected.items())
    others = [Layout(), Layout(tensor=2), Layout(pipeline=2, chunk_layers=1), Layout(pipeline=4)]
    for number, other in enumerate(one for one in others if one != layout):
        merged = merge(own, save_adapters(tmp_path / f"other {number}", base, other), tmp_path / f"crossed {number}")
        assert all(torch.equal(merged[name], value) for name, value in expected.items())


def test_flags_are_compared_with_the_checkpoint(tmp_path: Path, base: Path) -> None:
    """Modules in whatever order; another rank is refused."""
    adapters = save_adapters(tmp_path / "run", base, Layout())
    merge(base, adapters, tmp_path / "merged", lora_r=2, lora_target_modules=("linear_fc1", "linear_fc2"))
    with pytest.raises(UserError, match="--lora-r 4 is not what"):
        merge(base, adapters, tmp_path / "refused", lora_r=4)
    with pytest.raises(UserError, match="--lora-target-modules .* is not what"):
        merge(base, adapters, tmp_path / "refused", lora_target_modules=("linear_fc1",))


def test_adapters_alone_are_no_model(tmp_path: Path, base: Path) -> None:
    """The message says the command that makes one of them."""
    folder = save_adapters(tmp_path / "run", base, Layout()) / "iter_0000001"
    with pytest.raises(
        UserError, match=r"holds adapters only; merge them .*convert_ckpt.py --load-dir WEIGHTS --lora-load"
    ):
        Checkpoint(folder)


def test_a_folder_without_a_tokenizer_is_said_to_be_one(tmp_path: Path, base: Path) -> None:
    adapters = save_adapters(tmp_path / "run", base, Layout())
    flags = ConvertConfig(load_model_type="hf", load_dir=base, lora_load=adapters, save_dir=tmp_path / "merged")
    assert convert(flags).endswith(
        "(Hugging Face, float32, without a tokenizer: none is known, nor --hf-cfg-dir given)"
    )
