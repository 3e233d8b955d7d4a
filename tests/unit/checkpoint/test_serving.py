"""An exported folder is what the loaders of transformers, vLLM and vLLM-Ascend take, and its answers are ours.

vLLM's rules stand here in words of their own, by its loaders (`model_executor/models/qwen2.py`, `qwen3.py`,
`qwen3_moe.py`, `lora/peft_helper.py`, `lora/lora_model.py`): it needs a device, and is not installed for tests. vLLM-Ascend
loads with the same ones.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from mindspeed_ift.checkpoint.convert import convert
from mindspeed_ift.checkpoint.serving import answers_end
from mindspeed_ift.cli.generate import main as generate
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.parallel import groups as process_groups
from tests.tiny_tokenizer import make_tiny_tokenizer
from tests.training_runs import make_hugging_face_model
from tests.unit.checkpoint.test_peft_folder import HEADS, HIDDEN, INNER, RANK, SIZE, _checkpoint

VOCAB = 401
END, PAD = "<|im_end|>", "<|endoftext|>"

STACKED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"}
STACKED |= {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
"""Name in a checkpoint -> vLLM's parameter that it is a part of."""


def exported(folder: Path, kind: str) -> Path:
    """A model that was Megatron's, with the tokenizer and what is known of its training."""
    source = folder / "source"
    if kind == "Qwen2.5":
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = Qwen2Config(vocab_size=VOCAB, num_key_value_heads=2, rope_theta=1e6, tie_word_embeddings=True, **sizes)
        Qwen2ForCausalLM(config).save_pretrained(source)
    else:
        experts = {"mlp_only_layers": [1]} if kind == "experts" else None
        make_hugging_face_model(source, tied=kind == "tied", vocab_size=VOCAB, experts=experts)
    make_tiny_tokenizer(source)
    (source / "mindspeed_ift.json").write_text('{"prompt_type": "qwen3"}', encoding="utf-8")
    convert(ConvertConfig("hf", "mg", source, folder / "mg", target_tensor_parallel_size=2))
    convert(ConvertConfig("mg", "hf", folder / "mg", folder / "served"))
    return folder / "served"


