"""Files with slow tests first, so that no process is left with a long one when the others are done."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the order otherwise."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
