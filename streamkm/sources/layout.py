"""Helpers of every source: check a read, cut rows into boxes, size a block.

They are apart from `base` so that the interface stays short, and apart from the formats so that
every source checks and cuts a range in the same way.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple

from streamkm.errors import ReadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from streamkm.sources.base import ArraySpec, RowRange

__all__ = ["RowBox", "check_read", "check_reads", "one_line", "row_boxes", "rows_for_bytes"]


class RowBox(NamedTuple):
    """A box of the leading axes (all axes but the last) that holds consecutive flat rows."""

    selection: tuple[slice, ...]
    """One slice for each leading axis."""
    shape: tuple[int, ...]
    """One extent for each leading axis."""
    start: int
    """First flat row of the box."""
    stop: int
    """Flat row after the last one."""


def row_boxes(leading: tuple[int, ...], rows: RowRange) -> Iterator[RowBox]:
    """Cut flat rows of an array into the fewest boxes of its leading axes.

    Parameters
    ----------
    leading : tuple of int
        Extents of all axes but the last; flat rows count through them in C order.
    rows : RowRange
        Flat rows, within ``prod(leading)``.

    Yields
    ------
    RowBox
        In order of rows, at most ``2 * len(leading) - 1`` of them. Together they cover `rows`
        exactly.
    """
    yield from _boxes_from(leading, rows.start, rows.stop, prefix=(), offset=0)


def _boxes_from(
    leading: tuple[int, ...], start: int, stop: int, *, prefix: tuple[int, ...], offset: int
) -> Iterator[RowBox]:
    """Boxes of rows `start` to `stop` of the sub-array at `prefix`, which begins at `offset`."""
    if start == stop:
        return
    step = prod(leading[1:])
    first_whole, last_whole = -(-start // step), stop // step
    if first_whole > last_whole:
        # All rows lie within one index of this axis, so that no slice of it holds them exactly.
        yield from _partial_step(leading, start, stop, prefix=prefix, offset=offset)
        return
    if start < first_whole * step:
        head_stop = first_whole * step
        yield from _partial_step(leading, start, head_stop, prefix=prefix, offset=offset)
    if first_whole < last_whole:
        yield RowBox(
            selection=(
                *(slice(index, index + 1) for index in prefix),
                slice(first_whole, last_whole),
                *(slice(0, extent) for extent in leading[1:]),
            ),
            shape=(*(1 for _ in prefix), last_whole - first_whole, *leading[1:]),
            start=offset + first_whole * step,
            stop=offset + last_whole * step,
        )
    if last_whole * step < stop:
        tail_start = last_whole * step
        yield from _partial_step(leading, tail_start, stop, prefix=prefix, offset=offset)


def _partial_step(
    leading: tuple[int, ...], start: int, stop: int, *, prefix: tuple[int, ...], offset: int
) -> Iterator[RowBox]:
    """Boxes of rows that lie within one index of the first axis."""
    step = prod(leading[1:])
    index = start // step
    base = index * step
    return _boxes_from(
        leading[1:], start - base, stop - base, prefix=(*prefix, index), offset=offset + base
    )


def check_read(
    name: str, spec: ArraySpec, rows: RowRange, out: np.ndarray, *, closed: bool
) -> None:
    """Refuse a read past the end of the array, or into memory of the wrong form.

    Parameters
    ----------
    name : str
        The source, for the message.
    spec : ArraySpec
        Its shape and dtype.
    rows : RowRange
        The rows to read.
    out : ndarray
        The memory to fill.
    closed : bool
        Whether the source has been closed.

    Raises
    ------
    ReadError
        If the source is closed or `rows` end after the array.
    ValueError
        If `out` has another shape or dtype, or is not writable and C-contiguous: a mistake in the
        calling code.
    """
    if closed:
        raise ReadError(f"{name}: cannot read {rows}, the source is closed; open it again")
    if rows.stop > spec.n_rows:
        raise ReadError(f"{name}: cannot read {rows}, the array has {spec.n_rows} rows")
    _check_memory(name, spec, len(rows), out)


def check_reads(
    name: str, spec: ArraySpec, reads: Sequence[RowRange], out: np.ndarray, *, closed: bool
) -> None:
    """As `check_read`, for `reads` that come one after the other in `out`."""
    if closed or max([rows.stop for rows in reads]) > spec.n_rows:
        last = max(reads, key=lambda rows: rows.stop)
        check_read(name, spec, last, out, closed=closed)
    _check_memory(name, spec, sum([rows.stop - rows.start for rows in reads]), out)


def _check_memory(name: str, spec: ArraySpec, n_rows: int, out: np.ndarray) -> None:
    """Refuse memory of the wrong form for `n_rows`."""
    shape = (n_rows, spec.n_features)
    if out.shape != shape or out.dtype != spec.storage:
        raise ValueError(
            f"{name}: out must have shape {shape} and dtype {spec.storage}, "
            f"it has {out.shape} and {out.dtype}"
        )
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"{name}: out must be writable and C-contiguous")


def rows_for_bytes(nbytes: int, row_bytes: int, n_rows: int) -> int:
    """Rows of `row_bytes` that fit in `nbytes`: at least one, at most `n_rows`."""
    return max(1, min(nbytes // row_bytes, n_rows))


def one_line(error: BaseException) -> str:
    """The type and message of `error` on one line; libraries' messages often take several."""
    # obstore appends a page of its internals.
    text = " ".join(str(error).partition("\n\nDebug source:")[0].split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
