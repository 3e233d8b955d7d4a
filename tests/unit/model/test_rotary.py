"""Turns from position ids: the formula, and Hugging Face's."""

from __future__ import annotations

import torch
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from mindspeed_ift.model.rotary import PositionRotary

POSITIONS = torch.tensor([[0, 1, 2, 0, 1], [5, 700, 3, 40000, 1]])


def test_each_pair_of_channels_turns_at_its_own_speed() -> None:
    rotary = PositionRotary(head_size=6, base=100.0)
    rotary.set_positions(POSITIONS)
    turns = rotary()
    assert turns.shape == (2, 5, 2, 1, 6) and turns.dtype is torch.float32
    for row in range(2):
        for place in range(5):
            expected = [float(POSITIONS[row, place]) / 100.0 ** (2 * pair / 6) for pair in range(3)] * 2
            slack = 1e-6 + 1e-7 * max(expected)  # the angle is rounded to fp32 before its cosine is taken
            for found, function in zip(turns, (torch.cos, torch.sin)):
                torch.testing.assert_close(found[place, row, 0], function(torch.tensor(expected)), rtol=0, atol=slack)


def test_the_turns_are_those_of_hugging_face() -> None:
    config = Qwen3Config(head_dim=16, hidden_size=64, num_attention_heads=4, rope_theta=1e6)
    cosine, sine = Qwen3RotaryEmbedding(config)(torch.zeros(1), POSITIONS)
    rotary = PositionRotary(head_size=16, base=1e6)
    rotary.set_positions(POSITIONS)
    found = rotary()[:, :, :, 0].transpose(1, 2)
    torch.testing.assert_close(found[0], cosine, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[1], sine, atol=1e-6, rtol=1e-5)


def test_the_last_positions_count() -> None:
    rotary = PositionRotary(head_size=4, base=10.0)
    rotary.set_positions(POSITIONS)
    rotary.set_positions(POSITIONS[:1, :2])
    assert rotary().shape == (2, 2, 1, 1, 4) and rotary.get_rotary_seq_len() == 0
