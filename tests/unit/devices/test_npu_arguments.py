"""What torch_npu's operators get by keyword: what is declared, and what their first versions for torch 2.1 knew already."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from mindspeed_ift.devices.kernels import npu

FIRST_KNOWN = {
    "npu_fusion_attention": "head_num input_layout pse padding_mask atten_mask scale keep_prob pre_tockens next_tockens "
    "inner_precise prefix actual_seq_qlen actual_seq_kvlen sparse_mode gen_mask_parallel sync",
    "npu_fusion_attention_grad": "head_num input_layout pse padding_mask atten_mask softmax_max softmax_sum softmax_in "
    "attention_in scale_value keep_prob pre_tockens next_tockens inner_precise seed offset numels prefix actual_seq_qlen "
    "actual_seq_kvlen sparse_mode gen_mask_parallel sync",
    "npu_rms_norm": "epsilon",
    "npu_swiglu": "dim",
    "npu_rotary_mul": "",
    # Not with the very first of these: group_type came with 7.0, and without it plain torch serves.
    "npu_grouped_matmul": "bias scale offset antiquant_scale antiquant_offset per_token_scale group_list activation_input "
    "activation_quant_scale activation_quant_offset split_item group_type group_list_type act_type output_dtype",
    "npu_moe_token_permute": "num_out_tokens padded_mode",
    "npu_moe_token_unpermute": "probs padded_mode restore_shape",
}
"""Operator -> arguments besides tensors that go by position; from the tables of functions of op-plugin 6.0, 7.0 and 7.2."""


def given() -> dict[str, set[str]]:
    """Operator -> keywords that the module's calls give it."""
    found: dict[str, set[str]] = defaultdict(set)
    for node in ast.walk(ast.parse(Path(npu.__file__).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = node.func.value
        if isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "_npu":
            for keyword in node.keywords:
                of_mask = {"atten_mask", "sparse_mode"}  # what `_mask` makes
                found[node.func.attr] |= {keyword.arg} if keyword.arg else of_mask
            found[node.func.attr] |= set()
    return dict(found)


def test_only_declared_arguments_are_given() -> None:
    declared = {name: set(arguments) for needed in npu.NEEDED.values() for name, arguments in needed.items()}
    assert given() == declared


def test_only_arguments_that_were_there_from_the_first_are_given() -> None:
    assert {name: arguments - set(FIRST_KNOWN[name].split()) for name, arguments in given().items()} == {
        name: set() for name in FIRST_KNOWN
    }
