"""Do dataset, checkpoint and flags belong together: files by their sizes, and the plan of the run.

``python -m mindspeed_ift.doctor.belonging ACCOUNT FLAGS`` writes what it finds into that file (see `finding.Account`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mindspeed_ift.config.accepted import ACCEPTED
from mindspeed_ift.config.doctor import DoctorConfig
from mindspeed_ift.config.flags import parse
from mindspeed_ift.devices.diagnosis.finding import Account, Finding

FIRST = "flags"


def files_of_dataset(prefix: str) -> list[Finding]:
    """The files of a dataset are there, in the sizes that its manifest and its index say."""
    from mindspeed_ift.verify.sizes import dataset_sizes

    told, problems = dataset_sizes(prefix)
    return _files(f"dataset {prefix}", told, problems, "copy or prepare it again; verify-dataset reads every byte")


def files_of_checkpoint(folder: Path) -> list[Finding]:
    """The files of a checkpoint, or of a Hugging Face folder, are there in their sizes."""
    from mindspeed_ift.verify.sizes import checkpoint_sizes

    told, problems = checkpoint_sizes(folder)
    return _files(f"weights {folder}", told, problems, "copy it again; verify-checkpoint reads every byte")


def _files(name: str, told: str, problems: list[str], remedy: str) -> list[Finding]:
    if not problems:
        return [Finding(name, "green", told)]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return [Finding(name, "red", problems[0] + more, remedy)]


def planned(config: DoctorConfig) -> list[Finding]:
    """What a run with these flags would begin with, or why it would not begin."""
    from mindspeed_ift.devices.device import count
    from mindspeed_ift.training.plan import plan

    world = int(os.environ.get("WORLD_SIZE", "0")) or count()
    lines = plan(config, world).describe().splitlines()
    told = f"a run with these flags on {world} processes (WORLD_SIZE says of how many) is possible"
    return [
        Finding("flags, data and weights together", "green", told),
        *(_line_of_plan(line) for line in lines),
    ]


def _line_of_plan(line: str) -> Finding:
    if line.startswith("notice"):
        return Finding("plan", "yellow", line, "give the flag that the line names, if it is not meant so")
    return Finding("plan", "green", line)


def main(words: list[str]) -> None:
    """Look at what the flags name, each for itself, then at all together."""
    account = Account(Path(words[0]))
    parsed: list[DoctorConfig] = []

    def read() -> list[Finding]:
        parsed.append(parse(DoctorConfig, words[1:], program="doctor", accepted=ACCEPTED))
        return [Finding(FIRST, "green", " ".join(words[1:]))]

    account.step(FIRST, read)
    for config in parsed:
        for prefix in _prefixes(config):
            account.step(f"dataset {prefix}", lambda prefix=prefix: files_of_dataset(prefix))
        for folder in filter(None, dict.fromkeys((config.run.load, config.lora.lora_load))):
            account.step(f"weights {folder}", lambda folder=folder: files_of_checkpoint(folder))
        if config.data.data_path:
            account.step("flags, data and weights together", lambda config=config: planned(config))
    account.end()


def _prefixes(config: DoctorConfig) -> list[str]:
    from mindspeed_ift.config.blending import named_datasets

    named = {"--data-path": config.data.data_path, "--valid-data-path": config.data.valid_data_path}
    return [prefix for flag, words in named.items() for prefix in named_datasets(flag, words)[0]]


if __name__ == "__main__":
    main(sys.argv[1:])
