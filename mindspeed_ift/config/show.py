"""Flags of ``show_data.py``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mindspeed_ift.config.errors import UserError

_NUMBERS = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class ShowConfig:
    """Which documents of which dataset are shown, and where."""

    data_path: str = ""
    """Dataset: the --output-prefix of preprocess_data.py. May also be the first word of the line, without the flag."""
    tokenizer_name_or_path: str = ""
    """Tokenizer folder; default: the one that the dataset's manifest names."""
    pack_index: Path | None = None
    """Show the rows that this file of repack_dataset.py makes of the dataset."""
    start: int = 0
    """First document shown, from 0."""
    count: int = 5
    """Documents shown from there on."""
    documents: str = ""
    """Documents shown instead, by number: "7", "3,17,20-25"."""
    html: Path | None = None
    """File for a page of figures and records, to be opened in a browser; nothing else is printed then."""

    def check(self) -> None:
        """Refuse what cannot be shown.

        Raises:
            UserError: with the remedy.
        """
        if not self.data_path.strip():
            raise UserError("no dataset is named: give the --output-prefix of preprocess_data.py as the first word")
        if self.start < 0:
            raise UserError(f"--start {self.start} must not be negative")
        if self.count < 1:
            raise UserError(f"--count {self.count} is too small; give at least 1")
        self._named()
        if self.html is not None and (self.html.is_dir() or not self.html.absolute().parent.is_dir()):
            raise UserError(f"--html {self.html} is not a file in a folder that exists; choose another place")
        if self.html is not None and self.html.exists() and self.html.suffix.lower() not in (".html", ".htm"):
            raise UserError(f"--html {self.html} is there and is no page; give a name that ends in .html")

    def chosen(self, total: int) -> list[int]:
        """The numbers of the documents to be shown.

        Args:
            total: documents of the dataset.

        Raises:
            UserError: there is none of such a number.
        """
        named = self._named()
        beyond = [first if first >= total else last for first, last in named if last >= total]
        if not named and self.start >= total:
            beyond = [self.start]
        if beyond:
            flag = "--documents" if named else "--start"
            raise UserError(f"{flag}: there is no document {beyond[0]}; the dataset has 0 to {total - 1}")
        if not named:
            return list(range(self.start, min(self.start + self.count, total)))
        return [number for first, last in named for number in range(first, last + 1)]

    def _named(self) -> list[tuple[int, int]]:
        """First and last of each range of ``--documents``."""
        ranges = []
        for part in filter(None, (part.strip() for part in self.documents.split(","))):
            found = _NUMBERS.fullmatch(part)
            if not found or int(found[2] or found[1]) < int(found[1]):
                raise UserError(f"--documents: '{part}' is no number and no range; write for example 3,17,20-25")
            ranges.append((int(found[1]), int(found[2] or found[1])))
        return ranges
