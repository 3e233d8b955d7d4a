"""Hugging Face datasets as input: folders of save_to_disk without the library, names and parameters through it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.hub import load_hub_dataset, read_parameters
from mindspeed_ift.data.inputs import find_files
from mindspeed_ift.data.records import read_records

datasets = pytest.importorskip("datasets")

ROWS = [{"instruction": f"ask {number}", "output": {"parts": ["a", None]}} for number in range(7)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def read(spec: str) -> list[dict[str, Any]]:
    return [record for record, _ in read_records(find_files(spec))]


def test_a_saved_dataset_is_read_shard_by_shard(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved", num_shards=3)
    (tmp_path / "saved" / "other.jsonl").write_text("{}\n")
    assert read(str(tmp_path / "saved")) == ROWS
    (tmp_path / "saved" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(UserError, match="is not whole: its state.json names data-00001-of-00003.arrow"):
        read(str(tmp_path / "saved"))


def test_of_saved_splits_train_is_read(tmp_path: Path) -> None:
    train, test = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:2])
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "saved")
    assert read(str(tmp_path / "saved")) == ROWS
    assert read(str(tmp_path / "saved" / "test")) == ROWS[:2]
    datasets.DatasetDict(one=train, two=test).save_to_disk(tmp_path / "other")
    with pytest.raises(UserError, match="holds the splits one, two; name one"):
        read(str(tmp_path / "other"))


def test_a_list_of_files_that_is_no_json(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(UserError, match="state.json cannot be read"):
        find_files(str(tmp_path / "saved"))


@pytest.mark.parametrize("streaming", [False, True])
def test_parameters_of_load_dataset(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    parameters = {"path": "json", "data_files": str(tmp_path / "rows.jsonl"), "streaming": streaming}
    (tmp_path / "parameters.json").write_text(json.dumps(parameters))
    for given in (json.dumps(parameters), str(tmp_path / "parameters.json")):
        dataset = load_hub_dataset(read_parameters(given), str(tmp_path / "own"))
        found = list(read_records([dataset]))
        assert [record for record, _ in found] == ROWS
        assert str(found[2][1]) == "json:3"


def test_a_name_is_loaded_by_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def load(**parameters: Any) -> Any:
        asked.update(parameters)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read("somebody/rows") == ROWS
    assert asked == {"path": "somebody/rows", "split": "train"}


def test_a_name_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no such file, and no Hugging Face dataset .*: somebody/nothing") as caught:
        find_files("somebody/nothing")
    assert "\n" not in str(caught.value)
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    with pytest.raises(UserError, match="no such file: data/mine; check --input"):
        find_files("data/mine")


def test_all_splits_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: datasets.DatasetDict(a=None, b=None))
    with pytest.raises(UserError, match="'split' must name one split, of: a, b"):
        load_hub_dataset({"path": "x/y", "split": None})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "it is not JSON"),
        ("none.json", "none.json cannot be read"),
        ('{"name": "x"}', "it must be an object with the parameters"),
    ],
)
def test_parameters_that_are_none(given: str, message: str) -> None:
    with pytest.raises(UserError, match=f"--hf-datasets-params:? {message}"):
        read_parameters(given)


def test_the_library_is_imported_for_names_only(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    program = (
        "import sys; from mindspeed_ift.data.inputs import find_files; from mindspeed_ift.data.records import read_records;"
        f"assert len(list(read_records(find_files({str(tmp_path / 'saved')!r})))) == 7;"
        "assert 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
