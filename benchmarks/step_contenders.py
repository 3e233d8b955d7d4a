"""Who takes a training step: our code as ``posttrain_gpt.py`` runs it, and a plain loop over transformers' model."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from step_parts import Parts

from mindspeed_ift.config.accepted import ACCEPTED
from mindspeed_ift.config.flags import parse_with_origins
from mindspeed_ift.config.tuning import TuneConfig
from mindspeed_ift.data.batch import Batch
from mindspeed_ift.devices.device import current
from mindspeed_ift.model.build import build_model
from mindspeed_ift.parallel import groups as process_groups
from mindspeed_ift.training import step as training_step
from mindspeed_ift.training.optimizer import build_optimizer, build_schedule, wrap
from mindspeed_ift.training.plan import Plan, plan
from mindspeed_ift.training.tune import model_options

RATES = "--train-iters 800 --lr 1e-3 --lr-warmup-fraction 0.03 --weight-decay 0.1 --clip-grad 1.0 --adam-beta2 0.95"
ALWAYS = [*RATES.split(), "--use-distributed-optimizer", "--stage", "sft", "--is-instruction-dataset"]


def planned(flags: list[str]) -> Plan:
    """What ``posttrain_gpt.py`` would do with these flags on one device."""
    words = [*ALWAYS, *flags]
    return plan(
        parse_with_origins(TuneConfig, words, program="train_step", description="", accepted=ACCEPTED).config, 1
    )


class _Contender:
    """Who takes the samples of a plan, step by step."""

    def __init__(self, like: Plan) -> None:
        self.plan, self.done = like, 0
        self.samples = like.training_samples(data_rank=0, shuffle=True)

    def take(self) -> list[Batch]:
        """The micro-batches of the next step."""
        batches = self.samples.take(self.done, self.plan.micro_batches)
        self.done += self.plan.rows_of_a_step
        return batches


class Ours(_Contender):
    """Training as ``posttrain_gpt.py`` does it."""

    def __init__(self, flags: list[str]) -> None:
        super().__init__(planned(flags))
        config, self.groups = self.plan.config, world(self.plan)
        self.stage = build_model(self.plan.architecture, model_options(self.plan), self.groups)
        self.model = wrap([self.stage], config.layout)
        self.optimizer = build_optimizer(self.model, config.optimizer, config.layout)
        self.schedule = build_schedule(self.optimizer, config.optimizer)

    def step(self, batches: list[Batch]) -> float:
        """The loss."""
        parts = (self.model, self.optimizer, self.schedule, batches, self.groups, current())
        return training_step.train_step(*parts).loss

    def watch(self, parts: Parts) -> None:
        """Tell which functions and modules are which part of a step."""
        parts.watch_function(training_step, "update", "optimizer")
        parts.watch_function(training_step, "forward_backward", "forward and backward")
        parts.watch_module(self.stage, "forward")
        for layer in self.stage.decoder.layers:
            parts.watch_module(layer.self_attention, "attention forward")
            parts.watch_module(layer.mlp, "mlp forward")
        parts.watch_function(self.stage, "_postprocess", "head and loss")


class Transformers(_Contender):
    """A plain loop over Qwen3ForCausalLM on the micro-batches that another contender would take."""

    def __init__(self, like: Plan, recompute: bool) -> None:
        from transformers import Qwen3Config, Qwen3ForCausalLM

        architecture, device = like.architecture, current()
        super().__init__(like)
        config = Qwen3Config(
            vocab_size=architecture.vocab_size,
            hidden_size=architecture.hidden_size,
            intermediate_size=architecture.ffn_hidden_size,
            num_hidden_layers=architecture.num_layers,
            num_attention_heads=architecture.num_attention_heads,
            num_key_value_heads=architecture.num_query_groups,
            head_dim=architecture.kv_channels,
            tie_word_embeddings=architecture.tied,
            max_position_embeddings=max(architecture.max_position_embeddings, like.config.data.seq_length),
            attn_implementation="flash_attention_2" if device.asynchronous and has_flash_attn() else "sdpa",
            use_cache=False,
        )
        dtype = torch.bfloat16 if like.config.optimizer.bf16 else torch.float32
        with torch.device(device.torch_device):
            self.model = Qwen3ForCausalLM(config).to(dtype).train()
        if recompute:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )

    def step(self, batches: list[Batch]) -> float:
        """The loss."""
        units, total = sum(batch.units for batch in batches), torch.zeros((), device=current().torch_device)
        for batch in batches:
            loss = self.forward(batch) / units
            self.backward(loss)
            total += loss.detach()
        self.update()
        return float(total)

    def forward(self, batch: Batch) -> torch.Tensor:
        """The loss sum."""
        device = current().torch_device
        labels = torch.where(batch.loss_mask > 0, batch.labels, -100).to(device)
        packed = batch.boundaries is not None and len(batch.boundaries) > len(batch.tokens) + 1
        # transformers tells packed samples apart by their positions, where there is no mask.
        mask = None if packed or batch.pads is None else (~batch.pads).long().to(device)
        positions = batch.position_ids.to(device) if packed else None
        logits = self.model(input_ids=batch.tokens.to(device), attention_mask=mask, position_ids=positions).logits
        return self.loss(logits, labels)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of all positions, in fp32."""
        return functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
        )

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients."""
        loss.backward()

    def update(self) -> None:
        """Clip and move."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def watch(self, parts: Parts) -> None:
        """Tell which functions and modules are which part of a step."""
        parts.watch_function(self, "update", "optimizer")
        parts.watch_function(self, "forward", "forward")
        parts.watch_function(self, "backward", "backward")
        for layer in self.model.model.layers:
            parts.watch_module(layer.self_attn, "attention forward")
            parts.watch_module(layer.mlp, "mlp forward")
        parts.watch_module(self.model.lm_head, "head and loss")
        parts.watch_function(self, "loss", "head and loss")


def has_flash_attn() -> bool:
    """Whether transformers can use it."""
    from transformers.utils import is_flash_attn_2_available

    return is_flash_attn_2_available()


_WORLD: list[process_groups.Groups] = []


def world(of: Plan) -> process_groups.Groups:
    """One world of one rank for all contenders."""
    if not _WORLD:
        _WORLD.append(process_groups.start(of.layout, current(), seed=1))
    return _WORLD[0]


def leave_world() -> None:
    """After the last step."""
    while _WORLD:
        process_groups.stop(_WORLD.pop())
