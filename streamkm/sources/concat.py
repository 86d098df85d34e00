"""Joins several sources along rows: the shards of a folder or a glob."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from streamkm.errors import SourceError
from streamkm.sources.base import ArraySpec, Described, Grid, RowRange, common_nodata
from streamkm.sources.beside import JoinedBeside, beside_of
from streamkm.sources.ids import JoinedIds, ids_of
from streamkm.sources.layout import check_read
from streamkm.sources.names import in_order
from streamkm.sources.within import would_take
from streamkm.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np

    from streamkm.sources.base import Source
    from streamkm.sources.beside import BesideColumns
    from streamkm.sources.ids import IdColumn

__all__ = ["ConcatSource", "Part", "parts_of"]

#: Bytes of a shard that is read as one block, at most, if the shards' own blocks do not line up.
SHARD_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """Where the rows of one file lie in a source of several files."""

    name: str
    """The file, as it was given."""
    first_row: int
    """Number of its first row in the whole."""
    n_rows: int
    """Its rows."""


@runtime_checkable
class _Joined(Protocol):
    """A source of several files."""

    def parts(self) -> list[Part]:
        """Its files, in the order of their rows."""


def parts_of(source: Source) -> list[Part]:
    """The files of `source` in the order of their rows; none for a source of one file."""
    return source.parts() if isinstance(source, _Joined) else []


class ConcatSource(Described):
    """Sources with the same features and dtype, one after the other.

    Features that have names are matched by name, in the order of the first part.

    Parameters
    ----------
    parts : sequence of Source
        At least one, in order of rows; closed with this source.
    name : str
        Name of the whole, for errors.
    remarks : tuple of str
        Notes that come before those of the parts.
    takes : callable, optional
        Tells whether a file written at a path would be one more part.
    empty : sequence of (int, str)
        Files without rows: how many of `parts` come before each, and its name.

    Raises
    ------
    SourceError
        If features, their names, the name of the array or dtype differ; the message names both
        parts.
    """

    def __init__(
        self,
        parts: Sequence[Source],
        name: str,
        *,
        remarks: tuple[str, ...] = (),
        takes: Callable[[Path], bool] | None = None,
        empty: Sequence[tuple[int, str]] = (),
    ) -> None:
        if not parts:
            raise SourceError(f"{name}: there is no part to read")
        parts = _with_room_for_nulls(parts)
        first = parts[0]
        for part in parts[1:]:
            _check_alike(first, part)
        named = next((part for part in parts if part.spec.feature_names), first)
        names = named.spec.feature_names
        self._parts = tuple(in_order(part, names, named.name) for part in parts)
        self._name = name
        self._remarks = remarks
        self._takes = takes
        self._empty = tuple(empty)
        self._closed = False
        #: First row of each part.
        self._starts = list(accumulate((part.spec.n_rows for part in parts[:-1]), initial=0))
        specs = [part.spec for part in parts]
        block_rows = _block_rows(specs)
        layouts = {spec.layout for spec in specs}
        self._spec = ArraySpec(
            n_rows=sum(spec.n_rows for spec in specs),
            n_features=first.spec.n_features,
            dtype=first.spec.dtype,
            block_rows=block_rows,
            layout=f"{counted(len(specs), 'part')}, "
            + (layouts.pop() if len(layouts) == 1 else "mixed"),
            scratch_bytes=max(_scratch_bytes(spec, block_rows) for spec in specs),
            # The largest, because every part reads it at its share of a block's cost.
            piece_rows=max(spec.piece_rows or spec.block_rows for spec in specs),
            feature_names=names,
            repeated_name=first.spec.repeated_name,
            grid=_joined_grid([spec.grid for spec in specs]),
            member=first.spec.member,
            nodata=(nodata := common_nodata(specs)),
            marked=tuple(value for value in specs[0].marked if value in nodata),
            is_decoded=any(spec.is_decoded for spec in specs),
            is_scaled=any(spec.is_scaled for spec in specs),
            is_remote=any(spec.is_remote for spec in specs),
        )

    @property
    def name(self) -> str:
        """The folder or pattern that gave the parts."""
        return self._name

    @property
    def spec(self) -> ArraySpec:
        """Shape, dtype and layout of the whole."""
        return self._spec

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out` with `rows`, which may span several parts; see `Source.read`."""
        check_read(self._name, self._spec, rows, out, closed=self._closed)
        index = bisect_right(self._starts, rows.start) - 1
        done = rows.start
        while done < rows.stop:
            part, first = self._parts[index], self._starts[index]
            stop = min(rows.stop, first + part.spec.n_rows)
            part.read(
                RowRange(done - first, stop - first), out[done - rows.start : stop - rows.start]
            )
            done = stop
            index += 1

    def parts(self) -> list[Part]:
        """The files, in the order of their rows, those without rows in their places."""
        found: list[list[Part]] = []
        for first, part in zip(self._starts, self._parts, strict=True):
            inner = parts_of(part) or [Part(part.name, 0, part.spec.n_rows)]
            found.append([Part(each.name, first + each.first_row, each.n_rows) for each in inner])
        starts = [*self._starts, self._spec.n_rows]
        found.append([])
        # From the last on, so that each comes before those that were inserted already.
        for before, name in reversed(self._empty):
            found[before].insert(0, Part(name, starts[before], 0))
        return [part for several in found for part in several]

    def ids(self) -> IdColumn | None:
        """The ids of all parts, if the first has any."""
        has_ids = ids_of(self._parts[0]) is not None
        return JoinedIds(list(zip(self._parts, self._starts, strict=True))) if has_ids else None

    def beside(self) -> BesideColumns | None:
        """The columns that are no features, if all parts are tables."""
        found = [beside_of(part) for part in self._parts]
        tables = [
            (columns, start, part.spec.n_rows)
            for columns, start, part in zip(found, self._starts, self._parts, strict=True)
            if columns is not None
        ]
        return JoinedBeside(tables) if len(tables) == len(self._parts) else None

    def in_order(self, names: tuple[str, ...]) -> Source:
        """A view with the features of every part in the order of `names`."""
        parts = [in_order(part, names, self._name) for part in self._parts]
        return ConcatSource(
            parts, self._name, remarks=self._remarks, takes=self._takes, empty=self._empty
        )

    def fingerprint(self) -> str:
        """Hex digest of the parts' fingerprints, in order."""
        digest = hashlib.sha256()
        for part in self._parts:
            digest.update(part.fingerprint().encode())
        return digest.hexdigest()

    def would_take(self, path: Path) -> bool:
        """Whether what is written at `path` would become one more part, or part of one."""
        is_part = self._takes is not None and self._takes(path)
        return is_part or any(would_take(part, path) for part in self._parts)

    def notes(self) -> list[str]:
        """The notes of the whole, then those of the parts, each once."""
        return [
            *self._remarks,
            *self._grid_notes(),
            *_notes_of_parts(self._parts),
        ]

    def _grid_notes(self) -> list[str]:
        """A note if the parts are maps that do not join to one."""
        first = self._parts[0]
        for part in self._parts[1:]:
            grids = [first.spec.grid, part.spec.grid]
            if _joined_grid(grids) is None and any(grid and len(grid.shape) > 1 for grid in grids):
                note = (
                    f"{self._name}: {_axes(first)} and {_axes(part)} do not join along the first "
                    "axis, so their labels in a Zarr store have one axis; predict them one by one "
                    "for maps"
                )
                return [note]
        return []

    def close(self) -> None:
        """Close all parts."""
        self._closed = True
        for part in self._parts:
            part.close()


