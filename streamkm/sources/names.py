"""Names of features: which column of a source is which.

Two tables with the same columns in another order hold the same features. Reading them by position
gives an array of the right shape and wrong numbers, so features are matched by name wherever both
sides have names. A side without names is read by position, as nothing else is known.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from streamkm.errors import SourceError
from streamkm.sources.base import Described
from streamkm.sources.layout import check_read
from streamkm.sources.within import would_take

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamkm.sources.base import ArraySpec, RowRange, Source

__all__ = ["in_order", "shown"]

#: Names that a message lists, at most.
NAMES_SHOWN = 8


@runtime_checkable
class _Orderable(Protocol):
    """A source that can read its features in another order, without a copy of what it reads."""

    def in_order(self, names: tuple[str, ...]) -> Source:
        """A view of this source with its features in the order of `names`, closed with it."""


def in_order(source: Source, names: Sequence[str], whose: str) -> Source:
    """`source` with its features in the order of `names`.

    Parameters
    ----------
    source : Source
        The rows.
    names : sequence of str
        The names in the order that is wanted; empty if none are known.
    whose : str
        What the names belong to, for the message.

    Returns
    -------
    Source
        `source` itself if it has this order already, or if one side has no names. Else a view of
        it, which is closed with it.

    Raises
    ------
    SourceError
        If the names differ; the message names both orders. Or if `source` has names, and one of
        them several times.
    """
    found, wanted = source.spec.feature_names, tuple(names)
    if wanted and (repeated := source.spec.repeated_name):
        raise SourceError(
            f"names of features must be unique where they are matched: {whose} has "
            f"{shown(wanted)}, {source.name} has {repeated} more than once; make them unique, "
            "as AnnData's var_names_make_unique() does"
        )
    if not found or not wanted or found == wanted:
        return source
    both = f"{whose} has {shown(wanted)}, {source.name} has {shown(found)}"
    if sorted(found) != sorted(wanted):
        only = [*(n for n in wanted if n not in found), *(n for n in found if n not in wanted)]
        # Of many names those that differ may not be among the first.
        odd = f" (only one of them has {shown(only)})" if len(only) < len(wanted) else ""
        raise SourceError(
            f"names of features must agree: {both}{odd}; rename those of one, or choose the same "
            "columns or variables of both"
        )
    return source.in_order(wanted) if isinstance(source, _Orderable) else _Reordered(source, wanted)


class _Reordered(Described):
    """A view of a source with its features in another order; each read takes a copy."""

    def __init__(self, source: Source, names: tuple[str, ...]) -> None:
        spec = source.spec
        self._source = source
        places = {name: place for place, name in enumerate(spec.feature_names)}
        self._order = [places[name] for name in names]
        self._spec = replace(
            spec,
            feature_names=names,
            scratch_bytes=spec.scratch_bytes + spec.block_rows * spec.row_bytes,
        )

    @property
    def name(self) -> str:
        """Where the rows come from."""
        return self._source.name

    @property
    def spec(self) -> ArraySpec:
        """That of the source, with the names in their new order."""
        return self._spec

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out` with `rows`; see `Source.read`."""
        check_read(self.name, self._spec, rows, out, closed=False)
        for some in rows.split(self._spec.block_rows):
            stored = np.empty((len(some), self._spec.n_features), self._spec.storage)
            self._source.read(some, stored)
            target = out[some.start - rows.start : some.stop - rows.start]
            np.take(stored, self._order, axis=1, out=target)

    def fingerprint(self) -> str:
        """Hex digest of the source's fingerprint and the order."""
        return hashlib.sha256(f"{self._order} {self._source.fingerprint()}".encode()).hexdigest()

    def would_take(self, path: Path) -> bool:
        """Whether what is written at `path` would become part of the source."""
        return would_take(self._source, path)

    def notes(self) -> list[str]:
        """The notes of the source."""
        return self._source.notes()

    def close(self) -> None:
        """Close the source."""
        self._source.close()


def shown(names: Sequence[str]) -> str:
    """`names` as a phrase; of many only the first."""
    listed = ", ".join(names[:NAMES_SHOWN])
    return f"{listed}, ... ({len(names):,} in all)" if len(names) > NAMES_SHOWN else listed