def vllm_parameters(config: Any, biased: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters that vLLM's model of this config makes on one device."""
    size, heads, groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    head = getattr(config, "head_dim", None) or size // heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, size)}
    shapes["model.norm.weight"] = (size,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, size)
    for number in range(config.num_hidden_layers):
        layer = f"model.layers.{number}."
        rows = (heads + 2 * groups) * head
        shapes |= {f"{layer}{norm}.weight": (size,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes[f"{layer}self_attn.qkv_proj.weight"] = (rows, size)
        shapes[f"{layer}self_attn.o_proj.weight"] = (size, heads * head)
        if biased:
            shapes[f"{layer}self_attn.qkv_proj.bias"] = (rows,)
        else:
            shapes |= {f"{layer}self_attn.{norm}.weight": (head,) for norm in ("q_norm", "k_norm")}
        experts = getattr(config, "num_experts", 0)
        if experts and number not in config.mlp_only_layers and (number + 1) % config.decoder_sparse_step == 0:
            shapes[f"{layer}mlp.gate.weight"] = (experts, size)
            shapes[f"{layer}mlp.experts.w13_weight"] = (experts, 2 * config.moe_intermediate_size, size)
            shapes[f"{layer}mlp.experts.w2_weight"] = (experts, size, config.moe_intermediate_size)
        else:
            shapes[f"{layer}mlp.gate_up_proj.weight"] = (2 * config.intermediate_size, size)
            shapes[f"{layer}mlp.down_proj.weight"] = (size, config.intermediate_size)
    return shapes


def vllm_load(tensors: dict[str, tuple[int, ...]], shapes: dict[str, tuple[int, ...]], tied: bool) -> dict[str, int]:
    """Where vLLM's loader puts each tensor of a checkpoint: parameter -> numbers filled; KeyError where it has no place."""
    filled = dict.fromkeys(shapes, 0)
    for name, shape in tensors.items():
        if tied and name.startswith("lm_head."):
            continue
        target = name
        if found := re.fullmatch(r"(.*\.mlp\.experts\.)\d+\.(gate_proj|up_proj|down_proj)\.weight", name):
            target = found[1] + ("w2_weight" if found[2] == "down_proj" else "w13_weight")
        else:
            for part, whole in STACKED.items():
                target = target.replace(f".{part}.", f".{whole}.")
        assert shape[-1:] == shapes[target][-1:] or target.endswith("bias"), name
        filled[target] += torch.Size(shape).numel()
    return filled


@pytest.mark.parametrize("kind", ["dense", "tied", "experts", "Qwen2.5"])
def test_every_parameter_of_vllm_is_filled_from_an_exported_folder(tmp_path: Path, kind: str) -> None:
    folder = exported(tmp_path, kind)
    config = AutoConfig.from_pretrained(folder)
    names = {"experts": "Qwen3MoeForCausalLM", "Qwen2.5": "Qwen2ForCausalLM"}  # keys of its registry
    assert config.architectures == [names.get(kind, "Qwen3ForCausalLM")] and config.hidden_act == "silu"
    assert config.torch_dtype in (torch.float32, torch.bfloat16, torch.float16) and config.max_position_embeddings > 0
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))  # each transformers names this otherwise
    assert content["rope_theta"] == 1e6 and "rope_scaling" not in content and not content.get("use_sliding_window")
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():  # of files that it does not name vLLM takes none
        told = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        assert {folder / name for name in told.values()} == set(files)
    tensors: dict[str, tuple[int, ...]] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            tensors |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    shapes = vllm_parameters(config, biased=kind == "Qwen2.5")
    filled = vllm_load(tensors, shapes, config.tie_word_embeddings)
    assert filled == {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in (END, PAD)]
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == ends and tokenizer.chat_template


def expected_of_vllm(module: str) -> bool:
    """Whether vLLM puts an adapter on a module of this name: its own linear layers, and the parts of stacked ones."""
    return module in {"o_proj", "down_proj", *STACKED}


def test_vllm_takes_the_folder_of_adapters(tmp_path: Path) -> None:
    """What ``--enable-lora`` reads of adapter_config.json, and where it puts each tensor."""
    source = _checkpoint(tmp_path / "run", 2)
    convert(ConvertConfig(load_dir=source, save_dir=tmp_path / "peft", save_lora_to_hf=True))
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == RANK and config["lora_alpha"] == 6 and config["bias"] == "none"  # required, and allowed
    assert not config.get("modules_to_save") and not config["use_dora"] and not config["use_rslora"]
    assert isinstance(config["target_modules"], list) and all(map(expected_of_vllm, config["target_modules"]))
    tensors = load_file(tmp_path / "peft/adapter_model.safetensors")
    sizes = {"q_proj": (HIDDEN, HEADS * SIZE), "o_proj": (HEADS * SIZE, HIDDEN), "down_proj": (INNER, HIDDEN)}
    found = set()
    for name, tensor in tensors.items():
        place = re.fullmatch(
            r"base_model\.model\.(model\.layers\.\d+\.(?:self_attn|mlp)\.(\w+))\.lora_(A|B)\.weight", name
        )
        assert place is not None and expected_of_vllm(place[2]), name
        found.add(place[1])
        inner, outer = sizes.get(place[2], (None, None))
        if inner is not None:
            assert tuple(tensor.shape) == ((RANK, inner) if place[3] == "A" else (outer, RANK)), name
    assert len(tensors) == 2 * len(found) == 14


def test_an_answer_ends_where_the_template_and_the_tokenizer_say(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    end, pad, user = (tokenizer.convert_tokens_to_ids(token) for token in (END, PAD, "<|im_start|>"))
    assert answers_end({}, tmp_path) == answers_end({"prompt_type": "qwen3"}, tmp_path) == {"eos_token_id": [end, pad]}
    row = {"format_user": ["{{content}}"], "format_assistant": ["{{content}}", ["eos_token"]]}
    row |= {"stop_words": ["<|im_start|>"]}
    facts = {"prompt_type": "mine", "template_row": {"name": "mine", **row}}
    assert answers_end(facts, tmp_path) == {"eos_token_id": [end, user, pad]}
    assert answers_end({}, None) == answers_end({}, tmp_path / "nothing") == {}


@pytest.mark.parametrize("thinking", ["true", "false"])
def test_transformers_answers_as_we_do(tmp_path: Path, thinking: str) -> None:
    """By its chat template and its generate as they are: the same prompt, the same tokens, the same end."""
    folder = exported(tmp_path, "dense")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    told = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "add 3 and 6"}]
    options = {"add_generation_prompt": True, "enable_thinking": thinking == "true", "return_dict": True}
    asked = tokenizer.apply_chat_template(told, return_tensors="pt", **options)
    length = asked["input_ids"].shape[1]
    free = AutoModelForCausalLM.from_pretrained(folder).generate(**asked, eos_token_id=None, max_new_tokens=24)
    ids = free[0, length:].tolist()
    stop = next(place for place in range(4, 24) if ids[place] not in ids[:place])
    _exchange(folder / "model.safetensors", ids[stop], tokenizer.convert_tokens_to_ids(END))
    theirs = AutoModelForCausalLM.from_pretrained(folder).generate(**asked, max_new_tokens=24)[0, length:]
    assert theirs.tolist() == [*ids[:stop], tokenizer.convert_tokens_to_ids(END)]
    (tmp_path / "questions.jsonl").write_text(json.dumps({"prompt": "add 3 and 6", "system": "be kind"}) + "\n")
    files = ["--input", str(tmp_path / "questions.jsonl"), "--output", str(tmp_path / "answers.jsonl")]
    words = ["--tokenizer-name-or-path", str(folder), "--enable-thinking", thinking, "--max-new-tokens", "24"]
    try:
        generate(["--load", str(folder), *files, *words])
    finally:
        process_groups.parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
    (answer,) = map(json.loads, (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines())
    assert answer["answer"] == tokenizer.decode(ids[:stop], skip_special_tokens=True)


def _exchange(path: Path, one: int, other: int) -> None:
    """Let the model say one token where it said the other."""
    tensors = load_file(path)
    tensors["lm_head.weight"][[one, other]] = tensors["lm_head.weight"][[other, one]]
    save_file(tensors, path, metadata={"format": "pt"})
