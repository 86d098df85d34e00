"""Reads uint16 as bfloat16, for formats that have no name for bfloat16 and store its bits."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from streamkm.sources.base import Described
from streamkm.sources.beside import beside_of
from streamkm.sources.concat import parts_of
from streamkm.sources.ids import ids_of
from streamkm.sources.within import would_take

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from streamkm.sources.base import ArraySpec, RowRange, Source
    from streamkm.sources.beside import BesideColumns
    from streamkm.sources.concat import Part
    from streamkm.sources.ids import IdColumn

__all__ = ["Bfloat16Source"]


class Bfloat16Source(Described):
    """A source of uint16 whose elements are the bits of bfloat16.

    Parameters
    ----------
    source : Source
        Rows of uint16; closed with this one.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._spec = replace(source.spec, dtype="bfloat16")

    @property
    def name(self) -> str:
        """Where the rows come from."""
        return self._source.name

    @property
    def spec(self) -> ArraySpec:
        """Shape, dtype (bfloat16) and layout."""
        return self._spec

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out` with `rows`; see `Source.read`."""
        self._source.read(rows, out)

    def fingerprint(self) -> str:
        """Hex digest of the stored array's fingerprint and the word bfloat16."""
        return hashlib.sha256(f"bfloat16 {self._source.fingerprint()}".encode()).hexdigest()

    def would_take(self, path: Path) -> bool:
        """Whether what is written at `path` would become part of the stored array."""
        return would_take(self._source, path)

    def parts(self) -> list[Part]:
        """The files of the stored array, if it has several."""
        return parts_of(self._source)

    def ids(self) -> IdColumn | None:
        """The ids of the stored array, if it has any."""
        return ids_of(self._source)

    def beside(self) -> BesideColumns | None:
        """The columns that are no features, if it is a table."""
        return beside_of(self._source)

    def notes(self) -> list[str]:
        """The notes of the stored array."""
        return self._source.notes()

    def close(self) -> None:
        """Close the stored array."""
        self._source.close()
