"""A mixture of experts against Hugging Face's Qwen3MoeForCausalLM in fp32: logits, gradients, steps of AdamW, bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from mindspeed_ift.checkpoint.adapters import merge_adapters
from mindspeed_ift.checkpoint.convert import convert
from mindspeed_ift.checkpoint.huggingface import Folder
from mindspeed_ift.checkpoint.names import Stage, hugging_face_shapes, stage_entries
from mindspeed_ift.checkpoint.transforms import from_shards
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import LayoutFlags
from mindspeed_ift.config.lora import LORA_TARGETS, LoraFlags
from mindspeed_ift.config.tuning import OptimizerFlags
from mindspeed_ift.data.batch import Batch
from mindspeed_ift.devices.device import current
from mindspeed_ift.inference.decoder import Decoder
from mindspeed_ift.inference.generate import generate
from mindspeed_ift.inference.sampling import Sampling
from mindspeed_ift.mcore import unable
from mindspeed_ift.model.build import ModelOptions, Qwen3Model, build_model
from mindspeed_ift.model.lora import start_adapters
from mindspeed_ift.model.weights import fill, without_adapters
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.training.optimizer import build_optimizer, build_schedule, wrap
from mindspeed_ift.training.step import train_step
from tests.tiny_model import whole_shard
from tests.tolerances import (
    GRADIENTS,
    LOGITS,
    LORA_STEPS_LOSS,
    LORA_STEPS_WEIGHTS,
    TWENTY_STEPS_LOSS,
    TWENTY_STEPS_WEIGHTS,
)
from tests.training_runs import make_hugging_face_model

VOCAB = 250
KINDS: dict[str, dict[str, Any]] = {
    "every layer": {},
    "some layers, weights as they are": {"mlp_only_layers": [1], "norm_topk_prob": False},
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of three layers with eight experts, two a token."""
    path = tmp_path_factory.mktemp("hf") / "model"
    return make_hugging_face_model(path, tied=False, vocab_size=VOCAB, layers=3, experts=KINDS[request.param])


def ours_of(folder: Path, groups: Groups, aux_loss_coeff: float = 0.0) -> Qwen3Model:
    architecture = Architecture.from_hugging_face(folder)
    model = build_model(architecture, ModelOptions(padded_vocab=VOCAB, aux_loss_coeff=aux_loss_coeff), groups)
    fill(model, whole_shard(folder, VOCAB), str(folder))
    return model


def theirs_of(folder: Path) -> Any:
    model = Qwen3MoeForCausalLM.from_pretrained(folder, attn_implementation="sdpa").float().train()
    if hasattr(model, "set_experts_implementation"):  # one expert after the other, as transformers 4 has it
        model.set_experts_implementation("eager")
    return model


