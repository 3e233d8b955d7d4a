"""What is asked of data preparation: files, columns, template, lengths, packing."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any, Literal

from mindspeed_ift.config.errors import UserError

_LEAST_ROOM = 8
_LONGEST_NAME = 200
"""Bytes of a prefix: systems of files take names of 255, and columns, shards and unfinished files add to it."""
_ROUNDING = 1e-8
"""By which probabilities may miss 1; what numpy's ``choice`` allows."""
PackingAlgorithm = Literal["greedy-knapsack", "best-fit", "sequential", "balanced"]


_DROP_FRACTION, _TELLING_RECORDS = 0.05, 100
"""Largest share of malformed records unless --max-drop-fraction says otherwise, and of how many records it is asked."""


@dataclass(frozen=True)
class PreprocessConfig:
    """Options of ``preprocess_data.py``, spelled as in MindSpeed-LLM."""

    input: tuple[str, ...] = field(default=(), metadata={"repeatable": True})
    """Records: file, folder, glob, Hugging Face dataset (name, or folder of save_to_disk), or several of them, in one
    list, with commas between, or each with its own --input. Files: parquet, arrow; json, jsonl, csv, txt, also .gz and
    .zst."""

    hf_datasets_params: str = ""
    """Records of datasets.load_dataset instead of --input: a file with its parameters as JSON, or the JSON."""

    mix_strategy: Literal["concat", "interleave_under", "interleave_over"] = "concat"
    """Several datasets (parts of --input): one after the other, or in turn until the first (under) or the last (over)
    has ended; over begins those that ended before anew."""

    interleave_probs: str = ""
    """Draw from the datasets with these probabilities instead of in turn, as "0.7,0.3"; they sum to 1."""

    seed: int = 1234
    """Of what is drawn at random."""

    max_samples: int | None = None
    """Take only the first so many records of each dataset."""

    output_prefix: str = ""
    """Where the dataset goes: PREFIX_packed_input_ids_document.bin and so on; its folder is made."""

    tokenizer_name_or_path: str = ""
    """Folder of a Hugging Face tokenizer (tokenizer.json, tokenizer_config.json)."""

    tokenizer_type: Literal["PretrainedFromHF"] = "PretrainedFromHF"
    """Kind of tokenizer; Hugging Face's is the only one."""

    tokenizer_backend: Literal["auto", "hf", "fast"] = "auto"
    """What encodes: Hugging Face's tokenizers (hf), or the package gigatoken where it gives the same ids (fast); auto
    takes it if it is installed."""

    trust_remote_code: bool = False
    """Run Python code that lies in the tokenizer's folder. Off, because it is code of others."""

    handler_name: str = "auto"
    """How records are read: auto, or a handler of MindSpeed-LLM: {Alpaca,Sharegpt,OpenAI}StyleInstructionHandler,
    GeneralPretrainHandler (text) and the others."""

    prompt_type: str = "qwen"
    """Chat template: qwen, default, empty, alpaca, chatml, llama2, llama3, mistral (as LLaMA-Factory 0.8.2), qwen_lf,
    qwen3, qwen3_nothink, deepseek3, glm4 (as 0.9.5), hf (the tokenizer's own), or one of --prompt-type-path."""

    prompt_type_path: str = ""
    """File of templates to choose from instead: YAML or JSON in the form of MindSpeed-LLM's templates.json."""

    enable_thinking: Literal["none", "true", "false"] = "none"
    """Empty thoughts of qwen3: true learns them, none and false put them into the prompt; false removes real ones."""

    drop_thinking: bool = False
    """Write the answers before the user's last question without thoughts, as most models see their history."""

    escape_special_tokens: bool = False
    """Special tokens within the records (<|im_end|>, say) become plain text, not tokens."""

    map_keys: str = ""
    """Columns, as JSON. Alpaca: prompt, query, response, history, system, tools; others: messages, tags, system,
    tools."""

    json_keys: tuple[str, ...] = ("text",)
    """Columns of plain text (GeneralPretrainHandler); one dataset a column."""

    dataset_additional_keys: tuple[str, ...] = ()
    """Columns of text kept beside each prompt (R1...InstructionHandler); labels is the record's own answer."""

    seq_length: int | None = None
    """Longest sample: longer ones are cut or left out, as the mode and template do. Length of a row with --pack."""

    pack: bool = False
    """Put several samples into each row of --seq-length tokens."""

    neat_pack: bool = False
    """With --pack: number the samples of a row in attention_mask, so that attention can keep them apart."""

    packing_algorithm: PackingAlgorithm = "greedy-knapsack"
    """Which samples share a row. greedy-knapsack: the rows of MindSpeed-LLM, byte for byte, and as full as best-fit's;
    best-fit: longest first into the fullest row, rows then shuffled by --seed; sequential: the order is kept; balanced:
    hardly more rows than best-fit, all with as much attention to compute, for --balance-packs."""

    max_segments: int = 1024
    """Most segments of a packed row, its pads being one: more is more than attention on the device can take."""

    pad_to_multiple_of: int = 1
    """With --neat-pack: each sample takes a multiple of this many tokens, pads of its own at its end (for context
    parallel trainers that split every sample)."""

    append_eod: bool = False
    """End each sample with one more end-of-document token, learnt."""

    overlong: Literal["truncate", "drop", "split", "error"] | None = None
    """What becomes of samples of --seq-length tokens or more (more than --cutoff-len): cut turn by turn, left out, split
    at the user's questions, or an error. Unless given, what MindSpeed-LLM does in that mode with that template."""

    cutoff_len: int | None = None
    """Cut each conversation to this many tokens, turn by turn, prompt and answer in proportion."""

    train_on_prompt: bool = False
    """Learn the prompts too."""

    mask_history: bool = False
    """Learn the last answer only."""

    mask_thoughts: bool = False
    """Learn the answers without their thoughts (<think>...</think>)."""

    max_drop_fraction: float | None = None
    """Fail if a larger part of the records is malformed and so dropped; those left out for their length do not count.
    Default: 0.05 of 100 records and more; fewer say too little, and are dropped as MindSpeed-LLM drops them."""

    workers: int = 1
    """Processes that tokenize; the dataset is the same for any number."""

    num_shards: int = 1
    """Split the work over so many runs, on one machine or several, each with its --shard-index; the last step is the
    same command with --merge-shards. The dataset is that of a single run."""

    shard_index: int | None = None
    """Which of --num-shards this run encodes, from 0."""

    merge_shards: bool = False
    """Join the shards that are beside --output-prefix, and pack them with --pack."""

    log_interval: int = 100_000
    """Records between two progress lines."""

    cache_dir: str = ""
    """Folder for intermediate files of --pack, as large as the dataset; the output's folder unless given."""

    merge_group_keys: tuple[str, ...] = ()
    """Join the datasets in the folder --input instead, by the names of their columns: packed_input_ids_document and so
    on (the command merge-datasets)."""

    dry_run: bool = False
    """Print the resolved configuration and stop."""

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            UserError: With the remedy.
        """
        for rule in _RULES:
            rule(self)

    def allowed_drop_fraction(self, read: int) -> float:
        """Largest part of ``read`` records that may be malformed."""
        if self.max_drop_fraction is not None:
            return self.max_drop_fraction
        return _DROP_FRACTION if read >= _TELLING_RECORDS else 1.0

    def mapped_keys(self) -> dict[str, Any]:
        """``--map-keys`` as a dictionary."""
        if not self.map_keys.strip():
            return {}
        try:
            keys = json.loads(self.map_keys, object_pairs_hook=_each_once)
        except json.JSONDecodeError as error:
            raise UserError(
                f"--map-keys is not JSON ({error}); write for example"
                ' \'{"prompt": "question", "response": "answer"}\''
            ) from error
        if not isinstance(keys, dict):
            raise UserError('--map-keys must be a JSON object, for example \'{"prompt": "question"}\'')
        return keys

    def probabilities(self) -> tuple[float, ...] | None:
        """``--interleave-probs`` as numbers; None without.

        Raises:
            UserError: They are no probabilities.
        """
        given = self.interleave_probs
        if not given.strip():
            return None
        try:
            numbers = tuple(float(number) for number in given.split(","))
        except ValueError:
            raise UserError(f'--interleave-probs {given} is not numbers with commas between, as "0.7,0.3"') from None
        if not all(0 < number < 1 for number in numbers):
            raise UserError(f"--interleave-probs {given}: each must lie between 0 and 1; leave out a dataset with none")
        if abs(sum(numbers) - 1) > _ROUNDING:
            raise UserError(f"--interleave-probs {given} sum to {sum(numbers):g}; they must sum to 1")
        return numbers


def check_prefix(prefix: str) -> None:
    """Refuse an ``--output-prefix`` that names a folder (its files would be called ``_packed_...`` or hidden), or is too
    long a name.

    Raises:
        UserError: With a prefix that would do.
    """
    if os.path.basename(prefix) in ("", ".", ".."):
        raise UserError(
            f"--output-prefix {prefix} names a folder, not what the files' names begin with; give for example"
            f" {os.path.join(prefix, 'data')}"
        )
    if len(os.fsencode(os.path.basename(prefix))) > _LONGEST_NAME:
        raise UserError(
            f"the last part of --output-prefix is longer than {_LONGEST_NAME} bytes, and files get longer names still;"
            " give a shorter one"
        )


def check_multiple(seq_length: int, multiple: int) -> None:
    """Refuse rows that samples of a multiple cannot fill.

    Raises:
        UserError: With the next length that would do.
    """
    if seq_length % multiple:
        raise UserError(
            f"--seq-length {seq_length} is no multiple of --pad-to-multiple-of {multiple}; give"
            f" {-(-seq_length // multiple) * multiple}"
        )


def _packing_needs_a_length(config: PreprocessConfig) -> None:
    if config.pack and config.seq_length is None:
        raise UserError("--pack needs --seq-length, the length of a row; add for example --seq-length 4096")


def _neat_packing_needs_packing(config: PreprocessConfig) -> None:
    if config.neat_pack and not config.pack:
        raise UserError("--neat-pack is a kind of packing; give --pack with it")


def _packing_flags_need_packing(config: PreprocessConfig) -> None:
    for flag, given, needs, there in (
        ("--packing-algorithm", config.packing_algorithm != "greedy-knapsack", "--pack", config.pack),
        ("--max-segments", config.max_segments != 1024, "--pack", config.pack),
        ("--pad-to-multiple-of", config.pack and config.pad_to_multiple_of > 1, "--pack --neat-pack", config.neat_pack),
    ):
        if given and not there:
            raise UserError(f"{flag} is about packed rows; give {needs} with it, or leave it out")
    if config.neat_pack and config.seq_length is not None:
        check_multiple(config.seq_length, config.pad_to_multiple_of)


def _lengths_are_possible(config: PreprocessConfig) -> None:
    for flag, value, least in (
        ("--seq-length", config.seq_length, 2),
        ("--cutoff-len", config.cutoff_len, 2),
        ("--workers", config.workers, 1),
        ("--num-shards", config.num_shards, 1),
        ("--log-interval", config.log_interval, 1),
        ("--max-samples", config.max_samples, 1),
        ("--seed", config.seed, 0),
        ("--max-segments", config.max_segments, 2),
        ("--pad-to-multiple-of", config.pad_to_multiple_of, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{flag} {value} is too small; give at least {least}")


def _fractions_are_possible(config: PreprocessConfig) -> None:
    if config.max_drop_fraction is not None and not 0 <= config.max_drop_fraction <= 1:
        raise UserError(f"--max-drop-fraction {config.max_drop_fraction:g} must lie between 0 and 1")


def _text_is_not_packed(config: PreprocessConfig) -> None:
    if config.handler_name.endswith("PretrainHandler") and config.pack:
        raise UserError(
            f"--pack is for instruction data; plain text ({config.handler_name}) is cut into rows by the trainer:"
            " leave --pack out"
        )


def _prompts_are_learnt_or_history_masked(config: PreprocessConfig) -> None:
    if config.train_on_prompt and config.mask_history:
        raise UserError("--train-on-prompt learns every prompt, --mask-history the last answer only; give one of them")


def _shards_are_of_one_set(config: PreprocessConfig) -> None:
    if config.num_shards > 1 and config.shard_index is None and not config.merge_shards:
        raise UserError(
            "--num-shards needs --shard-index, which of them this run encodes, or --merge-shards at the end"
        )
    if config.shard_index is None and not config.merge_shards:
        return
    if config.num_shards < 2:
        raise UserError("--shard-index and --merge-shards need --num-shards, how many there are; give at least 2")
    if config.shard_index is not None and config.merge_shards:
        raise UserError("--shard-index encodes a shard, --merge-shards joins all; give one of them")
    if config.shard_index is not None and not 0 <= config.shard_index < config.num_shards:
        raise UserError(f"--shard-index {config.shard_index}: give 0 to {config.num_shards - 1}, one for each run")


def _overlong_needs_a_length(config: PreprocessConfig) -> None:
    if config.overlong is None:
        return
    if config.seq_length is None and config.cutoff_len is None:
        raise UserError(f"--overlong {config.overlong} needs a length; give --seq-length or --cutoff-len")
    for flag, length in (("--seq-length", config.seq_length), ("--cutoff-len", config.cutoff_len)):
        if length is not None and length < _LEAST_ROOM:
            raise UserError(f"{flag} {length} leaves no room for a conversation; give --overlong a larger one")
    if config.overlong == "split" and config.mask_history:
        raise UserError(
            "--overlong split does not go with --mask-history, which learns the last answer of a conversation only;"
            " give --overlong truncate"
        )


def _probabilities_need_interleaving(config: PreprocessConfig) -> None:
    if config.probabilities() is not None and config.mix_strategy == "concat":
        raise UserError(
            "--interleave-probs changes nothing with --mix-strategy concat; give interleave_under or interleave_over"
        )


def _paths_are_given(config: PreprocessConfig) -> None:
    for flag, value in (
        ("--input", config.hf_datasets_params or "".join(config.input)),
        ("--output-prefix", config.output_prefix),
        ("--tokenizer-name-or-path", config.tokenizer_name_or_path),
    ):
        if not value.strip():
            raise UserError(f"{flag} is missing; give a path")
    check_prefix(config.output_prefix)


def _text_columns_differ(config: PreprocessConfig) -> None:
    for column in config.json_keys:
        if config.json_keys.count(column) > 1:
            raise UserError(f"--json-keys names {column} twice; each column is a dataset, give it once")


def _kept_columns_are_others(config: PreprocessConfig) -> None:
    for column in config.dataset_additional_keys:
        if column in ("input_ids", "attention_mask") or config.dataset_additional_keys.count(column) > 1:
            raise UserError(
                f"--dataset-additional-keys {column}: a column of the dataset is called so already; leave it out"
            )


_RULES = (
    _paths_are_given,
    _packing_needs_a_length,
    _neat_packing_needs_packing,
    _lengths_are_possible,
    _packing_flags_need_packing,
    _fractions_are_possible,
    _text_is_not_packed,
    _text_columns_differ,
    _kept_columns_are_others,
    _probabilities_need_interleaving,
    _overlong_needs_a_length,
    _prompts_are_learnt_or_history_masked,
    _shards_are_of_one_set,
)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key in found if sum(key == other for other, _ in pairs) > 1)
        raise UserError(f"--map-keys names {twice} twice; say once which column it is")
    return found
