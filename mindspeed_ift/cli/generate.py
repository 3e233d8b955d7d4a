"""``mindspeed-ift generate`` / ``tools/inference.py``: answers from a Hugging Face folder or a checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mindspeed_ift.cli.command import tell
from mindspeed_ift.config.accepted import ASKING_ACCEPTED
from mindspeed_ift.config.describe import describe
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import parse_with_origins
from mindspeed_ift.config.inference import GenerateConfig


def main(argv: list[str]) -> int:
    """Parse, load, answer, print."""
    parsed = parse_with_origins(
        GenerateConfig, argv, program="inference.py", description="Ask a tuned model.", accepted=ASKING_ACCEPTED
    )
    config = parsed.config
    config.check()
    if config.dry_run:
        print(describe(parsed))
        return 0
    tell(parsed.ignored)
    questions = [] if config.chat else _questions(config)
    from mindspeed_ift.checkpoint.disk import require_folder
    from mindspeed_ift.data.staging import write_text
    from mindspeed_ift.data.template_choice import find_row, get_template
    from mindspeed_ift.inference.answering import Answering
    from mindspeed_ift.inference.asking import make_asking_encoder
    from mindspeed_ift.inference.load import load
    from mindspeed_ift.inference.sampling import Sampling

    if config.output is not None:
        require_folder(config.output.parent, "--output")
    if config.prompt_type:  # before the model is loaded, which takes its time
        get_template(config.prompt_type, find_row(config.prompt_type, config.prompt_type_path), "--prompt-type-path")
    layout = config.layout()
    if layout.data > 1:
        raise UserError(
            f"{layout.world} processes, but TP {layout.tensor} x PP {layout.pipeline}: start as many as that, or give"
            " --tensor-model-parallel-size and --pipeline-model-parallel-size"
        )
    loaded = load(config.load, layout)
    sampling = Sampling(
        config.max_new_tokens,
        config.temperature,
        config.top_k,
        config.top_p,
        config.repetition_penalty,
        config.seed,
    )
    answering = Answering(loaded, make_asking_encoder(config, loaded.facts), sampling, config.system)
    if config.chat:
        answering.chat(sys.stdin)
        return 0
    stream = config.stream if config.stream is not None else len(questions) == 1 and sys.stdout.isatty()
    answers = answering.answer(questions, 1 if stream else config.micro_batch_size, stream=stream)
    if config.output is not None and answering.speaks:
        lines = [{**q, "answer": a} for q, a in zip(questions, answers, strict=True)]
        config.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(config.output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return 0


def _questions(config: GenerateConfig) -> list[dict[str, Any]]:
    questions: list[dict[str, Any]] = [{"prompt": text} for text in config.prompt]
    if config.input is not None:
        questions += read_questions(config.input)
    if not questions:
        raise UserError("nothing to answer: give --prompt TEXT or --input FILE")
    return questions


def read_questions(path: Path) -> list[dict[str, Any]]:
    """A question a line: "prompt", perhaps "system", and whatever else shall stand beside its answer.

    Raises:
        UserError: the file cannot be read, or a line is no such object.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError:
        raise UserError(f"--input {path} cannot be read") from None
    except UnicodeDecodeError:
        raise UserError(f"--input {path} is not UTF-8 text; convert it first") from None
    return [_question(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def _question(line: str, where: str) -> dict[str, Any]:
    try:
        question = json.loads(line)
    except ValueError:
        question = None
    texts = [question.get("prompt"), question.get("system", "")] if isinstance(question, dict) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f'{where}: not a JSON object with "prompt", and "system" if any, as text')
    return question
