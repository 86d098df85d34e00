"""What the user calls rows by: ids, texts or names of image files, looked up by row number.

They are read from a list (a text file with a line for each row, or a ``.npy`` array) or from a
column of the source, in order and never as a whole: only those of the rows that are shown stay in
memory.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from streamkm.errors import ConfigError, Option, StreamkmError
from streamkm.sources import ids_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from streamkm.sources import IdColumn, Source

__all__ = ["COLUMN", "RowValues", "column_values", "open_values"]

#: What the name of a column of the source begins with.
COLUMN = "column:"


class RowValues(Protocol):
    """A value for each row."""

    folder: Path
    """The folder that relative names of files begin in."""

    def at(self, rows: Collection[int]) -> dict[int, str]:
        """The values of `rows`, as text."""


def open_values(
    option: str, given: Any, n_rows: int, open_column: Callable[[str], Source]
) -> RowValues:
    """The values that the setting `option` names.

    Parameters
    ----------
    option : str
        Name of the setting, for errors.
    given : str, path or sequence
        ``column:NAME`` for a column of the source, the path of a ``.npy`` array or of a text file
        with a line for each row, or the values themselves.
    n_rows : int
        How many there must be.
    open_column : callable
        Opens the source again, with a column of this name for its ids.

    Raises
    ------
    ConfigError
        If there are more or fewer values than rows, or they cannot be read.
    """
    if isinstance(given, str) and given.startswith(COLUMN):
        return _OfColumn(option, given.removeprefix(COLUMN), open_column)
    values: RowValues
    if not isinstance(given, str | os.PathLike):
        values, found = _InMemory(given), len(given)
    else:
        path = Path(given).expanduser()
        try:
            if path.suffix == ".npy":
                array = np.load(path, mmap_mode="r", allow_pickle=False)
                values, found = _InMemory(_one_axis(array), path.parent), len(array)
            else:
                values = _OfLines(path)
                found = values.n_lines
        except (OSError, ValueError) as error:
            raise ConfigError(
                Option(option, str(given)),
                f": cannot be read ({error}); name a text file with a line for each row, a .npy "
                f"array, or a column of the source as {COLUMN}NAME",
            ) from error
    if found != n_rows:
        what = Option(option) if values.folder == Path() else Option(option, str(given))
        raise ConfigError(
            what, f" has {found:,} values, the source has {n_rows:,} rows; give one for each row"
        )
    return values


def _one_axis(array: np.ndarray) -> np.ndarray:
    if array.ndim != 1:
        raise ValueError(f"it has the shape {array.shape}, and must have one axis")
    return array


class _InMemory:
    """Values in memory, or in a mapped file."""

    def __init__(self, values: Sequence[Any] | np.ndarray, folder: Path | None = None) -> None:
        self._values, self.folder = values, folder or Path()

    def at(self, rows: Collection[int]) -> dict[int, str]:
        """See `RowValues`."""
        return {row: _as_text(self._values[row]) for row in rows}


class _OfLines:
    """The lines of a text file."""

    def __init__(self, path: Path) -> None:
        self._path, self.folder = path, path.parent
        with path.open("rb") as file:
            self.n_lines = sum(1 for _ in file)

    def at(self, rows: Collection[int]) -> dict[int, str]:
        """See `RowValues`."""
        wanted, last = set(rows), max(rows, default=-1)
        found = {}
        with self._path.open("rb") as file:
            for number, line in enumerate(file):
                if number > last:
                    break
                if number in wanted:
                    found[number] = _as_text(line.rstrip(b"\r\n"))
        return found


class _OfColumn:
    """A column of the source."""

    def __init__(self, option: str, column: str, open_column: Callable[[str], Source]) -> None:
        self._column, self._open_column, self.folder = column, open_column, Path()
        try:
            with closing(open_column(column)) as source:
                self._ids(source)
        except StreamkmError as error:
            # The column is opened as that of ids, which the user need not have named.
            asked = Option(option, COLUMN + column)
            is_ids = [isinstance(p, Option) and p.name == "id_column" for p in error.args]
            parts = [
                asked if is_it else part for part, is_it in zip(error.args, is_ids, strict=True)
            ]
            raise ConfigError(*parts if any(is_ids) else (asked, ": ", *parts)) from error

    def at(self, rows: Collection[int]) -> dict[int, str]:
        """See `RowValues`."""
        with closing(self._open_column(self._column)) as source:
            return column_values(self._ids(source), rows)

    def _ids(self, source: Source) -> IdColumn:
        ids = ids_of(source)
        if ids is None:
            raise ConfigError(f"{source.name} has no columns beside its features")
        return ids


def column_values(ids: IdColumn, rows: Collection[int]) -> dict[int, str]:
    """The values of `rows` in a column, as text."""
    wanted, found, start = np.unique(np.fromiter(rows, np.int64, len(rows))), {}, 0
    for batch in ids.batches():
        stop = start + len(batch)
        first, last = np.searchsorted(wanted, (start, stop))
        for row in wanted[first:last].tolist():
            found[row] = _as_text(batch[row - start].as_py())
        start = stop
        if last == len(wanted):
            break
    return found


def _as_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)
