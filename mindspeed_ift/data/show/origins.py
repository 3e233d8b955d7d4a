"""A ledger in, the records out of which each document was made: file and number, sample by sample."""

from __future__ import annotations

import numpy as np

from mindspeed_ift.config.errors import UserError, first_line
from mindspeed_ift.data.ledger_file import PLACES, ledger_path
from mindspeed_ift.data.packing_algorithms import Packs

_MOST_TOLD = 8


def told(origins: list[str], number: int, samples: int) -> str:
    """Where a sample of a document is from; all of the document where its samples are not told apart. "" if unknown.

    Args:
        origins: Of the samples of the document.
        number: Of the sample, from 1.
        samples: How many samples of the document are told apart.
    """
    if samples and len(origins) == samples:
        return origins[number - 1]
    return ", ".join(origins[:_MOST_TOLD]) + (", ..." if len(origins) > _MOST_TOLD else "")


class Origins:
    """Document number -> ``FILE:RECORD`` of each of its samples, in the order in which they stand.

    Args:
        prefix: Of the dataset; its ledger tells.
        documents: How many it has.
        packed: They are rows of several samples.
        packs: Rows made of the documents, whose records are asked for instead; None for the documents themselves.

    Raises:
        UserError: The ledger is there and cannot be read.
    """

    def __init__(self, prefix: str, documents: int, packed: bool, packs: Packs | None = None) -> None:
        self._known = False
        path = ledger_path(prefix)
        if not path.is_file():
            return
        import pyarrow
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(path) as file:
                names = ("file", "record", "samples", *(PLACES if packed else ()))
                if not set(names) <= set(file.schema_arrow.names):
                    return
                table = file.read(columns=list(names))
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({first_line(error)}); prepare or copy the dataset again"
            ) from error
        self._files, self._records = table["file"], table["record"].to_numpy()
        self._ends = np.cumsum(table["samples"].to_numpy(), dtype=np.int64)
        samples = int(self._ends[-1]) if len(self._ends) else 0
        if packed:
            rows, positions = (table[name].combine_chunks().flatten().to_numpy() for name in PLACES)
            self._order = np.lexsort((positions, rows))
            self._starts = np.searchsorted(rows[self._order], np.arange(documents + 1))
            self._known = len(rows) == samples and (samples == 0 or 0 <= rows.min() <= rows.max() < documents)
        else:
            self._order = np.arange(documents) if packs is None else packs.samples
            self._starts = np.arange(documents + 1) if packs is None else packs.starts
            self._known = samples == documents

    def __getitem__(self, number: int) -> list[str]:
        """Of one document, or row of packs; empty where no ledger tells."""
        if not self._known:
            return []
        samples = self._order[self._starts[number] : self._starts[number + 1]]
        found = np.searchsorted(self._ends, samples, side="right").tolist()
        return [f"{self._files[row].as_py()}:{self._records[row]}" for row in found]
