"""Parts of parameters: where they lie in the whole tensors, of which Megatron reads the files too."""

from __future__ import annotations

from pathlib import Path

import torch

from mindspeed_ift.checkpoint.sharded import Reader
from mindspeed_ift.training.sharding import Part
from tests.tiny_model import world_of_one
from tests.unit.training.test_state import Run


def test_a_run_of_a_part_is_a_view_of_its_elements() -> None:
    """The second of two parts of a parameter [4, 3]: two of the rows that another tensor rank's lie before."""
    part = Part("w", (8, 3), (6, 0), (2, 3), start=6, replica=(0, 0, 0), padded=False)
    values = torch.arange(20.0, 28.0)  # elements 3 to 11
    found = list(part.run(values, 3, 11, "of."))
    assert [(one.key, one.shape, one.offset) for one in found] == [("of.w", (8, 3), (6, 0)), ("of.w", (8, 3), (7, 0))]
    assert [one.data.tolist() for one in found] == [[[23.0, 24.0, 25.0]], [[26.0, 27.0]]]
    found[0].data.zero_()
    assert values[3:6].tolist() == [0, 0, 0]
    assert not list(part.run(values, 12, 20)), "what lies behind it"


def test_megatron_reads_what_is_saved(tmp_path: Path) -> None:
    with world_of_one() as groups:
        first, second = Run(groups), Run(groups)
        first.step(1)
        first.save(tmp_path)
        from megatron.core import dist_checkpointing

        folder = tmp_path / "iter_0000003"
        wanted = second.stage.sharded_state_dict(metadata={"non_homogeneous_layers": True})
        wanted = {name: value for name, value in wanted.items() if not name.endswith("_extra_state")}  # always empty
        loaded = dist_checkpointing.load({"model": wanted}, str(folder))
        assert loaded["iteration"] == 3
        for name, value in first.stage.named_parameters():
            assert torch.equal(loaded["model"][name], value), name
        moment = Reader(folder).tensor("optimizer.state.exp_avg.decoder.layers.1.mlp.linear_fc1.weight")
        parameter = first.stage.decoder.layers[1].mlp.linear_fc1.weight
        inner = first.optimizer.chained_optimizers[0].optimizer
        assert torch.equal(moment, inner.state[parameter]["exp_avg"])
