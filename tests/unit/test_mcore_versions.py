"""What stands in for what an older Megatron-core lacks, on the installed one; ci/compatibility.py runs the older ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from mindspeed_ift import mcore, mcore_versions
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import LayoutFlags
from mindspeed_ift.mcore import MLP
from mindspeed_ift.model import build
from mindspeed_ift.model.build import ModelOptions, Qwen3Model, build_model
from mindspeed_ift.model.experts import GroupedExperts
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.parallel.pipeline import communication
from mindspeed_ift.training.optimizer import wrap
from tests.tiny_model import tiny_experts, tiny_model, world_of_one


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    """A world of one rank."""
    with world_of_one() as started:
        yield started


def test_what_it_cannot_do_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcore_versions, "_COUNTS_PADS", True)
    monkeypatch.setattr(mcore_versions, "_CONFIG", {"pipeline_model_parallel_layout"})
    assert mcore.unable(balance=True, stage_sizes=[1, 3]) is None
    monkeypatch.setattr(mcore_versions, "_COUNTS_PADS", False)
    monkeypatch.setattr(mcore_versions, "_CONFIG", set())
    assert mcore.unable(balance=False, stage_sizes=[2, 2]) is None
    told = mcore.unable(balance=True, stage_sizes=[2])
    assert told is not None and told.startswith("--moe-aux-loss-coeff needs megatron-core 0.16") and "\n" not in told
    told = mcore.unable(balance=False, stage_sizes=[1, 3])
    assert told is not None and told.startswith("pipeline stages of 1, 3 layers need megatron-core 0.13")
    for knows in (True, False):
        monkeypatch.setattr(mcore_versions, "_KNOWS_CHUNKS", knows)
        told = mcore.unable(tied_and_sharded=True)
        assert told is None if knows else told is not None and told.startswith("--use-distributed-optimizer with")


def test_a_shared_weight_whose_optimizer_is_distributed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcore_versions, "_KNOWS_CHUNKS", False)
    stage = SimpleNamespace(
        config=SimpleNamespace(pipeline_model_parallel_size=2), architecture=SimpleNamespace(tied=True)
    )
    with pytest.raises(UserError, match="^--use-distributed-optimizer with pipeline stages"):
        wrap([stage], LayoutFlags(use_distributed_optimizer=True))  # type: ignore[list-item]


def test_a_model_that_it_cannot_do_is_not_built(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(build, "unable", lambda **about: asked.append(about) or "no")
    with pytest.raises(UserError, match="^no$"):
        tiny_model(groups)
    with pytest.raises(UserError):
        build_model(tiny_experts(), ModelOptions(padded_vocab=32, aux_loss_coeff=0.1), groups)
    assert asked == [{"balance": False, "stage_sizes": [2]}, {"balance": True, "stage_sizes": [2]}]


def test_groups_are_those_that_a_newer_megatron_hands_out(groups: Groups) -> None:
    older = mcore_versions._Groups.use_mpu_process_groups()
    expected = {field.name: getattr(groups.collection, field.name) for field in dataclasses.fields(older)}
    assert {field.name: getattr(older, field.name) for field in dataclasses.fields(older)} == expected


def test_a_part_of_a_spec_has_the_groups_from_megatron_or_from_here(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcore_versions, "_GIVES_GROUPS", True)
    assert mcore.part(GroupedExperts, lora=1).params == {"lora": 1}
    monkeypatch.setattr(mcore_versions, "_GIVES_GROUPS", False)
    part = mcore.part(GroupedExperts, lora=1)
    assert part.module is GroupedExperts and part.params["lora"] == 1
    assert part.params["pg_collection"].tp is groups.collection.tp


def test_the_activation_of_the_spec_is_that_of_the_block(groups: Groups) -> None:
    """As where the spec of Megatron's own block has one."""
    block = tiny_model(groups).decoder.layers[0].mlp
    kind = type("SwiGLU", (torch.nn.Module,), {"__init__": lambda self, config: torch.nn.Module.__init__(self)})
    kind.forward = lambda self, both: block.activation_func(both)
    submodules = SimpleNamespace(
        linear_fc1=mcore.ColumnParallelLinear, linear_fc2=mcore.RowParallelLinear, activation_func=kind
    )
    older = mcore_versions._ActivatedMLP(block.config, submodules, tp_group=groups.collection.tp)
    older.load_state_dict(block.state_dict())
    hidden = torch.randn(3, 2, block.config.hidden_size)
    assert isinstance(older, MLP) and isinstance(older.activation_func, kind)
    assert torch.equal(older(hidden)[0], block(hidden)[0])


def test_fields_that_a_version_does_not_read_may_be_given() -> None:
    @dataclasses.dataclass
    class Config:
        known: int = 1

    assert mcore_versions._with_fields(Config, "known") is Config
    wider = mcore_versions._with_fields(Config, "known", "later")
    made = wider(known=2, later=3)
    assert isinstance(made, Config) and (made.known, made.later, wider().later) == (2, 3, None)


def test_arguments_that_a_version_does_not_take_are_left_out() -> None:
    assert mcore_versions._without(lambda one, two=0: (one, two), "group")(1, two=2, group=3) == (1, 2)


@pytest.mark.parametrize("hook", [True, False], ids=["a hook for the head", "no hook"])
def test_a_model_without_pads_and_hook_gives_the_same(
    groups: Groups, monkeypatch: pytest.MonkeyPatch, hook: bool
) -> None:
    tokens = torch.arange(12).view(2, 6)
    positions = torch.arange(6).expand(2, 6)
    labels = {"labels": tokens + 1, "loss_mask": torch.ones(2, 6)}
    metadata = {"non_homogeneous_layers": True, "dp_cp_group": groups.collection.dp_cp}

    def run(weights: dict | None = None) -> tuple:
        model = tiny_model(groups)
        model.load_state_dict(weights or model.state_dict())
        found = model(tokens, positions, None), model(tokens, positions, None, **labels)
        assert model.post_process and model.pg_collection is groups.collection
        return model, *found, model.sharded_state_dict(metadata=metadata).keys()

    model, *expected = run()
    bases = Qwen3Model.__bases__
    try:
        Qwen3Model.__bases__ = (mcore_versions._OlderGPTModel,)
        if not hook:
            monkeypatch.delattr(mcore_versions._GPTModel, "_postprocess")
        older, *found = run(model.state_dict())
        assert isinstance(older, mcore_versions._OlderGPTModel)
    finally:
        Qwen3Model.__bases__ = bases
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1]) and found[2] == expected[2]


def test_layers_are_counted_for_the_chunk(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(mcore.parallel_state, "set_virtual_pipeline_model_parallel_rank", told.append)
    for knows, chunk in ((True, 1), (False, None), (False, 1)):
        monkeypatch.setattr(mcore_versions, "_KNOWS_CHUNKS", knows)
        mcore_versions._count_layers(chunk)
    assert told == [1]


def test_a_pipeline_that_takes_no_communicator_gets_none(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = dataclasses.replace(groups.layout, pipeline=2)
    two = dataclasses.replace(groups, layout=layout)
    config = SimpleNamespace(variable_seq_lengths=True, hidden_size=8, microbatch_group_size_per_vp_stage=1)
    monkeypatch.setattr("mindspeed_ift.parallel.pipeline.TAKES_COMMUNICATOR", False)
    assert communication(config, two, [(1, 2)]) == {}
