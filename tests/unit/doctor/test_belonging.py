"""Dataset, weights and flags: together, apart, damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mindspeed_ift.devices.diagnosis.finding import Finding, read_account
from mindspeed_ift.doctor.belonging import main
from tests.training_runs import make_datasets, make_hugging_face_model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("belonging")
    make_datasets(folder)
    make_hugging_face_model(folder / "model", tied=True, vocab_size=400)
    return folder


def looked(folder: Path, *flags: str) -> dict[str, Finding]:
    account = folder / "account"
    account.unlink(missing_ok=True)
    main([str(account), *map(str, flags)])
    told = read_account(account, "")
    assert told.unfinished is None
    return {one.name: one for one in told.findings}


def flags(folder: Path) -> list[str]:
    model = ["--load", str(folder / "model"), "--enable-hf2mg-convert", "--train-iters", "2"]
    return ["--data-path", str(folder / "single"), "--seq-length", "128", *model]


def test_what_belongs_together(made: Path) -> None:
    found = looked(made, *flags(made))
    assert {one.level for one in found.values()} == {"green"}
    assert "48 documents" in found[f"dataset {made / 'single'}"].found
    assert "samples to train on" in found["plan"].found or "layout" in found["plan"].found
    assert "1 processes" in found["flags, data and weights together"].found


def test_a_run_that_would_not_begin(made: Path) -> None:
    found = looked(made, *flags(made), "--pipeline-model-parallel-size", "2")
    assert found["flags, data and weights together"].level == "red"
    assert found[f"dataset {made / 'single'}"].level == "green"


def test_a_flag_that_there_is_not(made: Path) -> None:
    found = looked(made, "--data-pth", "x")
    assert list(found) == ["flags"] and found["flags"].level == "red" and "--data-path" in found["flags"].found


def test_weights_alone(made: Path) -> None:
    assert list(looked(made, "--load", str(made / "model"))) == ["flags", f"weights {made / 'model'}"]


def test_what_is_damaged(made: Path, tmp_path: Path) -> None:
    for path in (*made.glob("single*"), made / "model" / "config.json"):
        shutil.copy(path, tmp_path)
    ids = tmp_path / "single_packed_input_ids_document.bin"
    ids.write_bytes(ids.read_bytes()[:-4])
    found = looked(tmp_path, "--data-path", str(tmp_path / "single"), "--load", str(tmp_path))
    dataset, weights = found[f"dataset {tmp_path / 'single'}"], found[f"weights {tmp_path}"]
    assert dataset.level == "red" and ids.name in dataset.found and "and 1 more" in dataset.found
    assert "verify-dataset" in dataset.remedy and weights.level == "red"


def test_what_is_not_there(tmp_path: Path) -> None:
    found = looked(tmp_path, "--data-path", str(tmp_path / "none"), "--load", str(tmp_path / "nowhere"))
    levels = {name: one.level for name, one in found.items()}
    assert levels == {
        "flags": "green",
        f"dataset {tmp_path / 'none'}": "red",
        f"weights {tmp_path / 'nowhere'}": "red",
        "flags, data and weights together": "red",
    }
