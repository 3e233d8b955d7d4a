"""A Hugging Face folder beside each checkpoint (``--enable-mg2hf-convert``)."""

from __future__ import annotations

import shutil
from pathlib import Path

from mindspeed_ift.checkpoint.adapters import adapters_of
from mindspeed_ift.checkpoint.convert import write_hugging_face
from mindspeed_ift.checkpoint.source import Checkpoint, Opened
from mindspeed_ift.config.errors import RunError, UserError


def hugging_face_folder(directory: Path, iteration: int) -> Path:
    """Where it lies in the run's folder; MindSpeed-LLM's name."""
    return directory / f"mg2hf_iteration{iteration}"


def export(checkpoint: Path, base: Path | None) -> str:
    """Convert a checkpoint that was just written, by one rank, tensor by tensor, adapters merged.

    Args:
        checkpoint: an ``iter_`` folder.
        base: weights that its adapters were trained on, should it hold nothing else.

    Returns:
        A line that says what was written; or why nothing was: the checkpoint is there and can be converted later, so the
        run goes on.
    """
    try:
        filtered = (adapters_of(checkpoint) or {}).get("filtered")
        source = Checkpoint(checkpoint, base if filtered else None)
        target = hugging_face_folder(checkpoint.parent, source.manifest["iteration"])
        shutil.rmtree(target, ignore_errors=True)  # of the same step, done before a restart
        tokenizer = source.manifest.get("tokenizer")
        opened = Opened(source, source.architecture, source.manifest)
        write_hugging_face(target, opened, Path(tokenizer) if tokenizer else None, "--save")
    except (RunError, UserError) as error:
        return f"notice: no Hugging Face folder of {checkpoint.name}: {error}"
    return f"saved {target} (Hugging Face)"
