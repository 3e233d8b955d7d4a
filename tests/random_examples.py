"""How many random examples a test takes; they are the same in every run, ``HYPOTHESIS_SEARCH=N`` draws N times as many
new ones."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings


def some(examples: int) -> settings:
    """Settings of a test with that many examples."""
    search = int(os.environ.get("HYPOTHESIS_SEARCH", "0"))
    return settings(
        max_examples=examples * (search or 1),
        deadline=None,
        derandomize=not search,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
