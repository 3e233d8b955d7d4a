"""Ten steps with adapters against PEFT on Hugging Face's model; adapters merged, saved alone, resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Qwen3ForCausalLM

from mindspeed_ift.checkpoint.convert import convert
from mindspeed_ift.checkpoint.huggingface import Folder
from mindspeed_ift.checkpoint.names import Stage
from mindspeed_ift.checkpoint.sharded import Reader
from mindspeed_ift.checkpoint.transforms import GATE_UP, QKV, Pieces, from_shards
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.config.layout import Layout
from mindspeed_ift.config.lora import LORA_TARGETS, LoraFlags
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.order import SampleOrder
from mindspeed_ift.devices.device import current
from mindspeed_ift.model.build import ModelOptions, build_model
from mindspeed_ift.model.lora import start_adapters
from mindspeed_ift.model.weights import fill, without_adapters
from mindspeed_ift.parallel import groups as process_groups
from tests.distributed.worlds import run
from tests.tiny_model import whole_shard
from tests.tolerances import LORA_STEPS_LOSS, LORA_STEPS_WEIGHTS, MERGED_WEIGHTS
from tests.training_runs import MODES, losses, make_datasets, make_hugging_face_model

pytestmark = pytest.mark.slow
STEPS, ROWS, SEED, VOCAB = 10, 4, 11, 400
LAYERS = 2
PEFT_MODULES = {
    "linear_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "linear_proj": ("self_attn.o_proj",),
    "linear_fc1": ("mlp.gate_proj", "mlp.up_proj"),
    "linear_fc2": ("mlp.down_proj",),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path], Path]:
    """(folder, dataset prefixes, Hugging Face model)."""
    folder = tmp_path_factory.mktemp("lora")
    return folder, make_datasets(folder), make_hugging_face_model(folder / "hf", tied=True, vocab_size=VOCAB)


def _line(made: tuple[Path, dict[str, Path], Path], name: str, *flags: str) -> list[str]:
    folder, data, weights = made
    line = ["--data-path", str(data["packed"]), *MODES["packed"], "--global-batch-size", str(ROWS)]
    line += ["--micro-batch-size", "2", "--lr", "1e-2", "--lr-decay-style", "constant", "--weight-decay", "0.1"]
    line += ["--seed", str(SEED), "--train-iters", str(STEPS), "--save", str(folder / name), *flags]
    line += ["--lora-target-modules", *LORA_TARGETS, "--lora-r", "4", "--lora-alpha", "12"]
    return line if "--load" in flags else [*line, "--load", str(weights), "--enable-hf2mg-convert"]


def _first_adapters(weights: Path, lora: LoraFlags) -> dict[str, torch.Tensor]:
    """Our adapters before the first step, on the weights."""
    groups = process_groups.start(Layout(), current(), seed=SEED)
    architecture = Architecture.from_hugging_face(weights)
    model = build_model(architecture, ModelOptions(padded_vocab=VOCAB, lora=lora), groups)
    fill(model, whole_shard(weights, VOCAB), str(weights), without_adapters)
    start_adapters(model, model.layer_numbers, SEED)
    found = {name: value.detach().clone() for name, value in model.named_parameters() if not without_adapters(name)}
    process_groups.stop(groups)
    return found


def _peft_model(weights: Path, lora: LoraFlags) -> nn.Module:
    """PEFT's, starting from our adapters; what we fuse shares one A there, so it is the same function."""
    from peft import LoraConfig, get_peft_model

    base = Qwen3ForCausalLM.from_pretrained(weights, attn_implementation="sdpa").float()
    names = [module.rpartition(".")[2] for modules in PEFT_MODULES.values() for module in modules]
    config = LoraConfig(
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        target_modules=names,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
    )
    model = get_peft_model(base, config)
    ours, architecture = _first_adapters(weights, lora), Architecture.from_hugging_face(weights)
    for layer in range(LAYERS):
        for target, modules in PEFT_MODULES.items():
            owner = "self_attention" if target in ("linear_qkv", "linear_proj") else "mlp"
            prefix = f"decoder.layers.{layer}.{owner}.{target}.lora_"
            shared = nn.Parameter(ours[prefix + "A"].clone())
            magnitudes = [None] * len(modules)
            if lora.use_dora:
                transform = {"linear_qkv": QKV, "linear_fc1": GATE_UP}.get(target)
                whole = ours[prefix + "magnitude"][:, None]
                parts = from_shards(transform, [whole], architecture) if transform else [Pieces([whole])]
                magnitudes = [part.joined().flatten() for part in parts]
            for module, magnitude in zip(modules, magnitudes, strict=True):
                linear = model.get_submodule(f"base_model.model.model.layers.{layer}.{module}")
                linear.lora_A["default"].weight = shared
                if magnitude is not None:
                    assert torch.allclose(linear.lora_magnitude_vector["default"].weight, magnitude)
    return model


