"""Which documents are shown: by number, by range, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.show import ShowConfig


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"start": 7}, [7, 8, 9]),
        ({"start": 7, "count": 2}, [7, 8]),
        ({"documents": "3"}, [3]),
        ({"documents": "3, 9,1-4,"}, [3, 9, 1, 2, 3, 4]),
    ],
)
def test_documents_are_chosen(flags: dict, expected: list[int]) -> None:
    config = ShowConfig(data_path="data", **flags)
    config.check()
    assert config.chosen(10) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"data_path": " "}, "no dataset is named"),
        ({"start": -1}, "--start -1 must not be negative"),
        ({"count": 0}, "--count 0 is too small"),
        ({"documents": "3-"}, "'3-' is no number and no range"),
        ({"documents": "4-2"}, "'4-2' is no number and no range"),
        ({"documents": "first"}, "'first' is no number"),
        ({"html": Path("none/page.html")}, "--html none/page.html is not a file in a folder that exists"),
        ({"html": Path(".")}, "is not a file"),
        ({"html": Path(__file__)}, "is there and is no page; give a name that ends in .html"),
    ],
)
def test_what_cannot_be_shown_is_refused(flags: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ShowConfig(**{"data_path": "data", **flags}).check()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"start": 10}, "--start: there is no document 10; the dataset has 0 to 9"),
        ({"documents": "3,10"}, "--documents: there is no document 10"),
        ({"documents": "8-12"}, "--documents: there is no document 12"),
    ],
)
def test_what_is_not_there_is_named(flags: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ShowConfig(data_path="data", **flags).chosen(10)
