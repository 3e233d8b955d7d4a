"""Questions of a file: one a line, as JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_ift.cli.generate import read_questions
from mindspeed_ift.config.errors import UserError


def test_a_line_is_a_question_and_keeps_its_other_fields(tmp_path: Path) -> None:
    """Also with a separator of lines that is none of JSON's, and with a blank line at the end."""
    (tmp_path / "q").write_text(
        '\ufeff{"prompt": "a\u2028b", "id": 7}\n{"prompt": "", "system": "s"}\r\n\n', encoding="utf-8"
    )
    assert read_questions(tmp_path / "q") == [{"prompt": "a\u2028b", "id": 7}, {"prompt": "", "system": "s"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "a"}\n{"prompt": 3}\n', 'q:2: not a JSON object with "prompt", and "system" if any, as text'),
        (b'{"prompt": "a", "system": null}\n', "q:1: not a JSON object"),
        (b'["prompt"]', "q:1: not a JSON object"),
        (b'{"prompt": "a"', "q:1: not a JSON object"),
        (b'{"prompt": "\xff"}', "q is not UTF-8 text; convert it first"),
    ],
)
def test_what_is_no_question_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "q").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_questions(tmp_path / "q")
    assert message in str(error.value)
