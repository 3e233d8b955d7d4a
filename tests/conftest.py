"""Slow tests first, so that no process is left with a long one when the others are done; and a world of one rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mindspeed_ift.parallel.groups import Groups


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the order otherwise."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    """A world of one rank, for all tests of a module."""
    from tests.tiny_model import world_of_one  # only where it is asked for: it imports Megatron-core

    with world_of_one() as started:
        yield started
