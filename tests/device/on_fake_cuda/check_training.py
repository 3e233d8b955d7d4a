"""Training on a device without values: no tensor of the host among its tensors, and the host waits where it should."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed_ift.cli.main import main as command
from mindspeed_ift.cli.tune import main
from mindspeed_ift.devices.device import current
from mindspeed_ift.devices.kernels import flex
from mindspeed_ift.model import head
from mindspeed_ift.parallel import groups as process_groups
from mindspeed_ift.training import tune
from mindspeed_ift.training.step import Totals
from tests.device.fake_cuda.plugin import DEVICE
from tests.training_runs import MODES, SEQ_LENGTH, make_datasets

SIZES = "--num-layers 2 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4 --num-query-groups 2"
RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
EXPERTS = "--num-experts 4 --moe-router-topk 2 --moe-ffn-hidden-size 32 --moe-aux-loss-coeff 0.01"
LORA = "--lora-r 4 --lora-target-modules linear_qkv linear_proj linear_fc1 linear_fc2"
RUNS = {
    "fixed": ("fixed", "--bf16"),
    "dynamic": ("dynamic", "--bf16 --use-distributed-optimizer"),
    "packed": ("packed", f"--bf16 --use-distributed-optimizer {RECOMPUTE} --untie-embeddings-and-output-weights"),
    "adapters": ("packed", f"--bf16 {LORA}"),
    "fp16": ("packed", "--fp16 --initial-loss-scale 1024"),
}
READ = ["step.py forward_backward", "optimizer.py _gradient_norm"]
"""What a step waits for: its sums, with the loss for the log, and the gradient norm, without which it moves no weight."""
SCALED = [*["loss_scale.py loss_scale_of"] * 2, "optimizer.py _unscale_main_grads_and_check_for_nan"]
"""In fp16 besides: the scale, and whether a gradient overflowed."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_datasets(tmp_path_factory.mktemp("data"))


def read(tensor: Tensor) -> Tensor:
    """Sums of a step that nobody asked to stop, equal shares of 4 experts, gradients that did not overflow; else ones."""
    ones = torch.ones(tensor.shape, dtype=tensor.dtype)
    if tensor.dtype is torch.float64 and tensor.shape == (len(Totals._fields),):
        ones[Totals._fields.index("asked_to_stop")] = 0
    if tensor.dtype is torch.int64 and tensor.numel() == 4:
        return ones * 2 * 2 * SEQ_LENGTH // 4
    return ones if tensor.dtype is not torch.float32 or tensor.shape != (1,) else ones * 0


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """For each step of a run, and what comes after it until the next, where the host waits."""
    found: list[list[str]] = []
    take = tune.train_step

    def step(*arguments: Any) -> Any:
        found.append([])
        DEVICE.waits.clear()
        DEVICE.launches.clear()
        try:
            return take(*arguments)
        finally:
            found[-1] += [str(wait) for wait in DEVICE.waits]

    monkeypatch.setattr(tune, "train_step", step)
    answers, DEVICE.answers = DEVICE.answers, read
    yield found
    if dist.is_initialized():  # of a run that failed
        process_groups.leave()
        dist.destroy_process_group()
    DEVICE.answers = answers


def train(data: dict[str, Path], mode: str, flags: str) -> None:
    line = ["--data-path", str(data[mode]), *MODES[mode], *SIZES.split(), "--train-iters", "2", "--lr", "1e-3"]
    line += ["--micro-batch-size", "2", "--global-batch-size", "4", *flags.split()]
    with DEVICE:
        main(line)


def shortened(waits: list[str]) -> list[str]:
    """File and function of each."""
    places = [wait.split(" at ")[1].split(" <- ")[0] for wait in waits]
    return [f"{place.split(':')[0].split('/')[-1]} {place.split()[-1]}" for place in places]


def check_that_it_is_chosen_with_its_kernels() -> None:
    device = current()
    assert (device.kind, device.backend, device.torch_device) == ("cuda", "nccl", torch.device("cuda", 0))
    fused = "compiled rms_norm; swiglu; rotary; grouped_mm; products added in fp32; cross_entropy; fused AdamW"
    assert device.kernel_notice == f"varlen_attn; {fused}; plain torch for permute"


@pytest.mark.parametrize("name", RUNS)
def check_that_the_host_waits_twice_a_step(data: dict[str, Path], steps: list[list[str]], name: str) -> None:
    train(data, *RUNS[name])
    found = [shortened(waits) for waits in steps]
    scaled = SCALED if name == "fp16" else []
    assert len(found) == 2 and found[1] == [READ[0], *scaled, READ[1]], steps  # moments are made in the first


