"""``mindspeed-ift generate`` / ``tools/inference.py``: answers from a Hugging Face folder or a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindspeed_ift.config.describe import describe
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import parse_with_origins
from mindspeed_ift.config.inference import GenerateConfig

if TYPE_CHECKING:
    from mindspeed_ift.data.encode import Encoder


def main(argv: list[str]) -> int:
    """Parse, load, answer, print."""
    parsed = parse_with_origins(GenerateConfig, argv, program="inference.py", description="Ask a tuned model.")
    config = parsed.config
    config.check()
    if config.dry_run:
        print(describe(parsed))
        return 0
    questions = _questions(config)
    from mindspeed_ift.checkpoint.disk import require_folder
    from mindspeed_ift.data.conversation import Message, Role
    from mindspeed_ift.data.template_choice import find_row, get_template
    from mindspeed_ift.devices.device import current
    from mindspeed_ift.inference.generate import Sampling, generate, model_step
    from mindspeed_ift.inference.load import load

    if config.output is not None:
        require_folder(config.output.parent, "--output")
    if config.prompt_type:  # before the model is loaded, which takes its time
        get_template(config.prompt_type, find_row(config.prompt_type, config.prompt_type_path), "--prompt-type-path")
    loaded = load(config.load)
    encoder = _encoder(config, loaded.facts)
    tokenizer = encoder.tokenizer
    prompts = [encoder.prompt_ids([Message(Role.USER, q["prompt"])], q.get("system", config.system)) for q in questions]
    _check_vocabulary(prompts, loaded.model.architecture.vocab_size, config)
    sampling = Sampling(config.max_new_tokens, config.temperature, config.top_k, config.top_p, config.seed)
    step = model_step(loaded.model, current().torch_device)
    answers: list[str] = []
    for start in range(0, len(prompts), config.micro_batch_size):
        batch = prompts[start : start + config.micro_batch_size]
        for ids in generate(step, batch, [*encoder.stop_ids, tokenizer.pad_id], sampling):
            answers.append(tokenizer.decode(ids))
            print(f"> {questions[len(answers) - 1]['prompt']}\n{answers[-1]}\n", flush=True)
    if config.output is not None:
        _write(config.output, [{**q, "answer": a} for q, a in zip(questions, answers, strict=True)])
    return 0


def _encoder(config: GenerateConfig, facts: dict[str, Any]) -> Encoder:
    """Writes prompts as training wrote them; refuses a template that is not that of the checkpoint any more."""
    from mindspeed_ift.data.encode import EncodeOptions
    from mindspeed_ift.data.template_certificate import KEY, check_certificate, check_tokenizer
    from mindspeed_ift.data.template_choice import check_definition, find_row, get_template, make_encoder
    from mindspeed_ift.data.tokenizer import load_tokenizer

    path = config.tokenizer_name_or_path or facts.get("tokenizer")
    if path is None:
        raise UserError("--tokenizer-name-or-path is missing, and the checkpoint names no tokenizer")
    name = config.prompt_type or facts.get("prompt_type") or "qwen3"
    trained = facts if facts.get("prompt_type") == name else {}
    row = find_row(name, config.prompt_type_path) or trained.get("template_row")
    thinking = config.enable_thinking or facts.get("enable_thinking") or "none"
    template = get_template(name, row, config.prompt_type_path or f"--load {config.load}")
    tokenizer = load_tokenizer(path)
    encoder = make_encoder(template, tokenizer, EncodeOptions(enable_thinking=thinking))
    check_definition(encoder.fingerprint, trained.get("template_sha256"), name, f"--load {config.load}")
    check_certificate(facts.get(KEY), facts.get("template_sha256"), f"--load {config.load}")
    check_tokenizer(facts.get(KEY), tokenizer, f"--load {config.load}")
    if facts.get("prompt_type") not in (None, "", name):
        print(f"notice: asked with --prompt-type {name}, but the model was trained with {facts['prompt_type']}")
    return encoder


def _check_vocabulary(prompts: list[list[int]], vocab_size: int, config: GenerateConfig) -> None:
    highest = max(map(max, prompts))
    if highest >= vocab_size:
        raise UserError(
            f"the tokenizer gives the id {highest}, but the model of --load {config.load} has the ids 0 to {vocab_size - 1}; "
            "give --tokenizer-name-or-path the tokenizer it was trained with"
        )


def _questions(config: GenerateConfig) -> list[dict[str, Any]]:
    questions = [{"prompt": text} for text in config.prompt]
    if config.input is not None:
        try:
            lines = config.input.read_text(encoding="utf-8").splitlines()
        except OSError:
            raise UserError(f"--input {config.input} cannot be read") from None
        for number, line in enumerate(lines, 1):
            try:
                questions.append({"prompt": str(json.loads(line)["prompt"]), **json.loads(line)})
            except (ValueError, KeyError, TypeError):
                raise UserError(f'{config.input}:{number}: not a JSON object with "prompt"') from None
    if not questions:
        raise UserError("nothing to answer: give --prompt TEXT or --input FILE")
    return questions


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    os.replace(partial, path)
