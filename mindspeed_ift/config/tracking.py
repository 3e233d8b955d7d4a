"""Where the numbers of a run are shown, beside its lines and metrics.jsonl."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrackingFlags:
    """Trackers: what metrics.jsonl gets, for other eyes."""

    tensorboard_dir: Path | None = None
    """Folder for TensorBoard's files. Default: SAVE/tensorboard, if the package is installed."""
    wandb_project: str | None = None
    """Project on Weights & Biases that gets the run. WANDB_MODE=offline writes to the disk only; WANDB_RUN_ID with
    WANDB_RESUME=allow goes on with a run."""
    wandb_exp_name: str | None = None
    """Name of the run on Weights & Biases; default: one of its own making."""
    wandb_entity: str | None = None
    """User or team that the project belongs to; default: that of the login."""
    wandb_save_dir: Path | None = None
    """Folder in which Weights & Biases makes one, wandb, for its own files; default: SAVE."""
    swanlab_project: str | None = None
    """Project on SwanLab that gets the run. SWANLAB_MODE=offline (or local) writes to the disk only."""
    swanlab_run_name: str | None = None
    """Name of the run on SwanLab; default: one of its own making."""
    swanlab_workspace: str | None = None
    """User or organisation that the project belongs to; default: that of the login."""
    swanlab_logdir: Path | None = None
    """Folder for SwanLab's own files; default: SAVE/swanlab."""
