"""Tables in docs/devices.md: of operators, what training called, with which layouts and dtypes, and the limits kept."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tests.device import contract

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "docs/devices.md", ROOT / "docs/devices.zh.md"]
MARK = "operators: written by tests/device/test_npu_training.py"

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


def table_of(calls: Iterable[tuple[str, str, str]]) -> str:
    """The table, by the calls that were made."""
    rows = []
    for operator in LIMITS:
        mine = [(layout, dtypes) for name, layout, dtypes in sorted(calls) if name == operator]
        layouts, dtypes = ("; ".join(dict.fromkeys(column)) for column in zip(*mine)) if mine else ("not called", "")
        rows.append(f"| `{operator}` | {layouts} | {dtypes} | {LIMITS[operator]} |")
    assert not {name for name, *_ in calls} - set(LIMITS)
    return "\n".join(["| operator | layouts | dtypes | limits |", "|---|---|---|---|", *rows])


def documents_without(mark: str, table: str) -> list[str]:
    """Documents in which another table stands under a mark; with ``REFRESH_OPERATOR_TABLE`` set, it is written instead."""
    others = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        start = text.index(f"<!-- {mark} -->") + len(f"<!-- {mark} -->")
        end = text.index("<!-- end", start)
        if text[start:end].strip() == table:
            continue
        if os.environ.get("REFRESH_OPERATOR_TABLE"):
            path.write_text(f"{text[:start]}\n{table}\n{text[end:]}", encoding="utf-8")
        else:
            others.append(path.name)
    return others
