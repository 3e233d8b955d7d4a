"""From dataclasses to a command line and back: precedence, spelling, and one clear line for whatever is wrong."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import Parsed, options, parse, parse_with_origins, values
from mindspeed_ift.config.tuning import TuneConfig


@dataclass(frozen=True)
class Inner:
    """Options of a part."""

    rate: float = 0.5
    """A number."""
    shuffle: bool = True
    """On unless turned off."""
    fast: bool = False
    """Off unless turned on."""
    tied: bool | None = None
    """On, off, or not said."""
    mode: Literal["true", "false", "none"] | None = None
    """A choice."""


@dataclass(frozen=True)
class Options:
    """A small command."""

    config: Path | None = None
    """YAML file."""
    count: int = 1
    """A whole number."""
    seq_length: int | None = None
    """A number that may be missing."""
    names: tuple[str, ...] = ()
    """Several words."""
    text: str = ""
    """A text that may be empty."""
    folder: Path | None = None
    """A path."""
    inner: Inner = field(default_factory=Inner)


ACCEPTED = {
    "--use-flash": (0, "kernels"),
    "--spec": (2, "one spec", ("module layer_spec",)),
    "--dropout": (1, "none", ("0",)),
    "--workers": (1, "one"),
}


def read(*words: str) -> Parsed:
    return parse_with_origins(Options, list(words), program="tool.py", accepted=ACCEPTED)


def value(name: str, *words: str) -> object:
    return values(read(*words).config)[name]


def message(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        read(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(folder: Path, content: str) -> str:
    path = folder / "run.yaml"
    path.write_text(content, encoding="utf-8")
    return str(path)


# Precedence and origins


def test_a_flag_beats_the_file_and_the_file_beats_the_default(tmp_path: Path) -> None:
    file = write(tmp_path, "count: 2\nrate: 2.0\nshuffle: false\n")
    parsed = read("--config", file, "--rate", "3")
    found = values(parsed.config)
    assert (found["count"], found["rate"], found["shuffle"], found["fast"]) == (2, 3.0, False, False)
    assert parsed.origins["count"] == parsed.origins["shuffle"] == file
    assert parsed.origins["rate"] == parsed.origins["config"] == "flag"
    assert parsed.origins["fast"] == "default"
    assert set(parsed.origins) == set(found)


def test_it_does_not_matter_where_the_file_stands(tmp_path: Path) -> None:
    file = write(tmp_path, "count: 2\nseq_length: 5")
    assert values(read("--count", "3", "--config", file).config) == values(read(f"--config={file}", "--count=3").config)
    assert value("count", "--count", "3", "--config", file) == 3


def test_a_list_of_the_command_line_replaces_the_list_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "names: [a, b]")
    assert value("names", "--config", file) == ("a", "b")
    assert value("names", "--config", file, "--names", "c") == ("c",)


def test_the_last_of_two_equal_flags_wins() -> None:
    assert value("count", "--count", "1", "--count", "2") == 2
    assert value("names", "--names", "a", "b", "--names", "c") == ("c",)
    assert value("fast", "--fast", "--no-fast") is False
    assert value("fast", "--no-fast", "--fast", "--fast") is True


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        (["--no-shuffle"], "shuffle", False),
        (["--shuffle"], "shuffle", True),
        (["--tied"], "tied", True),
        (["--no-tied"], "tied", False),
        ([], "tied", None),
        (["--mode", "true"], "mode", "true"),
        (["--mode", "True"], "mode", "true"),
        (["--mode=NONE"], "mode", "none"),
        (["--mode", "None"], "mode", "none"),
        (["--rate", "-1"], "rate", -1.0),
        (["--rate=-.5e-3"], "rate", -0.0005),
        (["--count", "-1"], "count", -1),
        (["--seq_length", "7"], "seq_length", 7),
        (["--no_shuffle"], "shuffle", False),
        (["--text", "- item"], "text", "- item"),
        (["--text", "-5 + 3"], "text", "-5 + 3"),
        (["--text=--fast"], "text", "--fast"),
        (["--text=a=b"], "text", "a=b"),
        (["--text", ""], "text", ""),
        (["--text="], "text", ""),
        (["--folder=--odd_name"], "folder", Path("--odd_name")),
        (["--names", "a b", "c"], "names", ("a b", "c")),
    ],
)
def test_a_value_in_every_spelling(words: list[str], name: str, expected: object) -> None:
    parsed = read(*words)
    assert values(parsed.config)[name] == expected
    assert parsed.origins[name] == ("flag" if words else "default")
    assert sum(origin == "flag" for origin in parsed.origins.values()) == bool(words)


def test_switches_of_the_trainer_take_no_value() -> None:
    flags = ["--group-query-attention", "--num-query-groups", "8", "--no-untie-embeddings-and-output-weights"]
    model = parse(TuneConfig, flags, program="test").model
    assert model.group_query_attention is True and model.num_query_groups == 8
    assert model.untie_embeddings_and_output_weights is False and model.qk_layernorm is None


# What is wrong


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cuont", "1"], "unknown flag --cuont; did you mean --count?"),
        (["--count", "1", "--no-shufle"], "unknown flag --no-shufle; did you mean --no-shuffle?"),
        (["--use-flush"], "unknown flag --use-flush; did you mean --use-flash?"),
        (["--coun", "1"], "unknown flag --coun; did you mean --count?"),
        (["--xyzzy"], "unknown flag --xyzzy; see tool.py --help"),
        (["--no-count"], "unknown flag --no-count; did you mean --count?"),
        (["-x"], "unknown flag -x; see tool.py --help"),
        (["--COUNT", "1"], "unknown flag --COUNT"),
        (
            ["--moe_pad_expert_input"],
            "--moe-pad-expert-input is not supported: experts are chosen by softmax and top-k",
        ),
        (["word"], "unexpected word 'word' on the command line"),
        (["--count", "1", "2"], "unexpected word '2' on the command line"),
        (["--"], "unexpected word '--' on the command line"),
        (["--fast", "true"], "--fast takes no value, but got 'true'; write --fast or --no-fast"),
        (["--no-fast=1", "--fast"], "--no-fast takes no value, but got '1'; write --fast or --no-fast"),
        (["--tied", "False"], "--tied takes no value, but got 'False'"),
        (["--count"], "--count needs a value"),
        (["--count", "--fast"], "--count needs a value"),
        (["--text", "--fast"], "--text needs a value"),
        (["--names"], "--names needs at least one value"),
        (["--count", "one"], "--count: invalid literal for int() with base 10: 'one'"),
        (["--count", "1.0"], "--count: invalid literal for int() with base 10: '1.0'"),
        (["--rate", "fast"], "--rate: could not convert string to float: 'fast'"),
        (["--mode", "maybe"], "invalid choice 'maybe' for argument '--mode'"),
        (["--seq-length", "None"], "--seq-length"),
        (["--rate", "nan"], "--rate nan is not a finite number"),
        (["--rate", "-inf"], "--rate -inf is not a finite number"),
        (["--rate", "1e400"], "--rate inf is not a finite number"),
        (["--count", str(2**63)], f"--count {2**63} is too large"),
        (["--folder", ""], "--folder has an empty value; is a variable of the script not set?"),
        (["--folder="], "--folder has an empty value"),
        (["--names", "a", ""], "--names has an empty value"),
        (["--count", ""], "--count has an empty value"),
        ([""], "the command line has an empty value"),
        (["--config"], "--config needs a value"),
        (["--config="], "--config has an empty value"),
        (["--config", "no/such.yaml"], "--config no/such.yaml: cannot be read as YAML"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], expected: str) -> None:
    assert expected in message(*words)


def test_a_long_value_is_not_broken_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    long = "/folder/" + "x" * 150
    assert long in message("--count", long)
    assert os.environ["COLUMNS"] == "60"


def test_help_names_every_flag_and_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read("--help")
    printed = capsys.readouterr().out
    assert not stop.value.code
    for option in options(Options):
        assert option.flag in printed
    assert "A number that may be missing." in printed and "--no-tied" in printed


def test_a_required_flag_is_asked_for() -> None:
    @dataclass(frozen=True)
    class Needs:
        """One that must be given."""

        output: str

    assert parse(Needs, ["--output", "x"], program="tool.py").output == "x"
    with pytest.raises(UserError, match="--output"):
        parse(Needs, [], program="tool.py")


# Flags of other systems


def test_accepted_flags_are_taken_with_their_values_and_told_once() -> None:
    parsed = read("--use-flash", "--spec", "module", "layer_spec", "--count", "2", "--workers=4", "--use-flash")
    assert parsed.config.count == 2
    assert parsed.ignored == [
        "--use-flash changes nothing here: kernels",
        "--spec changes nothing here: one spec",
        "--workers changes nothing here: one",
    ]


def test_a_flag_may_have_another_name() -> None:
    """One of Megatron's configuration; messages and origins know that of its command line."""
    words = ["--num_layers_in_first_pipeline_stage=3", "--num-layers-in-last-pipeline-stage", "2"]
    parsed = parse_with_origins(TuneConfig, words, program="test")
    layout = parsed.config.layout
    assert (layout.decoder_first_pipeline_num_layers, layout.decoder_last_pipeline_num_layers) == (3, 2)
    assert parsed.origins["decoder_first_pipeline_num_layers"] == "flag"