def _notes_of_parts(parts: Sequence[Source]) -> list[str]:
    """The notes of all parts; one that several have names the first and the number of others."""
    first: dict[str, str] = {}
    times: Counter[str] = Counter()
    for part in parts:
        for note in part.notes():
            words = note.removeprefix(part.name)
            first.setdefault(words, note)
            times[words] += 1
    notes = []
    for words, note in first.items():
        whose, colon, what = words.partition(": ")
        if times[words] > 1 and len(words) < len(note):
            note = f"{note.removesuffix(words)}{whose} and {times[words] - 1:,} more{colon}{what}"
        notes.append(note)
    return notes


def _joined_grid(grids: Sequence[Grid | None]) -> Grid | None:
    """The grids one after the other along their first axis; None if they differ in another.

    The coordinates of several are those of none: the first axis goes on from part to part, and
    tiles that lie side by side have the same shape too.
    """
    known = [grid for grid in grids if grid is not None]
    if len(known) < len(grids) or len({(grid.dims, grid.shape[1:]) for grid in known}) > 1:
        return None
    if len(known) == 1:
        return known[0]
    first = known[0]
    return Grid((sum(grid.shape[0] for grid in known), *first.shape[1:]), first.dims)


def _axes(part: Source) -> str:
    """The row axes of `part` in words: ``y 5, x 6 of tile.zarr``."""
    grid = part.spec.grid
    if grid is None:
        return f"{part.spec.n_rows} rows of {part.name}"
    names = grid.dims or ("",) * len(grid.shape)
    extents = zip(names, grid.shape, strict=True)
    return f"{', '.join(f'{name} {extent}'.strip() for name, extent in extents)} of {part.name}"


