"""Angles from position ids: the formula, and Hugging Face's."""

from __future__ import annotations

import torch
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from mindspeed_ift.model.rotary import PositionRotary

POSITIONS = torch.tensor([[0, 1, 2, 0, 1], [5, 700, 3, 40000, 1]])


def test_each_pair_of_channels_turns_at_its_own_speed() -> None:
    rotary = PositionRotary(head_size=6, base=100.0)
    rotary.set_positions(POSITIONS)
    angles = rotary()
    assert angles.shape == (5, 2, 1, 6) and angles.dtype is torch.float32
    for row in range(2):
        for place in range(5):
            expected = [float(POSITIONS[row, place]) / 100.0 ** (2 * pair / 6) for pair in range(3)] * 2
            torch.testing.assert_close(angles[place, row, 0], torch.tensor(expected), rtol=1e-6, atol=0)


def test_the_angles_are_those_of_hugging_face() -> None:
    config = Qwen3Config(head_dim=16, hidden_size=64, num_attention_heads=4, rope_theta=1e6)
    cosine, sine = Qwen3RotaryEmbedding(config)(torch.zeros(1), POSITIONS)
    rotary = PositionRotary(head_size=16, base=1e6)
    rotary.set_positions(POSITIONS)
    angles = rotary()[:, :, 0].transpose(0, 1)
    torch.testing.assert_close(angles.cos(), cosine, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(angles.sin(), sine, atol=1e-6, rtol=1e-5)


def test_the_last_positions_count() -> None:
    rotary = PositionRotary(head_size=4, base=10.0)
    rotary.set_positions(POSITIONS)
    rotary.set_positions(POSITIONS[:1, :2])
    assert rotary().shape == (2, 1, 1, 4) and rotary.get_rotary_seq_len() == 0
