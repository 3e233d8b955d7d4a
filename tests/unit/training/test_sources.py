"""Where a run starts from: weights, adapters, training to continue; and what does not go together."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.adapters import describe_adapters
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.lora import LoraFlags
from mindspeed_ift.config.tuning import TuneConfig
from mindspeed_ift.model.build import ModelOptions, build_model
from mindspeed_ift.training.sources import Sources, find_sources
from mindspeed_ift.training.tune import _load_weights
from tests.megatron_files import write_as_mindspeed_llm
from tests.tiny_model import world_of_one
from tests.training_runs import make_hugging_face_model

LORA = "--lora-target-modules linear_qkv linear_fc2"


def checkpoint(folder: Path, lora: LoraFlags | None = None) -> Path:
    """A checkpoint as far as its manifest; returns its ``iter_`` folder."""
    inner = folder / "iter_0000007"
    inner.mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("7\n", encoding="utf-8")
    manifest = dict.fromkeys(megatron._MANIFEST_KEYS) | {"lora": describe_adapters(lora)}
    manifest["architecture"] = asdict(Architecture.from_preset("qwen3-0.6b"))
    (inner / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return inner


def sources(flags: str) -> Sources:
    return find_sources(parse(TuneConfig, flags.split(), program="test"))


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, Path]:
    """Checkpoints: without adapters, with adapters and weights, with adapters alone."""
    lora = LoraFlags(("linear_fc2", "linear_qkv"))
    alone = LoraFlags(("linear_fc2", "linear_qkv"), lora_ckpt_filter=True)
    kinds = {"plain": None, "whole": lora, "alone": alone}
    return {name: checkpoint(tmp_path / name, flags) for name, flags in kinds.items()}


def test_without_adapters(kept: dict[str, Path]) -> None:
    plain = kept["plain"]
    assert sources("") == Sources()
    assert sources(f"--load {plain.parent}") == Sources(None, plain, None, plain)
    assert sources(f"--load {plain.parent} --finetune") == Sources(None, plain, None, None)
    assert sources("--load hf --enable-hf2mg-convert") == Sources(Path("hf"))
    with pytest.raises(UserError, match="was trained with adapters; give its --lora-target-modules, or merge them"):
        sources(f"--load {kept['whole'].parent}")


def test_with_adapters(kept: dict[str, Path], tmp_path: Path) -> None:
    """Fresh ones on any weights; those of a checkpoint with its training; those alone need the weights."""
    plain, whole, alone = kept["plain"], kept["whole"], kept["alone"]
    assert sources(f"{LORA} --load hf --enable-hf2mg-convert") == Sources(Path("hf"))
    assert sources(f"{LORA} --load {plain.parent}") == Sources(None, plain)
    assert sources(f"{LORA} --load {whole.parent}") == Sources(None, whole, whole, whole)
    assert sources(f"{LORA} --lora-load {whole.parent}") == Sources(None, whole, whole, whole)
    of_both = f"{LORA} --load {plain.parent} --lora-load {alone.parent}"
    assert sources(of_both) == Sources(None, plain, alone, alone)
    assert sources(f"{of_both} --finetune") == Sources(None, plain, alone, None)
    first = f"{LORA} --load {plain.parent} --lora-load {tmp_path / 'new'} --save {tmp_path / 'new'}"
    assert sources(first) == Sources(None, plain), "the first start of a script that resumes what it saves"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (f"{LORA} --lora-load {{alone}}", "holds adapters only; give --load with the weights"),
        (f"{LORA} --load {{alone}}", "holds adapters only; give --load with the weights"),
        (f"{LORA} --lora-load {{plain}}", "has no adapters; give the --save folder of a run with adapters"),
        (f"{LORA} --lora-r 8 --load {{whole}}", "was trained with --lora-r 16, not 8"),
        (f"{LORA} --use-dora --load {{whole}}", "was trained with --use-dora False, not True"),
        ("--lora-target-modules linear_qkv --load {whole}", "was trained with --lora-target-modules"),
        (f"{LORA} --lora-ckpt-filter", "--lora-ckpt-filter would save no weights, and --load gives none"),
        (f"{LORA} --lora-load nowhere", "--lora-load nowhere holds no Megatron checkpoint"),
    ],
)
def test_what_does_not_go_together(kept: dict[str, Path], flags: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        sources(flags.format(**{name: path.parent for name, path in kept.items()}))
    assert message in str(caught.value)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    """It is named; what is not continued is not exchanged for other weights."""
    newest = checkpoint(tmp_path)
    older = newest.with_name("iter_0000003")
    shutil.copytree(newest, older)
    (newest / "manifest.json").write_text("{", encoding="utf-8")
    found = sources(f"--load {tmp_path}")
    assert found.weights == found.resume == older
    assert found.notices == (f"notice: {newest / 'manifest.json'} is damaged; going on from iter_0000003",)
    config = parse(TuneConfig, ["--load", str(tmp_path)], program="test")
    with pytest.raises(UserError, match="holds no checkpoint that is whole: .*json is damaged; restore it from a copy"):
        find_sources(config, {older: "its checksum differs"})
    with pytest.raises(UserError, match="manifest.json is damaged"):
        sources(f"--load {tmp_path} --finetune")


def test_of_two_folders_only_the_continued_one_gives_way(tmp_path: Path) -> None:
    lora = LoraFlags(("linear_fc2", "linear_qkv"), lora_ckpt_filter=True)
    plain, adapters = checkpoint(tmp_path / "plain"), checkpoint(tmp_path / "adapters", lora)
    for newest in (plain, adapters):
        shutil.copytree(newest, newest.with_name("iter_0000003"))
    shards = {"files": {"mp_rank_00/x.pt": {"bytes": 1, "sha256": ""}}}
    for newest in (plain, adapters):
        path = newest / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | shards), encoding="utf-8")
    found = sources(f"{LORA} --load {plain.parent} --lora-load {adapters.parent}")
    assert found.weights == plain and found.adapters == found.resume == adapters.with_name("iter_0000003")
    assert len(found.notices) == 1 and f"{adapters / 'mp_rank_00/x.pt'} is missing" in found.notices[0]


def test_weights_of_another_toolkit_begin_a_training_in_any_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hugging_face = make_hugging_face_model(tmp_path / "hf", tied=True, vocab_size=104)
    write_as_mindspeed_llm(hugging_face, tmp_path / "theirs", tensor=2, pipeline=2)
    found = sources(f"--load {tmp_path / 'theirs'}")
    assert found.weights == tmp_path / "theirs/iter_0000001" and found.resume is None
    architecture = Architecture.from_hugging_face(hugging_face)
    with world_of_one() as groups:
        loaded, expected = (build_model(architecture, ModelOptions(padded_vocab=104), groups) for _ in "ab")
        for one, stage in ((found, loaded), (Sources(hugging_face=hugging_face), expected)):
            plan = SimpleNamespace(sources=one, architecture=architecture, config=SimpleNamespace(lora=LoraFlags()))
            _load_weights(plan, [stage], groups)  # type: ignore[arg-type]
    assert "theirs/iter_0000001 (of another toolkit, whose training is not continued)" in capsys.readouterr().out
    assert all(map(torch.equal, loaded.parameters(), expected.parameters()))