def as_in_the_folder(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the folder for those of transformers 5, which keeps the experts of a layer in two tensors."""
    found = {}
    for name, tensor in tensors.items():
        prefix, _, last = name.rpartition("experts.")
        if not prefix or last not in ("gate_up_proj", "down_proj"):
            found[name] = tensor
            continue
        for expert, one in enumerate(tensor):
            parts = one.chunk(2) if last == "gate_up_proj" else [one]
            kinds = ("gate", "up") if last == "gate_up_proj" else ("down",)
            found |= {f"{prefix}experts.{expert}.{k}_proj.weight": v for k, v in zip(kinds, parts, strict=True)}
    return found


def as_hugging_face(model: Qwen3Model, values: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, parts, transform in stage_entries(model.architecture, Stage(model.layer_numbers)):
        pieces = from_shards(transform, [values[name]], model.architecture)
        found |= {part: one.joined() for part, one in zip(parts, pieces, strict=True)}
    return found


def close(name: str, ours: Tensor, theirs: Tensor, tolerance: dict[str, float]) -> None:
    assert torch.allclose(ours, theirs, **tolerance), f"{name}: {(ours - theirs).abs().max()}"


def tokens_of(seed: int = 5, batch: int = 2, length: int = 48) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
    return tokens, torch.arange(length).expand(batch, length)


def test_logits_and_every_gradient(folder: Path, groups: Groups) -> None:
    """Of the summed loss on some learnt positions, without a loss for unequal load."""
    ours, theirs = ours_of(folder, groups), theirs_of(folder)
    tokens, positions = tokens_of()
    with torch.no_grad():
        close("logits", ours(tokens, positions, None), theirs(input_ids=tokens).logits, LOGITS)
    labels, mask = tokens.roll(-1, 1), (torch.arange(tokens.numel()).view(tokens.shape) % 3 == 0).float()
    ours(tokens, positions, None, labels=labels, loss_mask=mask).backward()
    each = torch.nn.functional.cross_entropy(theirs(input_ids=tokens).logits.transpose(1, 2), labels, reduction="none")
    (each * mask).sum().backward()
    mine = as_hugging_face(ours, {name: one.grad for name, one in ours.named_parameters()})
    expected = as_in_the_folder({name: one.grad for name, one in theirs.named_parameters()})
    assert mine.keys() == expected.keys() == hugging_face_shapes(ours.architecture).keys()
    for name, gradient in mine.items():
        close(name, gradient, expected[name], GRADIENTS)
    assert all(mine[name].abs().max() > 0 for name in mine if "mlp.gate.weight" in name)


def batch_of(seed: int) -> Batch:
    """Two rows, the second with 16 pads; a third of the others are learnt."""
    tokens, positions = tokens_of(seed)
    pads = torch.zeros(tokens.shape, dtype=torch.bool)
    pads[1, 32:] = True
    learnt = (torch.arange(tokens.numel()).view(tokens.shape) % 3 == seed % 2) & ~pads
    return Batch(tokens, tokens.roll(-1, 1), learnt.float(), positions, real_tokens=80, pads=pads)


class Reference:
    """Hugging Face's model and plain AdamW; the balance of each layer by transformers' own function."""

    def __init__(self, folder: Path, coefficient: float, flags: OptimizerFlags) -> None:
        self.model, self.coefficient = theirs_of(folder), coefficient
        norms = [one for name, one in self.model.named_parameters() if "norm" in name]
        others = [one for name, one in self.model.named_parameters() if "norm" not in name]
        groups = [{"params": others, "weight_decay": flags.weight_decay}, {"params": norms, "weight_decay": 0.0}]
        betas = (flags.adam_beta1, flags.adam_beta2)
        self.optimizer = torch.optim.AdamW(groups, lr=flags.lr, betas=betas, eps=flags.adam_eps)
        self.logits: list[Tensor] = []
        for name, module in self.model.named_modules():
            if name.endswith("mlp.gate"):  # what transformers calls its logits has been through a softmax since 5.0
                module.register_forward_pre_hook(
                    lambda gate, inputs: self.logits.append(inputs[0].flatten(0, -2) @ gate.weight.T)
                )

    def step(self, batches: list[Batch]) -> tuple[float, float, float]:
        """(loss, mean balance of a layer, gradient norm)."""
        config = self.model.config
        learnt = sum(batch.learnt_tokens for batch in batches)
        loss, balance = torch.zeros(()), torch.zeros(())
        for batch in batches:
            self.logits.clear()
            logits = self.model(input_ids=batch.tokens).logits.transpose(1, 2)
            each = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
            loss = loss + (each * batch.loss_mask).sum() / learnt
            for layer in self.logits:
                whole = load_balancing_loss_func(
                    (layer,), config.num_experts, config.num_experts_per_tok, (~batch.pads).long()
                )
                balance = balance + whole / config.num_experts_per_tok / len(batches)
        (loss + self.coefficient * balance).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item(), balance.item() / len(self.logits), norm.item()


NO_BALANCE = unable(balance=True, stage_sizes=[1])
balanced = pytest.mark.skipif(NO_BALANCE is not None, reason=NO_BALANCE or "")


@pytest.mark.parametrize("coefficient", [0.0, pytest.param(0.5, marks=balanced)])
def test_ten_steps_of_adamw(folder: Path, groups: Groups, coefficient: float) -> None:
    """Two micro-batches a step, with pads: losses, gradient norms, balance, and the weights at the end."""
    flags = OptimizerFlags(lr=1e-3, train_iters=10, lr_decay_style="constant", moe_aux_loss_coeff=coefficient)
    reference, stage = Reference(folder, coefficient, flags), ours_of(folder, groups, coefficient)
    model = wrap([stage], LayoutFlags())
    optimizer = build_optimizer(model, flags, LayoutFlags())
    schedule = build_schedule(optimizer, flags)
    for number in range(10):
        batches = [batch_of(2 * number % 8), batch_of(2 * number % 8 + 1)]
        report = train_step(model, optimizer, schedule, batches, groups, current())
        loss, balance, norm = reference.step(batches)
        assert report.loss == pytest.approx(loss, **TWENTY_STEPS_LOSS)
        assert report.gradient_norm == pytest.approx(norm, rel=1e-4)
        if coefficient:
            assert report.load_balancing_loss == pytest.approx(balance, **TWENTY_STEPS_LOSS)
        else:
            assert report.load_balancing_loss is None
    mine = as_hugging_face(stage, dict(stage.named_parameters()))
    for name, weight in as_in_the_folder(dict(reference.model.named_parameters())).items():
        close(name, mine[name], weight, TWENTY_STEPS_WEIGHTS)


@balanced
def test_balance_of_equal_load_is_one(groups: Groups, tmp_path: Path) -> None:
    """What the log says of it can be read without knowing the number of experts; an idle router is no loss."""
    folder = make_hugging_face_model(tmp_path / "hf", tied=False, vocab_size=VOCAB, layers=1, experts={})
    stage = ours_of(folder, groups, aux_loss_coeff=1e-3)
    with torch.no_grad():
        stage.decoder.layers[0].mlp.router.weight.zero_()  # every expert as likely
    model = wrap([stage], LayoutFlags())
    flags = OptimizerFlags(lr=1e-9, train_iters=1)
    optimizer = build_optimizer(model, flags, LayoutFlags())
    report = train_step(model, optimizer, build_schedule(optimizer, flags), [batch_of(0)], groups, current())
    assert report.load_balancing_loss == pytest.approx(1.0, rel=1e-6) and math.isfinite(report.gradient_norm)


def in_transformers(found: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """The other way than `as_in_the_folder`, for a model that has these names."""
    result = {}
    for name in names:
        prefix, _, last = name.rpartition("experts.")
        kinds = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}.get(last if prefix else "")
        if kinds is None:
            result[name] = found[name]
            continue
        each = [
            torch.cat([found[f"{prefix}experts.{expert}.{kind}_proj.weight"] for kind in kinds]) for expert in range(8)
        ]
        result[name] = torch.stack(each)
    return result


def test_ten_steps_of_adapters(folder: Path, groups: Groups) -> None:
    """Of each expert too, against Hugging Face's model on weights with the same adapters merged; and the merging itself."""
    lora, scale = LoraFlags(LORA_TARGETS, lora_r=4, lora_alpha=12), 3.0
    architecture, theirs = Architecture.from_hugging_face(folder), theirs_of(folder)
    stage = build_model(architecture, ModelOptions(padded_vocab=VOCAB, lora=lora), groups)
    fill(stage, whole_shard(folder, VOCAB), str(folder), without_adapters)
    start_adapters(stage, stage.layer_numbers, seed=3)
    # Adam divides by small second moments, which would magnify rounding.
    flags = OptimizerFlags(lr=1e-2, train_iters=10, lr_decay_style="constant", weight_decay=0.1, adam_eps=1e-5)
    values = {name: one.detach().clone() for name, one in stage.named_parameters()}
    adapters = {name: one.requires_grad_() for name, one in values.items() if not without_adapters(name)}
    assert {name.rpartition(".")[2] for name in adapters if "experts" in name} == {
        f"lora_{factor}{number}" for factor in "AB" for number in "12"
    }
    reference = torch.optim.AdamW(adapters.values(), lr=flags.lr, weight_decay=flags.weight_decay, eps=flags.adam_eps)

    def merged() -> dict[str, Tensor]:
        weights = {name: one for name, one in values.items() if without_adapters(name)}
        return as_hugging_face(stage, {k: merge_adapters(k, [one], [values], lora)[0] for k, one in weights.items()})

    model = wrap([stage], LayoutFlags())
    optimizer = build_optimizer(model, flags, LayoutFlags())
    schedule = build_schedule(optimizer, flags)
    losses = []
    for number in range(10):
        batch = batch_of(number % 8)
        report = train_step(model, optimizer, schedule, [batch], groups, current())
        names = {name for name, _ in theirs.named_parameters()}
        logits = torch.func.functional_call(theirs, in_transformers(merged(), names), (batch.tokens,)).logits
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none")
        loss = (each * batch.loss_mask).sum() / batch.learnt_tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapters.values(), 1.0)
        reference.step()
        reference.zero_grad()
        losses.append((report.loss, loss.item()))
    assert [ours for ours, _ in losses] == pytest.approx([one for _, one in losses], **LORA_STEPS_LOSS)
    for name, one in stage.named_parameters():
        if name in adapters:
            close(name, one, adapters[name], LORA_STEPS_WEIGHTS)
    prefix, final = "decoder.layers.0.mlp.experts.", merged()
    a, b = (values[f"{prefix}lora_{factor}1"][5] for factor in "AB")
    change = scale * (a @ b).T
    before = as_hugging_face(stage, values)
    for part, rows in (("gate", change[:48]), ("up", change[48:])):
        name = f"model.layers.0.mlp.experts.5.{part}_proj.weight"
        close(name, final[name], before[name] + rows, LORA_STEPS_WEIGHTS)
        assert rows.abs().max() > 1e-3


