"""Checks packing in the layout of a training command line."""

from __future__ import annotations

from mindspeed_ift.cli.verify_packing import main as verify_packing


def run_line(words: list[str]) -> None:
    """``verify-packing`` with these words, which must find nothing."""
    assert verify_packing(words) == 0
