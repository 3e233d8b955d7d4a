"""What a comparison of a template with the tokenizer's own chat template found, as a manifest keeps it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.indexed import manifest_path, read_manifest
from mindspeed_ift.data.staging import write_text

if TYPE_CHECKING:
    from mindspeed_ift.data.chat_template import ChatTemplate
    from mindspeed_ift.data.encode import Encoder
    from mindspeed_ift.data.tokenizer import Tokenizer

KEY = "template_certificate"
"""Of the certificate within the manifest of a dataset or checkpoint."""

_NONE = "none"
_OF_SERVING = (
    "prompt_type",
    "template_sha256",
    "tokenizer_sha256",
    "enable_thinking",
    "chat_template_sha256",
    "serve_with",
)


@dataclass(frozen=True)
class Certificate:
    """Whether a model that is served with the tokenizer's chat template sees what it was trained on.

    Attributes:
        prompt_type: Name of the template.
        template_sha256: `Encoder.fingerprint`.
        enable_thinking: Mode of training.
        tokenizer_sha256: `Tokenizer.fingerprint`.
        chat_template_sha256: See `chat_template_sha256`.
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

    def plus(self, other: Certificate) -> Certificate:
        """Of the records of both, which are of one template and tokenizer."""
        counts = {key: getattr(self, key) + getattr(other, key) for key in ("records", "equal", "prompts_equal")}
        kinds = {key: Counter(getattr(self, key)) + Counter(getattr(other, key)) for key in ("differ", "left_out")}
        return replace(self, **counts, **{key: dict(found.most_common()) for key, found in kinds.items()})

    def as_dict(self) -> dict[str, Any]:
        """For a file: the attributes, the verdict, and the hash over these."""
        prompts = self.prompts_equal == self.records > 0
        verdict = "equal" if self.holds else "prompts equal" if prompts else "differs"
        content = {**asdict(self), "verdict": verdict}
        return {**content, "sha256": _hash(content)}


def no_certificate(reason: str, tokenizer: Tokenizer, encoder: Encoder | None = None) -> dict[str, Any]:
    """For a file in the place of a certificate, where nothing can be compared.

    Args:
        reason: Why.
        tokenizer: Of the dataset.
        encoder: As training writes; None for plain text.
    """
    about = {
        "prompt_type": "" if encoder is None else encoder.template.name,
        "template_sha256": None if encoder is None else encoder.fingerprint,
        "tokenizer_sha256": tokenizer.fingerprint,
    }
    return _none(reason, about)


def _none(reason: str, about: Mapping[str, Any]) -> dict[str, Any]:
    content = {**about, "verdict": _NONE, "reason": reason}
    return {**content, "sha256": _hash(content)}


def joined(certificates: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """The certificate of several datasets of one template and tokenizer together, as a file has it.

    Args:
        certificates: Of all of them, as their manifests have them; None for one without.

    Returns:
        Their sum; one of verdict "none" where some part has none, or parts are to be served in different ways; None if
        no part has one.
    """
    first = next((one for one in certificates if one is not None), None)
    if first is None:
        return None
    reason = _why_apart(certificates, first)
    if reason:
        return _none(reason, {key: first[key] for key in ("prompt_type", "template_sha256", "tokenizer_sha256")})
    names = {one.name for one in fields(Certificate)}
    parts = [Certificate(**{name: one[name] for name in names}) for one in certificates if one is not None]
    return reduce(Certificate.plus, parts).as_dict()


def _why_apart(certificates: Sequence[Mapping[str, Any] | None], first: Mapping[str, Any]) -> str:
    """Why certificates have no sum; "" if they have one."""
    for one in certificates:
        if one is None or one["verdict"] == _NONE:
            return "one of its parts has none" if one is None else one["reason"]
        if any(one[key] != first.get(key) for key in _OF_SERVING):
            return "its parts are to be served in different ways"
    return ""


def told(recorded: Mapping[str, Any]) -> str:
    """A line that says what a certificate found.

    Args:
        recorded: The certificate, as a file has it.
    """
    if recorded["verdict"] == _NONE:
        return f"template certificate: none, because {recorded['reason']}"
    records, name = recorded["records"], recorded["prompt_type"]
    if recorded["verdict"] == "equal":
        return (
            f"template certificate: the first {records} conversations agree: served with the tokenizer's chat template"
            f" ({serving_options(recorded['serve_with'])}), the model sees what --prompt-type {name} trains it on"
        )
    prompts = records - recorded["prompts_equal"]
    return (
        f"template certificate: {records - recorded['equal']} of the first {records} conversations differ ({prompts} of"
        f" them in a prompt; most in: {next(iter(recorded['differ']))}) between --prompt-type {name} and the tokenizer's"
        " chat template; mindspeed-ift verify-template shows where"
    )


def serving_options(serve_with: Mapping[str, bool | str]) -> str:
    """How to serve, for people."""
    return ", ".join(f"{name}={value!r}" for name, value in serve_with.items()) or "no options"


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
    if recorded.get("sha256") != _hash(content) or recorded.get("template_sha256") not in (None, template_sha256):
        raise UserError(f"the template certificate of {where} is not about its template; run verify-template again")
    if recorded["verdict"] in ("equal", _NONE):
        return None
    records, otherwise, prompts = (recorded["records"] - recorded.get(key, 0) for key in ("", "equal", "prompts_equal"))
    return (
        f"the template certificate of {where}: the tokenizer's chat template writes {otherwise} of {records} records"
        f" otherwise than --prompt-type {recorded['prompt_type']} ({prompts} in a prompt); ask the tuned model with that"
        " --prompt-type, as generate does"
    )


def check_tokenizer(recorded: Mapping[str, Any] | None, tokenizer: Tokenizer, where: str) -> str | None:
    """Hold a tokenizer to the one that a certificate is about.

    Args:
        recorded: The certificate, as a manifest has it; None for none.
        tokenizer: That reads or writes the ids of the model.
        where: The manifest belongs to.

    Returns:
        A line for the user where the chat template is another than the one that was compared.

    Raises:
        UserError: The tokenizer gives other ids.
    """
    if recorded is None:
        return None
    if recorded["tokenizer_sha256"] != tokenizer.fingerprint:
        raise UserError(
            f"tokenizer {tokenizer.path} is another one than that of {where} (by its template certificate); give the"
            " tokenizer that its data was prepared with"
        )
    if recorded["verdict"] == _NONE or recorded["chat_template_sha256"] == chat_template_sha256(
        tokenizer.chat_template
    ):
        return None
    return (
        f"the chat template of tokenizer {tokenizer.path} is another one than the template certificate of {where} is"
        " about; verify-template compares it"
    )


def chat_template_sha256(template: ChatTemplate | None) -> str | None:
    """What tells a chat template from another one."""
    return None if template is None else hashlib.sha256(template.source.encode()).hexdigest()


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
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
