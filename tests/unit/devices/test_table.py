"""Which kernels serve, and what the log says of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.devices import device
from mindspeed_ift.devices.kernels import cpu, npu, reference, table
from mindspeed_ift.devices.kernels.probes import PROBED, TOLERANCES, deviations


def fused() -> int:
    return 0


OFFERS = {
    "attention": table.Offer("flash", {"attention": fused}),
    "rms_norm": table.Offer("norm", {"rms_norm": fused}),
}


def test_what_is_offered_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(table.SWITCH, raising=False)
    kernels, notice = table.with_fused({"rms_norm": OFFERS["rms_norm"]})
    assert kernels.rms_norm is fused and kernels.attention is reference.attention
    assert notice.startswith("norm; plain torch for attention, swiglu, ")


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(table.SWITCH, raising=False)
    offer = table.Offer("norm", {"rms_norm": fused}, "there is no npu_rms_norm")
    kernels, notice = table.with_fused({"rms_norm": offer})
    assert kernels == table.PLAIN and "rms_norm (there is no npu_rms_norm)" in notice


@pytest.mark.parametrize("switch", ["rms_norm", " rms_norm, "])
def test_a_switch_asks_for_plain_torch(monkeypatch: pytest.MonkeyPatch, switch: str) -> None:
    monkeypatch.setenv(table.SWITCH, switch)
    kernels, notice = table.with_fused(OFFERS)
    assert kernels.attention is fused and kernels.rms_norm is reference.rms_norm
    assert notice.startswith(f"flash; plain torch for rms_norm ({table.SWITCH}), ")


def test_all_can_be_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(table.SWITCH, "all")
    assert table.with_fused(OFFERS)[0] == table.PLAIN


def test_a_wrong_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(table.SWITCH, "attention,flash")
    with pytest.raises(UserError, match=f"{table.SWITCH}: there are no kernels 'flash'; there are: all, attention, "):
        table.with_fused(OFFERS)


def test_every_function_has_a_switch_and_every_device_a_table() -> None:
    fields = {field.name for field in dataclasses.fields(table.Kernels)}
    grouped = [name for names in table.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(fields)
    assert set(device.KERNELS) == {"npu", "cuda", "cpu"}


def test_the_cpu_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(table.SWITCH, raising=False)
    kernels, notice = device.KERNELS["cpu"](0)
    assert kernels == dataclasses.replace(table.PLAIN, linear=cpu.linear, add_product=cpu.add_product, fused_adamw=True)
    assert notice.startswith("oneDNN linear; fused AdamW; plain torch for attention, ")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    kernels, notice = device.KERNELS["cpu"](0)
    assert kernels.linear is reference.linear and "linear (this torch has no oneDNN)" in notice


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_kernels_of_the_cpu_are_their_twins(dtype: torch.dtype) -> None:
    for group in ("linear", "adamw"):
        for kind in {dtype} & set(PROBED[group]):
            assert max(deviations(device.KERNELS["cpu"](0)[0], group, torch.device("cpu"), kind)) <= TOLERANCES[kind]


@pytest.mark.parametrize("depth", [cpu._DEEP - 1, cpu._DEEP])
@pytest.mark.parametrize("dtypes", [(torch.float32,) * 2, (torch.float32, torch.bfloat16), (torch.bfloat16,) * 2])
def test_products_are_added(depth: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.randn(depth, size, generator=generator).to(dtypes[1]) for size in (6, 4))
    start = torch.randn(6, 4, generator=generator).to(dtypes[0])
    total = start.clone()
    cpu.add_product(total, left, right)
    expected = start.float() + left.float().t() @ right.float()
    assert (total.float() - expected).abs().max() <= TOLERANCES[dtypes[1]] * expected.abs().max()


def test_the_npu_says_what_its_torch_npu_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here there is none, so all is lacking; the real one is asked in tests/device."""
    monkeypatch.delenv(table.SWITCH, raising=False)
    offers = npu.offers()
    assert {group: set(offer.functions) for group, offer in offers.items()} == {
        group: set(names)
        for group, names in table.GROUPS.items()
        if group not in ("linear", "cross_entropy")  # torch serves these
    }
    kernels, notice = table.with_fused(offers)
    assert kernels == table.PLAIN and "attention (this torch_npu has no npu_fusion_attention)" in notice
