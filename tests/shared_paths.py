"""Where the reference material lies, for the parity tests that read it; everything else does without."""

from __future__ import annotations

from pathlib import Path

import pytest

_CANDIDATE = Path(__file__).resolve().parents[1].parent / "shared"

SHARED: Path | None = _CANDIDATE if (_CANDIDATE / "golden").is_dir() else None
"""The folder ``shared`` beside the checkout (goldens, the real Qwen3 tokenizer), or None."""

needs_shared = pytest.mark.skipif(SHARED is None, reason="reference goldens (../shared) are not beside the checkout")
