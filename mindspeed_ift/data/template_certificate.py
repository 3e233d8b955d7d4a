"""What a comparison of a template with the tokenizer's own chat template found, as a manifest keeps it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.indexed import manifest_path, read_manifest

KEY = "template_certificate"
"""Of the certificate within the manifest of a dataset or checkpoint."""


@dataclass(frozen=True)
class Certificate:
    """Whether a model that is served with the tokenizer's chat template sees what it was trained on.

    Attributes:
        prompt_type: Name of the template.
        template_sha256: `Encoder.fingerprint`.
        enable_thinking: Mode of training.
        tokenizer_sha256: `Tokenizer.fingerprint`.
        chat_template_sha256: Of the source of the chat template.
        serve_with: Options of the chat template, and perhaps a ``system`` prompt, with which most records are equal.
        records: Records that were compared.
        equal: Those of which every prompt and the whole are equal, token for token.
        prompts_equal: Those of which every prompt is.
        differ: Kind of the first difference -> records.
        left_out: Reason -> records that are no samples.
    """

    prompt_type: str
    template_sha256: str
    enable_thinking: str
    tokenizer_sha256: str
    chat_template_sha256: str
    serve_with: dict[str, bool | str]
    records: int
    equal: int
    prompts_equal: int
    differ: dict[str, int]
    left_out: dict[str, int]

    @property
    def holds(self) -> bool:
        """Whether all records are equal."""
        return self.equal == self.records > 0

    def as_dict(self) -> dict[str, Any]:
        """For a file: the attributes, the verdict, and the hash over these."""
        prompts = self.prompts_equal == self.records > 0
        verdict = "equal" if self.holds else "prompts equal" if prompts else "differs"
        content = {**asdict(self), "verdict": verdict}
        return {**content, "sha256": _hash(content)}


def check_certificate(recorded: Mapping[str, Any] | None, template_sha256: str | None, where: str) -> str | None:
    """Hold the certificate of a dataset or checkpoint to the template that it was made with.

    Args:
        recorded: The certificate, as the manifest has it; None for none.
        template_sha256: Of the template, as the manifest has it.
        where: The manifest belongs to.

    Returns:
        A line for the user where the certificate says that the templates differ.

    Raises:
        UserError: The certificate was altered, or is about another template.
    """
    if recorded is None:
        return None
    content = {key: value for key, value in recorded.items() if key != "sha256"}
    if recorded.get("sha256") != _hash(content) or recorded.get("template_sha256") != template_sha256:
        raise UserError(f"the template certificate of {where} is not about its template; run verify-template again")
    if recorded["verdict"] == "equal":
        return None
    records, otherwise, prompts = (recorded["records"] - recorded.get(key, 0) for key in ("", "equal", "prompts_equal"))
    return (
        f"the template certificate of {where}: the tokenizer's chat template writes {otherwise} of {records} records"
        f" otherwise than --prompt-type {recorded['prompt_type']} ({prompts} in a prompt); ask the tuned model with that"
        " --prompt-type, as generate does"
    )


def add_to_dataset(certificate: Certificate, prefix: str) -> None:
    """Write the certificate into the manifest of a dataset.

    Raises:
        UserError: There is no manifest, or the dataset was made with another template or tokenizer.
    """
    manifest = read_manifest(prefix)
    if manifest is None:
        raise UserError(f"--data-path {prefix} has no manifest; prepare the data with preprocess")
    for key, name in (("template_sha256", "--prompt-type"), ("tokenizer_sha256", "--tokenizer")):
        if manifest.get(key) != getattr(certificate, key):
            raise UserError(f"--data-path {prefix} was made with another {name} than the one compared; give the same")
    if manifest.get("enable_thinking") != certificate.enable_thinking:
        raise UserError(
            f"--data-path {prefix} was made with --enable-thinking {manifest.get('enable_thinking')}; give the same"
        )
    write_json(manifest_path(prefix), {**manifest, KEY: certificate.as_dict()})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that appears whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