@runtime_checkable
class _Widenable(Protocol):
    """A source of integers that can read them as floats."""

    def with_room_for_nulls(self) -> Source:
        """A view whose numbers are floats that hold the integers; closed with this source."""


def _with_room_for_nulls(parts: Sequence[Source]) -> list[Source]:
    """`parts` with floats in place of integers, if some of them are floats.

    A column of integers is one of floats where a shard has nulls in it.
    """
    is_float = [part.spec.storage.kind == "f" for part in parts]
    if any(is_float) and not all(is_float):
        return [p.with_room_for_nulls() if isinstance(p, _Widenable) else p for p in parts]
    return list(parts)


def _check_alike(first: Source, part: Source) -> None:
    """`SourceError` unless `part` has the features, the dtype and the array name of `first`."""
    one, other = first.spec.member, part.spec.member
    if one and other and one != other:
        raise SourceError(
            f"shards must hold the same array: {first.name} has {one}, {part.name} has {other}; "
            "choose an array that all of them hold, or take one of them out"
        )
    for what, expected, found in (
        ("features", first.spec.n_features, part.spec.n_features),
        ("dtype", first.spec.dtype, part.spec.dtype),
    ):
        if expected != found:
            raise SourceError(
                f"shards must agree in {what}: {first.name} has {expected}, "
                f"{part.name} has {found}; take one of them out, or convert it"
            )


def _block_rows(specs: Sequence[ArraySpec]) -> int:
    """Rows of a block of the whole, which the reading plan cuts at multiples of this number.

    The best choice is the parts' own block, if it divides every part but the last: then no block
    crosses from one part to the next, and no chunk is read twice. The next best is a whole part, if
    all parts are equal and small. Otherwise blocks cross from part to part anyway, and the largest
    block of a part is taken: a smaller one would let one tiny part cut the whole into tiny blocks.
    """
    block = max(spec.block_rows for spec in specs)
    inner = specs[:-1]
    if all(spec.n_rows % block == 0 for spec in inner):
        return block
    shard = specs[0].n_rows
    are_equal = all(spec.n_rows == shard for spec in inner) and specs[-1].n_rows <= shard
    if are_equal and shard * specs[0].row_bytes <= SHARD_BLOCK_BYTES:
        return shard
    return block


def _scratch_bytes(part: ArraySpec, block_rows: int) -> int:
    """Bytes that `part` allocates to read its rows of a block of the whole."""
    # One block of the part more where its blocks do not line up with those of the whole.
    touched = -(-block_rows // part.block_rows) + bool(block_rows % part.block_rows)
    existing = -(-part.n_rows // part.block_rows)
    return part.scratch_bytes * min(touched, existing)
