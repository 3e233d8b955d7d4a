"""Peak memory of output layer and loss, forward and backward, in bf16 on CPU: ours, and the plain cross entropy.

``python benchmarks/head_memory.py`` takes minutes and 8 GB. Sizes are real (32,768 learnt positions, hidden 4,096,
vocabulary 151,936); of ours only the first two tiles of the vocabulary product are computed, since each takes the place
of the one before; the plain one is measured at an eighth and a sixteenth of the positions and continued as a line.

Counted is what lives besides the hidden states, the weight, Megatron's fp32 buffer for the weight's gradient and the
gradient of the hidden states: twice, as the sum of the storages of all tensors that live at once (also those that are not
written yet, which an accelerator would set aside), and as the process's peak resident size.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
from collections.abc import Callable

import torch
from live_tensors import LiveTensors
from torch import Tensor

GIB = 2**30


def main() -> None:
    """Print a line for each case, each measured in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--positions", type=int, default=32_768)
    parser.add_argument("--hidden", type=int, default=4_096)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--case", choices=["ours", "frozen", "plain"])
    sizes = parser.parse_args()
    if sizes.case is not None:
        print(json.dumps(measure(sizes.case, sizes.positions, sizes.hidden, sizes.vocabulary)))
        return
    print(f"{sizes.positions:,} positions, hidden {sizes.hidden:,}, vocabulary {sizes.vocabulary:,}, bf16")
    print(f"{'case':<28}{'tensors, GiB':>14}{'resident, GiB':>15}")
    for case, name in (("ours", "ours"), ("frozen", "ours, weight frozen")):
        show(name, *in_a_process(case, sizes.positions, sizes))
    small, large = (in_a_process("plain", sizes.positions // part, sizes) for part in (16, 8))
    show(f"plain, {sizes.positions // 8:,} positions", *large)
    show("plain, continued", *(less + (more - less) * 15 for less, more in zip(small, large, strict=True)))


def show(name: str, tensors: float, resident: float) -> None:
    """Print one line."""
    print(f"{name:<28}{tensors / GIB:>14.2f}{resident / GIB:>15.2f}", flush=True)


def in_a_process(case: str, positions: int, sizes: argparse.Namespace) -> tuple[float, float]:
    """`measure` in a fresh process, whose peak is that of the case alone."""
    words = ["--case", case, "--positions", positions, "--hidden", sizes.hidden, "--vocabulary", sizes.vocabulary]
    done = subprocess.run([sys.executable, __file__, *map(str, words)], capture_output=True, text=True, check=True)
    tensors, resident = json.loads(done.stdout.splitlines()[-1])
    return tensors, resident


def measure(case: str, positions: int, hidden_size: int, vocabulary: int) -> tuple[int, int]:
    """Bytes at the peak besides inputs, weight and their gradients: by tensors, and resident."""
    loss_of = {"plain": plain_loss}.get(case) or our_loss()
    hidden = torch.randn(positions, 1, hidden_size, dtype=torch.bfloat16).requires_grad_()
    weight = torch.nn.Parameter(torch.randn(vocabulary, hidden_size, dtype=torch.bfloat16) * 0.02)
    weight.requires_grad_(case != "frozen")
    if case == "ours":
        weight.main_grad = torch.zeros_like(weight, dtype=torch.float32).fill_(0.0)
    labels = torch.randint(0, vocabulary, (1, positions))
    before = resident_now()
    with LiveTensors() as live:
        loss_of(hidden, weight, labels, torch.ones(1, positions)).backward()
    assert hidden.grad is not None
    excluded = hidden.grad.nbytes + (weight.grad.nbytes if case == "plain" and weight.grad is not None else 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return live.peak - excluded, peak - before - excluded


def plain_loss(hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Logits of all positions, then torch's cross entropy in fp32."""
    logits = torch.nn.functional.linear(hidden[:, 0], weight).float()
    return torch.nn.functional.cross_entropy(logits, labels[0], reduction="sum")


def our_loss() -> Callable[..., Tensor]:
    """`head.loss_sum` over the first tiles, in a world of one."""
    from mindspeed_ift.config.layout import Layout
    from mindspeed_ift.devices.device import current
    from mindspeed_ift.model import head
    from mindspeed_ift.parallel import groups as process_groups

    groups = process_groups.start(Layout(), current(), seed=1)
    all_tiles = head._tiles
    head._tiles = lambda *sizes: itertools.islice(all_tiles(*sizes), 2)

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        return head.loss_sum(
            hidden,
            weight,
            labels,
            mask,
            vocab_size=weight.shape[0],
            groups=groups.collection,
            sequence_parallel=False,
            chunk_size=None,
        )

    return loss


def resident_now() -> int:
    """Resident size of this process in bytes."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
