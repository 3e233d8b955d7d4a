"""Tasks of EleutherAI's lm-evaluation-harness, its own or YAML files of its format, asked of our model by its own API."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

from mindspeed_ift.config.errors import UserError, first_line
from mindspeed_ift.config.evaluation import EvaluateConfig
from mindspeed_ift.data.encode import Encoder
from mindspeed_ift.inference.load import Loaded

_BOOTSTRAPS = 1000  # of standard errors that have no formula
_FEWSHOT_SEED = 1234  # the harness's default


def open_tasks(config: EvaluateConfig) -> dict[str, Any]:
    """The tasks of ``--tasks``, with their data, as the harness's ``TaskManager.load`` gives them.

    Raises:
        UserError: the library is missing, there is no such task, its data cannot be had, or it would run code that a
            model writes.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("--tasks needs a library that is not installed: pip install 'mindspeed-ift[evaluate]'")
    tasks = _load(config)
    for name, task in tasks["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise UserError(f"--tasks: {name} runs code that a model writes, or shows pictures; leave it out")
        default = task.get_config("num_fewshot")
        if default is None or (config.num_fewshot is not None and default != 0):  # a 0 of the task's own stays
            task.set_config(key="num_fewshot", value=config.num_fewshot or 0)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return tasks


def _load(config: EvaluateConfig) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    names, folders = list(config.tasks), [str(folder) for folder in config.include_path]
    for folder in config.include_path:
        if not folder.is_dir():
            raise UserError(f"--include-path {folder} is not a folder")
    try:
        try:
            # Without the thousands of tasks that the library brings, whose index takes seconds.
            return TaskManager(include_path=folders, include_defaults=False).load(names)
        except KeyError:
            return TaskManager(include_path=folders).load(names)
    except KeyError as error:
        version = importlib.metadata.version("lm_eval")
        raise UserError(
            f"--tasks {' '.join(names)}: {error.args[0]} (lm_eval {version}); give its names, YAML files, or names of"
            " files in the folders of --include-path"
        ) from error
    except Exception as error:  # whatever a task's file or the library that gets its data may raise
        raise UserError(
            f"--tasks {' '.join(names)} cannot be loaded: {type(error).__name__}: {first_line(error)}"
        ) from error


def run_tasks(tasks: dict[str, Any], loaded: Loaded, encoder: Encoder, config: EvaluateConfig) -> dict[str, float]:
    """Ask a model all of them.

    Returns:
        "task metric" -> figure, of groups of tasks too, and of their standard errors.
    """
    from lm_eval.evaluator import evaluate

    from mindspeed_ift.evaluation.harness import HarnessModel

    model = HarnessModel(loaded, encoder, config.seq_length, config.micro_batch_size)
    results = evaluate(
        lm=model,
        task_dict=tasks,
        limit=config.max_samples,
        bootstrap_iters=_BOOTSTRAPS,
        log_samples=False,
        apply_chat_template=config.apply_chat_template,
        fewshot_as_multiturn=config.apply_chat_template,
    )
    if model.shortened and loaded.groups.rank == 0:
        print(
            f"notice: {model.shortened:,} requests of --tasks are longer than the {model.max_length:,} positions of"
            f" {loaded.name}; their beginnings are left out, as the harness does"
        )
    return {
        f"{task} {metric.removesuffix(',none').replace(',', ' ')}": float(value)
        for of_tasks in (results["results"], results.get("groups", {}))
        for task, values in of_tasks.items()
        for metric, value in values.items()
        if "," in metric and isinstance(value, int | float)
    }
