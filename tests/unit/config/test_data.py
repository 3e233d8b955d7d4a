"""Every rule of data preparation, by the flags that break it."""

from __future__ import annotations

import pytest

from mindspeed_ift.config import data
from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.merge import MergeConfig

PATHS = "--input in.json --output-prefix out --tokenizer-name-or-path tokenizer"
BROKEN = [
    ("--output-prefix out --tokenizer-name-or-path tokenizer", "--input is missing"),
    ("--input in.json --tokenizer-name-or-path tokenizer", "--output-prefix is missing"),
    ("--input in.json --output-prefix out", "--tokenizer-name-or-path is missing"),
    (f"{PATHS} --json-keys a b a", "--json-keys names a twice"),
    (f"{PATHS} --pack", "--pack needs --seq-length"),
    (f"{PATHS} --neat-pack --seq-length 64", "--neat-pack is a kind of packing; give --pack"),
    (f"{PATHS} --seq-length 1", "--seq-length 1 is too small; give at least 2"),
    (f"{PATHS} --cutoff-len 0", "--cutoff-len 0 is too small"),
    (f"{PATHS} --workers 0", "--workers 0 is too small; give at least 1"),
    (f"{PATHS} --pad-to-multiple-of 0", "--pad-to-multiple-of 0 is too small"),
    (f"{PATHS} --log-interval -1", "--log-interval -1 is too small"),
    (f"{PATHS} --handler-name GeneralPretrainHandler --pack --seq-length 64", "--pack is for instruction data"),
    (f"{PATHS} --packing-algorithm best-fit", "--packing-algorithm is about packed rows; give --pack with it"),
    (f"{PATHS} --max-segments 3", "--max-segments is about packed rows; give --pack with it"),
    (f"{PATHS} --pack --seq-length 64 --max-segments 1", "--max-segments 1 is too small; give at least 2"),
    (f"{PATHS} --pack --seq-length 64 --pad-to-multiple-of 8", "give --pack --neat-pack with it"),
    (
        f"{PATHS} --pack --neat-pack --seq-length 60 --pad-to-multiple-of 8",
        "--seq-length 60 is no multiple of --pad-to-multiple-of 8; give 64",
    ),
    (f"{PATHS} --max-drop-fraction 1.5", "--max-drop-fraction 1.5"),
    (f"{PATHS} --num-shards 4", "--num-shards needs --shard-index"),
    (f"{PATHS} --num-shards 4 --shard-index 4", "--shard-index 4: give 0 to 3"),
    (f"{PATHS} --num-shards 4 --shard-index -1", "--shard-index -1: give 0 to 3"),
    (f"{PATHS} --shard-index 0", "--shard-index and --merge-shards need --num-shards"),
    (
        f"{PATHS} --num-shards 4 --shard-index 0 --merge-shards",
        "--shard-index encodes a shard, --merge-shards joins all",
    ),
    (f"{PATHS} --num-shards 0", "--num-shards 0 is too small"),
    (f"{PATHS} --overlong drop", "--overlong drop needs a length; give --seq-length or --cutoff-len"),
    (f"{PATHS} --overlong truncate --seq-length 4", "--seq-length 4 leaves no room"),
    (f"{PATHS} --overlong split --seq-length 64 --mask-history", "--overlong split does not go with --mask-history"),
    (f"{PATHS} --train-on-prompt --mask-history", "give one of them"),
    (f"{PATHS} --output-prefix out/{'a' * 201}", "is longer than 200 bytes"),
    (f"{PATHS} --dataset-additional-keys input_ids", "a column of the dataset is called so already"),
    (f"{PATHS} --max-samples 0", "--max-samples 0 is too small"),
    (f"{PATHS} --interleave-probs 0.5,0.5", "--interleave-probs changes nothing with --mix-strategy concat"),
    (f"{PATHS} --interleave-probs 0.5;0.5", "is not numbers with commas between"),
    (f"{PATHS} --interleave-probs 0.5,0.4", "sum to 0.9; they must sum to 1"),
    (f"{PATHS} --interleave-probs 0,1", "each must lie between 0 and 1"),
    (f"{PATHS} --interleave-probs nan,0.5", "each must lie between 0 and 1"),
]


def config(flags: str) -> PreprocessConfig:
    return parse(PreprocessConfig, flags.split(), program="test")


@pytest.mark.parametrize(("flags", "expected"), BROKEN)
def test_what_does_not_go_together_is_refused(flags: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        config(flags).check()
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--pack --seq-length 64",
        "--pack --neat-pack --seq-length 64 --append-eod",
        "--pack --neat-pack --seq-length 64 --pad-to-multiple-of 8 --packing-algorithm best-fit --max-segments 2",
        "--mix-strategy interleave_under --interleave-probs 0.1,0.2,0.7",
        "--overlong split --cutoff-len 64",
        "--num-shards 4 --shard-index 3",
        "--num-shards 4 --merge-shards",
    ],
)
def test_what_goes_together_is_taken(flags: str) -> None:
    config(f"{PATHS} {flags}").check()


@pytest.mark.parametrize(
    "given", ["--input a b c", "--input a --input b c", "--input=a --input b --pack --input=c", "--input a --input=b c"]
)
def test_inputs_add_up(given: str) -> None:
    assert config(given).input == ("a", "b", "c")


def test_parameters_of_a_dataset_stand_for_the_input() -> None:
    config(f"--hf-datasets-params p.json {PATHS.removeprefix('--input in.json')}").check()


def test_every_rule_is_broken_by_some_flags() -> None:
    """A new rule needs its line in `BROKEN`."""
    idle = []
    for rule in data._RULES:
        broken = 0
        for flags, _ in BROKEN:
            try:
                rule(config(flags))
            except UserError:
                broken += 1
        idle += [] if broken else [rule.__name__]
    assert not idle


@pytest.mark.parametrize("given", ["", "  "])
def test_no_mapping_is_no_mapping(given: str) -> None:
    assert PreprocessConfig(map_keys=given).mapped_keys() == {}


def test_columns_are_mapped_by_json() -> None:
    assert PreprocessConfig(map_keys='{"prompt": "question"}').mapped_keys() == {"prompt": "question"}


@pytest.mark.parametrize("given", ["{", "{'prompt': 'question'}", "[]", '"prompt"', "prompt=question"])
def test_a_mapping_that_is_no_json_object_is_refused(given: str) -> None:
    with pytest.raises(UserError, match="--map-keys"):
        PreprocessConfig(map_keys=given).mapped_keys()


def test_a_column_that_is_mapped_twice_is_refused() -> None:
    with pytest.raises(UserError, match="--map-keys names prompt twice; say once which column it is"):
        PreprocessConfig(map_keys='{"prompt": "question", "response": "a", "prompt": "q"}').mapped_keys()


@pytest.mark.parametrize("prefix", ["data/", ".", "..", "data/.."])
def test_a_prefix_that_names_a_folder_is_refused(prefix: str) -> None:
    with pytest.raises(UserError, match="names a folder.*give for example"):
        PreprocessConfig(("in.jsonl",), output_prefix=prefix, tokenizer_name_or_path="tokenizer").check()
    with pytest.raises(UserError, match="names a folder"):
        MergeConfig(("parts",), prefix).check()