@pytest.mark.parametrize(
    "layout",
    [{}, {"expert": 4}, {"tensor": 2, "expert": 2}, {"tensor": 2, "pipeline": 3, "expert": 4, "own": 1}],
    ids=["whole", "ep4", "tp2 ep2", "tp2 pp3 ep4 etp1"],
)
def test_round_trip_is_equal_to_the_byte(folder: Path, tmp_path: Path, layout: dict[str, int]) -> None:
    """Hugging Face -> Megatron -> Hugging Face, mixed layers too."""
    sizes = {f"target_{key}_parallel_size": size for key, size in layout.items() if key != "own"}
    target = ConvertConfig("hf", "mg", folder, tmp_path / "mg", expert_tensor_parallel_size=layout.get("own"), **sizes)
    convert(target)
    convert(ConvertConfig("mg", "hf", tmp_path / "mg", tmp_path / "back"))
    before, after = Folder(folder), Folder(tmp_path / "back")
    architecture = Architecture.from_hugging_face(folder)
    assert Architecture.from_hugging_face(tmp_path / "back") == architecture and after.names == before.names
    for name, shape in hugging_face_shapes(architecture).items():
        assert torch.equal(before.tensor(name, shape), after.tensor(name, shape)), name
    files = {path.parent.name for path in (tmp_path / "mg").rglob("model_optim_rng.pt")}
    if layout == {"tensor": 2, "expert": 2}:
        assert files == {f"mp_rank_{tensor:02d}_{expert:03d}" for tensor in range(2) for expert in range(2)}
    theirs = theirs_of(tmp_path / "back").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in theirs_of(folder).state_dict().items())


def test_what_experts_do_not_divide_into_is_refused(folder: Path, tmp_path: Path) -> None:
    for sizes, expected in (
        ({"target_expert_parallel_size": 3}, "--target-expert-parallel-size 3 does not divide 8 experts"),
        ({"expert_tensor_parallel_size": 2}, "--expert-tensor-parallel-size 2 does not divide --tensor"),
    ):
        with pytest.raises(UserError, match=expected):
            convert(ConvertConfig("hf", "mg", folder, tmp_path / "mg", **sizes))
        assert not (tmp_path / "mg").exists()


def test_greedy_answers_are_those_of_generate(folder: Path, groups: Groups) -> None:
    """Token for token, prompts of different lengths in one batch."""
    ours, theirs = ours_of(folder, groups).eval(), theirs_of(folder).eval()
    tokens, _ = tokens_of()
    prompts = [tokens[0, :9].tolist(), tokens[1, :20].tolist()]
    asked = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    answers = generate(Decoder(ours, groups), prompts, [], Sampling(max_new_tokens=8))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), **asked)
        assert answer == expected[0, len(prompt) :].tolist()