def test_an_accepted_flag_may_be_written_with_underscores_and_negative_values() -> None:
    assert read("--use_flash", "--workers", "-1").ignored[1] == "--workers changes nothing here: one"


@pytest.mark.parametrize("given", ["0", "0.0", "-0", "0e0"])
def test_a_value_that_is_what_happens_anyway_is_accepted(given: str) -> None:
    assert read("--dropout", given).ignored == ["--dropout changes nothing here: none"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--dropout", "0.1"], "--dropout 0.1 is not supported: only 0; leave it out"),
        (["--dropout=x"], "--dropout x is not supported: only 0"),
        (["--spec", "other", "layer_spec"], "--spec other layer_spec is not supported: only module layer_spec"),
        (["--dropout"], "--dropout takes 1 value, but got 0"),
        (["--dropout", "--fast"], "--dropout takes 1 value, but got 0"),
        (["--spec", "module", "--fast"], "--spec takes 2 values, but got 1"),
        (["--use-flash=1"], "--use-flash takes 0 values, but got 1"),
        (["--use-flash", "1"], "unexpected word '1'"),
        (["--no-use-flash"], "unknown flag --no-use-flash"),
    ],
)
def test_an_accepted_flag_never_hides_what_is_not_done(words: list[str], expected: str) -> None:
    assert expected in message(*words)


