"""What cannot be asked of packing a dataset anew."""

from __future__ import annotations

import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.repack import RepackConfig


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--seq-length 64", "--data-path is missing"),
        ("--data-path p --seq-length 1", "--seq-length 1 is too small; give at least 2"),
        ("--data-path p --max-segments 1", "--max-segments 1 is too small; give at least 2"),
        ("--data-path p --pad-to-multiple-of 0", "--pad-to-multiple-of 0 is too small"),
        ("--data-path p --seed -1", "--seed -1 is too small"),
        ("--data-path p --seq-length 100 --pad-to-multiple-of 16", "no multiple of --pad-to-multiple-of 16; give 112"),
    ],
)
def test_what_cannot_be_is_refused(flags: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(RepackConfig, flags.split(), program="test").check()
    assert expected in str(caught.value)


def test_what_can_be_is_taken() -> None:
    parse(RepackConfig, "--data-path p --seq-length 112 --pad-to-multiple-of 16".split(), program="test").check()