def check_that_experts_are_asked_how_many_tokens_they_have(data: dict[str, Path], steps: list[list[str]]) -> None:
    """Once a layer and micro-batch, forward; besides, once a step for what the loss for unequal load weighs."""

    train(data, "packed", f"--bf16 {EXPERTS}")
    for waits in steps[1:]:
        found = shortened(waits)
        assert found[0] == "step.py _prepare_balance" and found[-2:] == READ, waits
        assert found[1:-2] == ["token_dispatcher.py _maybe_dtoh_and_synchronize"] * 4, waits


def check_what_a_layer_launches(data: dict[str, Path], steps: list[list[str]]) -> None:
    """Forward and backward, of one micro-batch, in bf16; more would be a copy or a cast that nobody needs."""
    counts = []
    for layers in (1, 2):
        train(data, "packed", f"--bf16 --num-layers {layers} --micro-batch-size 1 --global-batch-size 1")
        counts.append(Counter(launch.name for launch in DEVICE.launches if "optimizer" not in launch.place))
    products, copies = {"mm": 8, "addmm": 4}, {"add_": 4, "add": 4, "cat": 1, "clone": 1, "neg": 2, "zeros": 1}
    attention = {"_varlen_attn": 1, "_flash_attention_backward": 1, "turn": 4}
    fused = {"rms_norm": 4, "rms_norm backward": 4, "swiglu": 1, "swiglu backward": 1}
    assert dict(counts[1] - counts[0]) == products | copies | attention | fused


def check_that_it_goes_on_and_answers(data: dict[str, Path], steps: list[list[str]], tmp_path: Path) -> None:
    """After a checkpoint, whose numbers are read from the device; weights go there again, and tokens."""
    train(data, "packed", f"--bf16 --use-distributed-optimizer --save {tmp_path}")
    train(data, "packed", f"--bf16 --use-distributed-optimizer --save {tmp_path} --load {tmp_path} --train-iters 3")
    assert len(steps) == 2 + 1
    question = ["--load", str(tmp_path), "--tokenizer-name-or-path", str(data["packed"].parent / "tokenizer")]
    with DEVICE:
        command(["generate", *question, "--prompt", "add 1", "--max-new-tokens", "2"])
    assert any("sampling.py" in str(wait) for wait in DEVICE.waits)


def check_what_a_tile_of_the_loss_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Besides products one kernel a pass, which reads the logits once, and sums in place."""
    monkeypatch.setattr(head, "_PIECE_BYTES", 4 * 64 * 256)
    vocabulary = head._Vocabulary(size=1024, first=0, chunk_size=None, group=dist.group.WORLD)
    with DEVICE:
        hidden, weight, buffer = (torch.empty(size, 32, device="cuda") for size in (64, 1024, 1024))
        hidden, weight = hidden.bfloat16(), weight.bfloat16()
        labels, weights = torch.empty(64, dtype=torch.int64, device="cuda"), torch.empty(64, device="cuda")
        DEVICE.launches.clear()
        head._gradients(hidden, weight, labels, weights, weights, vocabulary, buffer)
        found = [launch.name for launch in DEVICE.launches]
    small = {"sub", "ge", "lt", "bitwise_and", "clamp", "mul", "neg"}  # of the labels
    large = [name for name in found if name not in small]
    logits, sums = ["mm", "_gradient"], ["addmm", "addmm"]  # of the hidden states' gradient and the weight's
    first, last = [*logits, "zeros_like", *sums], [*logits, "addmm", "copy_", "addmm"]
    assert large == [*first, *[*logits, *sums] * 2, *last], found


def check_that_the_mask_of_flex_attention_is_made_without_a_wait() -> None:
    DEVICE.waits.clear()
    with DEVICE:
        mask = flex._mask((0, 100, 130, 512), torch.device("cuda", 0))
    assert mask.q_indices.device.type == "cuda" and mask.kv_indices.shape == (1, 1, 4, 4) and not DEVICE.waits


def check_that_a_tensor_of_the_host_is_refused() -> None:
    with (
        DEVICE,
        pytest.raises(RuntimeError, match=r"of the host, among tensors of the device: \[torch.Size\(\[3\]\)\]"),
    ):
        torch.ones(3, device="cuda") + torch.ones(3)


def check_that_waits_are_noted() -> None:
    """Of what is read, and of what goes there from memory that is not pinned, or patiently."""
    with DEVICE:
        there = torch.ones(3, device="cuda")
        DEVICE.waits.clear()
        assert there.tolist() == [1.0] * 3 and there.sum().item() == 1.0 and bool(there[0] > 0)
        pinned = torch.ones(3).pin_memory()
        pinned.to("cuda", non_blocking=True)
        pinned.to("cuda")
        torch.ones(3).to("cuda", non_blocking=True)
        torch.cuda.synchronize()
    said = ["3 numbers are read", "a number is read", "a number is read"]
    said += ["12 bytes of memory go to the device", "12 bytes of pageable memory go to the device", "synchronize"]
    assert [wait.what for wait in DEVICE.waits] == said
