"""Our Megatron model against Hugging Face's Qwen3ForCausalLM in fp32: logits, every gradient, bytes of a round trip."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3ForCausalLM

from mindspeed_ift.checkpoint.convert import convert
from mindspeed_ift.checkpoint.names import Stage, hugging_face_shapes, stage_entries
from mindspeed_ift.checkpoint.transforms import from_shards
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.resolve import resolve_architecture
from mindspeed_ift.config.tuning import ModelFlags
from mindspeed_ift.inference.decoder import Decoder
from mindspeed_ift.inference.generate import generate
from mindspeed_ift.inference.sampling import Sampling, choose
from mindspeed_ift.model.build import ModelOptions, Qwen3Model, build_model
from mindspeed_ift.model.weights import fill
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.training.state import load_model
from tests.tiny_model import whole_shard
from tests.tolerances import GRADIENTS, LOGITS
from tests.training_runs import make_hugging_face_model

VOCAB, PADDED = 250, 256


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, groups):  # noqa: ANN001, ANN201
    """The same weights as (Hugging Face model, our model)."""
    folder = make_hugging_face_model(tmp_path_factory.mktemp("hf") / "model", tied=request.param, vocab_size=VOCAB)
    architecture = Architecture.from_hugging_face(folder)
    ours = build_model(architecture, ModelOptions(padded_vocab=PADDED), groups)
    fill(ours, whole_shard(folder, PADDED), str(folder))
    reference = Qwen3ForCausalLM.from_pretrained(folder, attn_implementation="sdpa").float()
    return reference, ours


def _inputs(batch: int = 2, length: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, VOCAB, (batch, length), generator=generator)
    return tokens, torch.arange(length).expand(batch, length)


def _close(name: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: dict[str, float]) -> None:
    difference = (ours - theirs).abs()
    worst = int(difference.argmax())
    message = f"{name} {tuple(ours.shape)} at {worst}: {ours.flatten()[worst]} and {theirs.flatten()[worst]}"
    assert torch.allclose(ours, theirs, **tolerance), message


def test_logits(pair) -> None:  # noqa: ANN001
    """Every logit of two rows."""
    reference, ours = pair
    tokens, positions = _inputs()
    with torch.no_grad():
        _close("logits", ours(tokens, positions, None)[..., :VOCAB], reference(input_ids=tokens).logits, LOGITS)


def _gradients_as_hugging_face(model: Qwen3Model) -> dict[str, torch.Tensor]:
    found = {}
    parameters = dict(model.named_parameters())
    architecture = model.architecture
    entries = stage_entries(architecture, Stage(model.layer_numbers))
    for name, parts, transform in entries:
        pieces = from_shards(transform, [parameters[name].grad], architecture)
        found |= {part: one.joined() for part, one in zip(parts, pieces, strict=True)}
    return found


@pytest.mark.parametrize("chunk", [None, 7])
def test_every_gradient(pair, chunk: int | None) -> None:  # noqa: ANN001
    """Of the summed loss on some learnt positions, the head whole or in pieces."""
    reference, ours = pair
    tokens, positions = _inputs()
    labels = tokens.roll(-1, 1)
    mask = (torch.arange(tokens.numel()).view(tokens.shape) % 3 == 0).float()
    reference.zero_grad()
    ours.zero_grad()
    object.__setattr__(ours.options, "loss_chunk_size", chunk)
    loss = ours(tokens, positions, None, labels=labels, loss_mask=mask)
    loss.backward()
    each = torch.nn.functional.cross_entropy(
        reference(input_ids=tokens).logits.transpose(1, 2), labels, reduction="none"
    )
    expected = (each * mask).sum()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    theirs = {name: parameter.grad for name, parameter in reference.named_parameters()}
    mine = _gradients_as_hugging_face(ours)
    assert mine.keys() == hugging_face_shapes(ours.architecture).keys() == theirs.keys()
    for name, gradient in mine.items():
        _close(name, gradient, theirs[name], GRADIENTS)


@pytest.mark.parametrize("restart", [True, False], ids=["positions restart", "positions go on"])
def test_packed_row_is_its_samples_alone(pair, restart: bool) -> None:  # noqa: ANN001
    """Rows of several samples against Hugging Face on each sample; rotary turns by differences, so both must agree."""
    reference, ours = pair
    tokens, _ = _inputs(batch=2)
    ends = [0, 11, 30, 48, 60, 96]
    restarted = torch.cat([torch.arange(b - a) for a, b in zip(ends, ends[1:], strict=False)]).view(2, 48)
    positions = restarted if restart else torch.arange(48).expand(2, 48)
    with torch.no_grad():
        packed = ours(tokens, positions, torch.tensor(ends, dtype=torch.int32))[..., :VOCAB].flatten(0, 1)
        flat = tokens.flatten()
        for start, stop in zip(ends, ends[1:], strict=False):
            alone = reference(input_ids=flat[None, start:stop]).logits[0]
            _close(f"sample {start}..{stop}", packed[start:stop], alone, LOGITS)


@pytest.mark.parametrize("restart", [True, False])
def test_a_poisoned_sample_moves_no_other(pair, restart: bool) -> None:  # noqa: ANN001
    """Changing one sample leaves the logits of its neighbours equal to the last bit."""
    _, ours = pair
    tokens, positions = _inputs(batch=1)
    ends = torch.tensor([0, 16, 32, 48], dtype=torch.int32)
    if restart:
        positions = positions % 16
    poisoned = tokens.clone()
    poisoned[0, 16:32] = (poisoned[0, 16:32] + 1) % VOCAB
    with torch.no_grad():
        before, after = ours(tokens, positions, ends)[0], ours(poisoned, positions, ends)[0]
    assert torch.equal(before[:16], after[:16]) and torch.equal(before[32:], after[32:])
    assert not torch.equal(before[16:32], after[16:32])


def test_no_learnt_token_gives_no_loss_and_no_nan(pair) -> None:  # noqa: ANN001
    """A batch whose labels are all masked contributes zero."""
    _, ours = pair
    tokens, positions = _inputs()
    ours.zero_grad()
    loss = ours(tokens, positions, None, labels=tokens, loss_mask=torch.zeros(tokens.shape))
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in ours.parameters())


DENSE = {
    "one": {},
    "tp2": {"target_tensor_parallel_size": 2, "make_vocab_size_divisible_by": 64},
    "pp2": {"target_pipeline_parallel_size": 2},
    "tp2 pp2 vpp2": {
        "target_tensor_parallel_size": 2,
        "target_pipeline_parallel_size": 2,
        "num_layers_per_virtual_pipeline_stage": 1,
    },
    "list": {"target_pipeline_parallel_size": 2, "num_layer_list": "1,3"},
}
EXPERTS = {
    "one": {},
    "ep2 etp1 tp2": {
        "target_expert_parallel_size": 2,
        "expert_tensor_parallel_size": 1,
        "target_tensor_parallel_size": 2,
    },
    "ep2 tp2 pp2": {
        "target_expert_parallel_size": 2,
        "target_tensor_parallel_size": 2,
        "target_pipeline_parallel_size": 2,
    },
    "ep4 pp2 vpp2": {
        "target_expert_parallel_size": 4,
        "target_pipeline_parallel_size": 2,
        "num_layers_per_virtual_pipeline_stage": 1,
    },
}


@pytest.mark.parametrize("kind", ["tied", "untied", "experts"])
def test_any_layout_to_any_layout_is_equal_to_the_byte(tmp_path: Path, kind: str) -> None:
    """Hugging Face -> Megatron -> another layout and format -> Hugging Face, through a ring of all layouts and formats."""
    experts = {"mlp_only_layers": [1]} if kind == "experts" else None
    source = make_hugging_face_model(
        tmp_path / "hf", tied=kind == "tied", vocab_size=251, layers=4, experts=experts, dtype=torch.bfloat16
    )
    expected = load_file(source / "model.safetensors")
    layouts = EXPERTS if experts else DENSE
    ring = [(name, ckpt_format) for name in layouts for ckpt_format in ("torch", "torch_dist")]
    folder, found = source, "hf"
    for number, (name, ckpt_format) in enumerate(ring):
        former, folder = folder, tmp_path / f"mg {number}"
        told = convert(ConvertConfig(found, "mg", former, folder, ckpt_format=ckpt_format, **layouts[name]))  # type: ignore[arg-type]
        assert f"Megatron {ckpt_format}" in told
        found = "mg"
        convert(ConvertConfig("mg", "hf", folder, tmp_path / f"back {number}"))
        back = load_file(tmp_path / f"back {number}" / "model.safetensors")
        assert back.keys() == expected.keys()
        for tensor, value in expected.items():
            assert back[tensor].dtype is value.dtype and torch.equal(back[tensor], value), (name, ckpt_format, tensor)
    cut = {path.name for path in (tmp_path / "mg 2/iter_0000001").glob("mp_rank_*")}
    assert cut == ({"mp_rank_00_000", "mp_rank_01_001"} if experts else {"mp_rank_00", "mp_rank_01"})
    assert Architecture.from_hugging_face(tmp_path / "back 0") == Architecture.from_hugging_face(source)
    AutoModelForCausalLM.from_pretrained(tmp_path / "back 0")


def test_qwen2_5_has_biases_and_its_logits(tmp_path: Path, groups: Groups) -> None:
    """Equal logits, and equal bytes through both formats; head_dim is not in its config.json."""
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rope_theta=1e6,
        initializer_range=0.05,
    )
    reference, source = Qwen2ForCausalLM(config), tmp_path / "hf"
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    reference.save_pretrained(source)
    architecture = Architecture.from_hugging_face(source)
    ours = build_model(architecture, ModelOptions(padded_vocab=VOCAB), groups)
    fill(ours, whole_shard(source, VOCAB), str(source))
    tokens, positions = _inputs()
    with torch.no_grad():
        _close("logits", ours(tokens, positions, None)[..., :VOCAB], reference(input_ids=tokens).logits, LOGITS)
    convert(ConvertConfig("hf", "mg", source, tmp_path / "mg", target_tensor_parallel_size=2))
    convert(ConvertConfig("mg", "mg", tmp_path / "mg", tmp_path / "any", ckpt_format="torch_dist"))
    convert(ConvertConfig("mg", "hf", tmp_path / "any", tmp_path / "back"))
    expected, back = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "back"))
    assert back.keys() == expected.keys() and sum("bias" in name for name in back) == 6
    assert all(torch.equal(back[name], value) for name, value in expected.items())
    again = Qwen2ForCausalLM.from_pretrained(tmp_path / "back")
    with torch.no_grad():
        assert torch.equal(again(input_ids=tokens).logits, reference(input_ids=tokens).logits)
    loaded = {"--load x": architecture}
    with pytest.raises(UserError, match="--load x is a Qwen2.5, which is converted and asked, but not trained here"):
        resolve_architecture(ModelFlags(), loaded, VOCAB)


@pytest.mark.parametrize("experts", [None, {}], ids=["dense", "experts"])
@pytest.mark.parametrize("ckpt_format", ["torch", "torch_dist"])
def test_a_converted_checkpoint_is_what_training_loads(
    tmp_path: Path, groups: Groups, experts: dict[str, Any] | None, ckpt_format: Literal["torch", "torch_dist"]
) -> None:
    """Names and shapes are those of the model, in either format."""
    source = make_hugging_face_model(tmp_path / "hf", tied=False, vocab_size=250, experts=experts)
    convert(ConvertConfig("hf", "mg", source, tmp_path / "mg", ckpt_format=ckpt_format))
    architecture = Architecture.from_hugging_face(source)
    ours, expected = (build_model(architecture, ModelOptions(padded_vocab=250), groups) for _ in "ab")
    load_model(tmp_path / "mg/iter_0000001", [ours], groups)
    fill(expected, whole_shard(source, 250), str(source))
    assert all(map(torch.equal, ours.parameters(), expected.parameters()))


def test_damage_is_named(tmp_path: Path) -> None:
    """A changed shard, a full target, another architecture: one clear line each."""
    source = make_hugging_face_model(tmp_path / "hf", tied=True, vocab_size=250)
    convert(ConvertConfig("hf", "mg", source, tmp_path / "mg"))
    with pytest.raises(UserError, match="not empty"):
        convert(ConvertConfig("hf", "mg", source, tmp_path / "mg"))
    shard = tmp_path / "mg/iter_0000001/mp_rank_00/model_optim_rng.pt"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match="checksum"):
        convert(ConvertConfig("mg", "hf", tmp_path / "mg", tmp_path / "back"))
    assert not (tmp_path / "back").exists()
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        convert(ConvertConfig("hf", "mg", source, tmp_path / "again"))
    (source / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', encoding="utf-8")
    with pytest.raises(UserError, match="LlamaForCausalLM is not supported"):
        convert(ConvertConfig("hf", "mg", source, tmp_path / "again"))


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_answers_are_those_of_generate(pair, groups, penalty: float) -> None:  # noqa: ANN001
    """Token for token, prompts of different lengths in one batch, each until its own stop."""
    reference, ours = pair
    tokens, _ = _inputs()
    prompts = [tokens[0, :9].tolist(), tokens[1, :20].tolist(), tokens[0, 20:23].tolist()]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        asked = {"max_new_tokens": 24, "do_sample": False, "repetition_penalty": penalty, "eos_token_id": None}
        whole = reference.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **asked)
        expected.append(whole[0, len(prompt) :].tolist())
    sampling = Sampling(max_new_tokens=24, repetition_penalty=penalty)
    assert generate(Decoder(ours, groups), prompts, [], sampling) == expected
    stop = expected[0][11]
    cut = [answer[: answer.index(stop)] if stop in answer else answer for answer in expected]
    assert generate(Decoder(ours, groups), prompts, [stop], sampling) == cut
    assert len({len(answer) for answer in cut}) > 1  # rows end at different times


def test_sampling_keeps_to_its_bounds() -> None:
    """top-k and top-p leave only the likeliest tokens; a tiny temperature is greedy; a seed repeats."""
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(400, 1)

    def drawn(**options: float) -> set[int]:
        generator = torch.Generator().manual_seed(3)
        return set(choose(logits, Sampling(temperature=1.0, **options), generator).tolist())

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {0, 1}
    assert drawn(top_p=0.6) == {0, 1}
    assert drawn(top_p=0.1) == {0}
    assert set(choose(logits, Sampling(temperature=1e-4), torch.Generator()).tolist()) == {0}
