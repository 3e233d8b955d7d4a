"""The NPU's kernels under the schemas of every torch_npu: each call is one that all of them take, or plain torch serves.

The schemas are those of the wheels (`torch_npu_schemas`), defined in torch's dispatcher for reference mathematics, so no
torch_npu is needed. What the package runs with for torch's own version is tried on the real one (`test_npu_kernels`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from mindspeed_ift.devices.kernels import npu, probes
from mindspeed_ift.devices.kernels.table import with_fused
from tests.device import operators, torch_npu_schemas
from tests.device.operator_table import documents_without

KNOWN = torch_npu_schemas.known()
ALIKE: dict[tuple[str, ...], list[str]] = defaultdict(list)
for _version, _schemas in KNOWN.items():
    ALIKE[tuple(sorted(_schemas.values()))].append(_version)
MARK = "torch_npu: written by tests/device/test_torch_npu_versions.py"
PROBED = {"attention of parts": "attention"} | {group: group for group in npu.NEEDED}
"""Probe -> group whose kernels it runs."""


@dataclass
class Operators:
    """In the place of torch_npu: hands each call on to the dispatcher, and remembers how it was made."""

    defined: Any
    missing: set[str]
    calls: dict[str, list[tuple[tuple[Any, ...], set[str]]]] = field(default_factory=lambda: defaultdict(list))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.calls[name].append((args, set(options)))
            return getattr(self.defined, name)(*args, **options)

        return call


@pytest.fixture(params=list(ALIKE.values()), ids=lambda versions: versions[0])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operators]:
    """Operators with the schemas of a release in the place of those of torch_npu."""
    version = request.param[0]
    namespace = "torch_npu_" + version.replace(".", "_")
    library = torch.library.Library(namespace, "DEF")
    for schema in KNOWN[version].values():
        if schema != torch_npu_schemas.FUSED_ADAMW:
            library.define(schema)
    found = Operators(getattr(torch.ops, namespace), set(torch_npu_schemas.missing(version)) - {"adamw"})
    operators.register(library, found.defined)
    monkeypatch.setattr(torch.ops, "npu", found.defined, raising=False)
    monkeypatch.setattr(npu, "_npu", lambda: found)
    yield found
    library._destroy()


def test_kernels_equal_their_twins_by_calls_that_every_release_takes(installed: Operators) -> None:
    offers = npu.offers()
    assert {group for group in npu.NEEDED if offers[group].missing} == installed.missing
    kernels, _ = with_fused({group: offers[group] for group in npu.NEEDED})
    for probe, group in PROBED.items():
        far = probes.deviations(kernels, probe, torch.device("cpu"), torch.float32)
        assert max(far) <= probes.TOLERANCES[torch.float32], probe
        served = not offers[group].missing
        for name, keywords in npu.NEEDED[group].items():
            calls = installed.calls.get(name, [])
            assert bool(calls) == (served and _is_called(name))
            # Tensors go by position, for their names differ; all else by keyword, and only what the offer asks for.
            assert not any(given - set(keywords) or not all(map(_is_tensors, args)) for args, given in calls)
            assert not calls or set().union(*(given for _, given in calls)) == set(keywords)


def test_the_document_says_what_each_release_serves() -> None:
    """To write the table into docs/devices.md and its twin: ``REFRESH_OPERATOR_TABLE=1`` in the environment."""
    lines = ["| torch_npu | plain torch for |", "|---|---|"]
    said: dict[str, list[str]] = defaultdict(list)
    for version in KNOWN:
        plain = [f"`{group}`: {reason}" for group, reason in torch_npu_schemas.missing(version).items()]
        said["; ".join(plain) or "—"].append(version)
    lines += [f"| {', '.join(versions)} | {plain} |" for plain, versions in said.items()]
    assert not documents_without(MARK, "\n".join(lines)), "run this test with REFRESH_OPERATOR_TABLE=1"


def _is_called(name: str) -> bool:
    """By the kernels themselves: gradients by autograd are the formulas of torch_npu."""
    return name == "npu_fusion_attention_grad" or not name.endswith(("_grad", "_backward"))


def _is_tensors(value: Any) -> bool:
    return all(isinstance(one, Tensor) for one in (value if isinstance(value, list) else [value]))