@pytest.mark.parametrize("kind", [[], ["--use-rslora"], ["--use-dora"]], ids=["lora", "rslora", "dora"])
def test_ten_steps_equal_peft(made: tuple[Path, dict[str, Path], Path], kind: list[str]) -> None:
    """Losses of every step, and the merged weights, on packed rows against the samples alone."""
    from peft import PeftModel

    folder, data, weights = made
    name = "peft_" + "".join(kind)
    run([_line(made, name, *kind)], 1)

    lora = LoraFlags(LORA_TARGETS, 4, 12, use_rslora="--use-rslora" in kind, use_dora="--use-dora" in kind)
    model = _peft_model(weights, lora).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.dim() > 1]
    spared = [parameter for parameter in trained if parameter.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.999), eps=1e-8)
    dataset = InstructionDataset(data["packed"])
    order, expected = SampleOrder(len(dataset), SEED, True), []
    for step in range(STEPS):
        optimizer.zero_grad()
        total, learnt = torch.zeros(()), 0
        for place in range(ROWS):
            row = dataset[order.index(step * ROWS + place)]
            for number in range(1, int(row.segments.max()) + 1):
                inside = row.segments == number
                ids = torch.tensor(row.input_ids[inside]).long()[None]
                labels = torch.tensor(row.labels[inside]).long()[None, 1:]
                logits = model(input_ids=ids).logits[:, :-1].transpose(1, 2)
                total = total + nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
                learnt += int((labels != -100).sum())
        (total / learnt).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        expected.append(float(total.detach() / learnt))
    found = losses(folder / name)
    assert found[-1] < found[0] - 0.1, "adapters must learn"
    assert found == pytest.approx(expected, **LORA_STEPS_LOSS)

    convert(ConvertConfig(load_dir=folder / name, save_dir=folder / f"{name}_merged"))
    convert(ConvertConfig(load_dir=folder / name, save_dir=folder / f"{name}_peft", save_lora_to_hf=True))
    base = Qwen3ForCausalLM.from_pretrained(weights, attn_implementation="sdpa").float()
    exported = PeftModel.from_pretrained(base, folder / f"{name}_peft")
    _merged_alike(folder / f"{name}_merged", exported, MERGED_WEIGHTS)
    _merged_alike(folder / f"{name}_merged", model, LORA_STEPS_WEIGHTS)


def _merged_alike(folder: Path, model: nn.Module, tolerance: dict[str, float]) -> None:
    """A folder of merged weights against PEFT's model when it has merged its own."""
    merged = Folder(folder)
    for key, value in model.merge_and_unload().named_parameters():
        assert torch.allclose(merged.tensor(key, tuple(value.shape)), value, **tolerance), key


def test_adapters_alone_are_merged_and_resumed(made: tuple[Path, dict[str, Path], Path]) -> None:
    """``--lora-ckpt-filter`` leaves the frozen weights out; with them, the run goes on to the bit, and merges the same."""
    folder, _, weights = made
    own = str(folder / "alone")
    common = ["--lora-dropout", "0.1", "--save-interval", "3", "--recompute-granularity", "full"]
    common += ["--recompute-method", "uniform", "--recompute-num-layers", "1"]
    alone = [*common, "--lora-ckpt-filter"]
    run(
        [
            _line(made, "whole", *common),
            _line(made, "alone", *alone, "--exit-interval", "5"),
            _line(made, "alone", *alone, "--lora-load", own, "--save-hf"),
        ],
        1,
    )
    assert losses(folder / "alone") == losses(folder / "whole")
    names = Reader(folder / "alone/iter_0000010").stage(Stage(range(LAYERS)))
    assert len(names) == LAYERS * len(LORA_TARGETS) * 2 and not any(map(without_adapters, names))
    convert(ConvertConfig(load_dir=folder / "whole", save_dir=folder / "whole_merged"))
    convert(
        ConvertConfig(load_model_type="hf", load_dir=weights, lora_load=Path(own), save_dir=folder / "alone_merged")
    )
    one, other = ((folder / kind / "model.safetensors").read_bytes() for kind in ("whole_merged", "alone_merged"))
    assert one == other
    written = {path.name: path for path in (folder / "alone").glob("mg2hf_*")}
    assert written.keys() == {"mg2hf_iteration6", "mg2hf_iteration9", "mg2hf_iteration10"}
    assert (written["mg2hf_iteration10"] / "model.safetensors").read_bytes() == one
    assert (written["mg2hf_iteration6"] / "model.safetensors").read_bytes() != one


def test_modules_to_save_are_trained_and_the_rest_is_not(made: tuple[Path, dict[str, Path], Path]) -> None:
    """The embedding changes when it is named; frozen weights never do."""
    folder, _, weights = made
    run([_line(made, "saved", "--lora-modules-to-save", "word_embeddings")], 1)
    state = Reader(folder / "saved/iter_0000010").stage(Stage(range(LAYERS)))
    before = whole_shard(weights, VOCAB)
    changed = {name for name, value in before.items() if not torch.equal(value, state[name])}
    assert changed == {"embedding.word_embeddings.weight"}
