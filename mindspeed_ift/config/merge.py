"""What is asked of a merge of datasets."""

from __future__ import annotations

from dataclasses import dataclass, field

from mindspeed_ift.config.data import check_prefix
from mindspeed_ift.config.errors import UserError


@dataclass(frozen=True)
class MergeConfig:
    """Options of ``merge_datasets.py``."""

    input: tuple[str, ...] = field(default=(), metadata={"repeatable": True})
    """Datasets to join: a folder, which means all in it sorted by name, or prefixes, also with commas between or each
    with its own --input."""

    output_prefix: str = ""
    """Where the joined dataset goes; its folder is made."""

    merge_group_keys: tuple[str, ...] = ()
    """Columns to join, by the names of their files: packed_input_ids_document and so on; all unless given."""

    dry_run: bool = False
    """Print the resolved configuration and stop."""

    def check(self) -> None:
        """Refuse what cannot be joined.

        Raises:
            UserError: With the remedy.
        """
        for flag, value in (("--input", "".join(self.input)), ("--output-prefix", self.output_prefix)):
            if not value.strip():
                raise UserError(f"{flag} is missing; give a path")
        check_prefix(self.output_prefix)
        for key in self.merge_group_keys:
            if not key.endswith("_document"):
                raise UserError(
                    f"--merge-group-keys {key}: give the end of the files' names, as packed_{key}_document or text_document"
                )
            if self.merge_group_keys.count(key) > 1:
                raise UserError(f"--merge-group-keys names {key} twice")
        kinds = {key.startswith("packed_") for key in self.merge_group_keys}
        if len(kinds) > 1:
            raise UserError("--merge-group-keys names columns of instruction data and of plain text; join each apart")
