"""The table of operators in docs/devices.md: what training called, with which layouts and dtypes, and the limits kept."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tests.device import contract

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "docs/devices.md", ROOT / "docs/devices.zh.md"]
_START, _END = "<!-- operators: written by tests/device/test_npu_training.py -->", "<!-- end of operators -->"

_ATTENTION = (
    f"TND: ends as lists on the host, at most {contract.MOST_SEGMENTS} segments and {contract.MOST_TOKENS} tokens, the "
    f"last end is the number of tokens; mask bool 2048 x 2048, True = hidden; head size at most {contract.LARGEST_HEAD}; "
    f"at most {contract.MOST_HEADS} query heads, a multiple of the key heads; no query without a key"
)
LIMITS = {
    "npu_fusion_attention": _ATTENTION,
    "npu_fusion_attention_grad": "as npu_fusion_attention; maximum and sum fp32, segment by segment",
    "npu_rms_norm": "weight as the last dimension, in the dtype of the input or fp32",
    "npu_rms_norm_backward": "as npu_rms_norm",
    "npu_swiglu": "contiguous, not empty, last dimension even",
    "npu_swiglu_backward": "as npu_swiglu",
    "npu_rotary_mul": "head size even and below 896; less than 1000 rows and heads; all of one dtype",
    "npu_rotary_mul_backward": "as npu_rotary_mul",
    "npu_grouped_matmul": "not empty; ends as an int64 tensor that does not fall; last dimensions below 65536",
    "npu_moe_token_permute": f"not empty; at most {contract.MOST_EXPERTS} experts a token",
    "npu_moe_token_permute_grad": "as npu_moe_token_permute",
    "npu_moe_token_unpermute": "as npu_moe_token_permute; a weight for each copy, else copies are not added",
    "npu_moe_token_unpermute_grad": "as npu_moe_token_unpermute",
}


def refreshed(calls: Iterable[tuple[str, str, str]]) -> dict[Path, str]:
    """Document -> its table as it should be; written if ``REFRESH_OPERATOR_TABLE`` is set."""
    rows = []
    for operator in LIMITS:
        mine = [(layout, dtypes) for name, layout, dtypes in sorted(calls) if name == operator]
        layouts, dtypes = ("; ".join(dict.fromkeys(column)) for column in zip(*mine)) if mine else ("not called", "")
        rows.append(f"| `{operator}` | {layouts} | {dtypes} | {LIMITS[operator]} |")
    assert not {name for name, *_ in calls} - set(LIMITS)
    lines = ["| operator | layouts | dtypes | limits |", "|---|---|---|---|", *rows]
    tables = {path: "\n".join(lines) for path in DOCUMENTS}
    if os.environ.get("REFRESH_OPERATOR_TABLE"):
        for path, text in tables.items():
            before, after = path.read_text(encoding="utf-8").split(table_of_document(path))
            path.write_text(before + text + after, encoding="utf-8")
    return tables


def table_of_document(path: Path) -> str:
    """The table that stands in a document."""
    return path.read_text(encoding="utf-8").split(_START)[1].split(_END)[0].strip()
