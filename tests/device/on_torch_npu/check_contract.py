"""Wrong calls are refused: by the real schema where it is a name, else by the contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mindspeed_ift.devices.kernels import npu
from tests.device.contract import ContractError

TRIANGLE = npu._triangle(torch.device("cpu"))
TOKENS = torch.randn(6, 4, 8), torch.randn(6, 2, 8), torch.randn(6, 2, 8)
CAUSAL = {"atten_mask": TRIANGLE, "sparse_mode": 3}
ENDS = {"actual_seq_qlen": [2, 6], "actual_seq_kvlen": [2, 6]}
RIGHT = {"head_num": 4, "input_layout": "TND", "scale": 0.35, **ENDS, **CAUSAL}


def attend(*tensors: Tensor, **changes: Any) -> Tensor:
    import torch_npu

    return torch_npu.npu_fusion_attention(*(tensors or TOKENS), **(RIGHT | changes))[0]


def check_that_the_right_call_is_taken() -> None:
    assert attend().shape == (6, 4, 8)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"input_layout": "TNB"}, "none of"),
        ({"input_layout": "BSND"}, "takes 4 dimensions"),
        ({"input_layout": "SBH", "head_num": 3}, "head_num does not divide"),
        ({"head_num": 2}, "head_num 2 is not the number of query heads, 4"),
        ({"actual_seq_qlen": [0, 2, 6], "actual_seq_kvlen": [0, 2, 6]}, "without a leading 0"),
        ({"actual_seq_qlen": [2, 5]}, "ends at 5, but there are 6"),
        ({"actual_seq_kvlen": [6]}, "differ in length"),
        ({"actual_seq_qlen": [4, 2, 6], "actual_seq_kvlen": [4, 2, 6]}, "must not fall"),
        ({"actual_seq_qlen": None}, "TND takes actual_seq_qlen"),
        ({"actual_seq_qlen": [1] * 1024 + [6], "actual_seq_kvlen": [1] * 1024 + [6]}, "1 to 1024 are taken"),
        ({"actual_seq_qlen": [3, 6]}, "fewer keys than queries"),
        ({"atten_mask": None}, "has no effect"),
        ({"atten_mask": ~TRIANGLE}, r"True \(masked\) above the diagonal"),
        ({"atten_mask": TRIANGLE[:1024, :1024]}, "2048 x 2048"),
        ({"atten_mask": TRIANGLE.float()}, "bool or uint8"),
        ({"sparse_mode": 0, "atten_mask": torch.ones(6, 6, dtype=torch.bool)}, "hides all keys"),
        ({"sparse_mode": 5}, "no sparse_mode 5 here"),
        ({"softmax_layout": "TND"}, "before 7.2|Unknown keyword argument 'softmax_layout'"),  # 2.6.0 does not know it
        ({"keep_prob": 0.9}, "no dropout"),
    ],
)
def check_that_a_wrong_argument_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ContractError, RuntimeError), match=sentence):
        attend(**changes)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ((TOKENS[0], TOKENS[1].bfloat16(), TOKENS[2]), "differ in dtype"),
        (tuple(tensor.double() for tensor in TOKENS), "float64 is none of"),
        ((TOKENS[0], TOKENS[1], TOKENS[2][..., :4]), "differ in shape"),
        ((TOKENS[0], *[torch.randn(6, 3, 8)] * 2), "no multiple of 3 key heads"),
        ((TOKENS[0], *[torch.randn(6, 2, 4)] * 2), "differ in head size"),
        (tuple(torch.randn(6, heads, 800) for heads in (4, 2, 2)), "heads of 800 channels"),
    ],
)
def check_that_wrong_tensors_are_refused(tensors: tuple[Tensor, ...], sentence: str) -> None:
    with pytest.raises(ContractError, match=sentence):
        attend(*tensors)


@pytest.mark.parametrize("name", ["actual_seq_len", "layout", "next_tokens"])
def check_that_a_misspelt_argument_is_refused(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"Unknown keyword argument '{name}'"):
        attend(**{name: 1})


def check_that_a_gradient_needs_its_softmax() -> None:
    import torch_npu

    right = RIGHT | {"softmax_max": torch.zeros(6, 4, 8), "softmax_sum": torch.ones(6, 4, 8), "scale_value": 0.35}
    right = {name: value for name, value in right.items() if name != "scale"} | {"attention_in": TOKENS[0]}
    assert torch_npu.npu_fusion_attention_grad(*TOKENS, TOKENS[0], **right)[0].shape == (6, 4, 8)
    wrong = {
        "softmax_max": (torch.zeros(4, 6, 8), "has the shape"),
        "softmax_sum": (torch.ones(6, 4, 8).half(), "must be fp32"),
        "attention_in": (TOKENS[0].bfloat16(), "not like the query"),
    }
    for name, (value, sentence) in wrong.items():
        with pytest.raises(ContractError, match=sentence):
            torch_npu.npu_fusion_attention_grad(*TOKENS, TOKENS[0], **(right | {name: value}))
    uneven = torch.rand(6, 4, 8)
    with pytest.raises(ContractError, match="last eight numbers"):
        torch_npu.npu_fusion_attention_grad(*TOKENS, TOKENS[0], **(right | {"softmax_max": uneven}))
