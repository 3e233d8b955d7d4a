"""What tests of plans begin with; a module that needs other data defines its own under that name."""

from __future__ import annotations

from tests.planned import data

__all__ = ["data"]
