"""How many malformed records a run takes: few say too little, of many more than a share is too much."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_ift.config.errors import UserError
from tests.preparing import GOOD, kept_and_dropped, lines
from tests.tiny_tokenizer import make_tiny_tokenizer

BROKEN = {"instruction": "x", "output": None}


@pytest.mark.parametrize(("records", "malformed", "fails"), [(99, 20, False), (100, 5, False), (100, 6, True)])
def test_few_records_are_no_share_unless_the_flag_is_given(
    tmp_path: Path, records: int, malformed: int, fails: bool
) -> None:
    """Small files go through as MindSpeed-LLM lets them; of a hundred, more than 5 are too many."""
    content = lines(*[GOOD] * (records - malformed), *[BROKEN] * malformed)
    where = (content, "some.jsonl", make_tiny_tokenizer(tmp_path / "tokenizer"), tmp_path)
    if fails:
        with pytest.raises(UserError, match=f"{malformed} of {records} records are malformed, .* 0.05 allows"):
            kept_and_dropped(*where)
    else:
        assert kept_and_dropped(*where) == (records - malformed, {"'output' is missing or null": malformed})
    with pytest.raises(UserError, match="are malformed, .* 0.01 allows"):
        kept_and_dropped(*where, max_drop_fraction=0.01)