def test_a_flag_of_the_command_is_never_taken_for_another_systems() -> None:
    parsed = parse_with_origins(Options, ["--count", "2"], program="tool.py", accepted={"--count": (1, "no")})
    assert parsed.config.count == 2 and not parsed.ignored


# The file of --config


def test_a_file_speaks_the_language_of_the_flags(tmp_path: Path) -> None:
    lines = [
        "--count: 3",
        "seq-length: 7",
        "rate: 1e-5",  # YAML 1.1 takes this for a text
        "names: [a, 2, true]",
        "no-shuffle: true",
        "fast: yes",
        "mode: none",
        "folder: data/x",
        "use-flash: true",
        "spec: [module, layer_spec]",
        "dropout: 0.0",
    ]
    parsed = read("--config", write(tmp_path, "\n".join(lines)))
    found = values(parsed.config)
    expected = {"count": 3, "seq_length": 7, "rate": 1e-5, "names": ("a", "2", "true"), "shuffle": False, "fast": True}
    assert expected.items() <= found.items()
    assert (found["mode"], found["folder"]) == ("none", Path("data/x"))
    assert [line.split()[0] for line in parsed.ignored] == ["--use-flash", "--spec", "--dropout"]
    assert parsed.origins["shuffle"] == str(tmp_path / "run.yaml")


def test_a_truth_value_serves_a_choice_of_words(tmp_path: Path) -> None:
    assert value("mode", "--config", write(tmp_path, "mode: true")) == "true"
    assert value("mode", "--config", write(tmp_path, "mode: off")) == "false"


def test_a_switch_can_be_turned_both_ways_in_a_file(tmp_path: Path) -> None:
    assert value("shuffle", "--config", write(tmp_path, "no-shuffle: false")) is True
    assert value("tied", "--config", write(tmp_path, "tied: false")) is False
    assert value("fast", "--config", write(tmp_path, "fast: true"), "--no-fast") is False


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("cuont: 1", "unknown flag --cuont; did you mean --count?"),
        ("count: one", "--count"),
        ("count: [1, 2]", "unexpected word '2'"),
        ("count: 1.5", "--count: invalid literal"),
        ("count:", "count must have a value"),
        ("count: {a: 1}", "count must have a value"),
        ("names: []", "names must have a value"),
        ("names: [[a]]", "names must have a value"),
        ("names: [a, null]", "names must have a value"),
        ("folder: ''", "--folder has an empty value"),
        ("fast: 3", "--fast takes no value, but got '3'"),
        ("rate: .nan", "--rate nan is not a finite number"),
        ("mode: maybe", "invalid choice 'maybe'"),
        ("dropout: 0.1", "--dropout 0.1 is not supported: only 0"),
        ("use-flash: false", "unknown flag --no-use-flash"),
        ("seq-length: 1\nseq_length: 2", "seq-length is given twice"),
        ("count: 1\ncount: 1", "count is given twice"),
        ("3: 1", "unknown flag --3"),
        ("? [a]\n: 1", "cannot be read as YAML"),
        ("config: other.yaml", "a file cannot name another file"),
        ("- count", "must be a mapping"),
        ("", "must be a mapping"),
        ("a: b: c", "cannot be read as YAML"),
        ("a: \x00", "cannot be read as YAML"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_it(tmp_path: Path, content: str, expected: str) -> None:
    file = write(tmp_path, content)
    text = message("--config", file)
    assert text.startswith(f"--config {file}: ") and expected in text


def test_a_file_that_is_no_text_or_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "binary", tmp_path):
        assert "cannot be read as YAML" in message("--config", str(path))
