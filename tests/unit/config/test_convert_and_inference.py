"""Flags of conversion and of generation that cannot be honoured."""

from __future__ import annotations

import pytest

from mindspeed_ift.cli import convert, generate
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.inference import GenerateConfig

FOLDERS = "--load-dir a --save-dir b"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", "--load-dir and --save-dir are both needed"),
        ("--load-dir a", "--load-dir and --save-dir are both needed"),
        ("--load-dir a --save-dir a", "--save-dir a is also --load-dir"),
        (f"{FOLDERS} --load-model-type hf", "--load-model-type hf --save-model-type hf"),
        (f"{FOLDERS} --target-tensor-parallel-size 0", "--target-tensor-parallel-size 0 must be at least 1"),
        (f"{FOLDERS} --target-pipeline-parallel-size -2", "--target-pipeline-parallel-size -2 must be at least 1"),
        (f"{FOLDERS} --save-lora-to-hf --load-model-type hf", "--save-lora-to-hf makes a PEFT folder of adapters"),
        (f"{FOLDERS} --make-vocab-size-divisible-by 0", "--make-vocab-size-divisible-by 0 must be at least 1"),
    ],
)
def test_a_conversion_that_cannot_be_is_refused(line: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(ConvertConfig, line.split(), program="test").check()
    assert expected in str(caught.value)
    with pytest.raises(UserError):
        convert.main([*line.split(), "--dry-run"])


def test_a_conversion_that_can_be_is_taken() -> None:
    parse(ConvertConfig, FOLDERS.split(), program="test").check()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", "--load is missing"),
        ("--load x --max-new-tokens 0", "--max-new-tokens 0 must be at least 1"),
        ("--load x --micro-batch-size 0", "--micro-batch-size 0 must be at least 1"),
        ("--load x --temperature -0.1", "--temperature -0.1 must not be negative"),
        ("--load x --top-k -1", "--top-k -1 must not be negative"),
        ("--load x --seed -1", "--seed -1 must not be negative"),
        ("--load x --top-p 0", "--top-p 0.0 must be over 0 and at most 1"),
        ("--load x --repetition-penalty 0", "--repetition-penalty 0.0 must be over 0"),
        ("--load x --tensor-model-parallel-size 0", "--tensor-model-parallel-size 0 must be at least 1"),
        ("--load x --chat --prompt hello", "--chat asks on the terminal; leave out --prompt"),
        ("--load x --top-p 1.1", "--top-p 1.1 must be over 0 and at most 1"),
    ],
)
def test_answers_that_cannot_be_drawn_are_refused(line: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(GenerateConfig, line.split(), program="test").check()
    assert expected in str(caught.value)
    with pytest.raises(UserError):
        generate.main([*line.split(), "--dry-run"])


def test_answers_that_can_be_drawn_are_taken() -> None:
    parse(GenerateConfig, "--load x --temperature 0 --top-k 0 --top-p 1".split(), program="test").check()
