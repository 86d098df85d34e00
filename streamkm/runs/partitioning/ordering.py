"""Writes the order of the rows: ``offsets.npy`` and ``order.npy``.

By row number the order is one distribution of row numbers by label. By distance it is a radix sort,
least digit first (Knuth volume 3, 5.2.5): rows are distributed by the lower half of their distance,
then by the upper, then by label, each time keeping the order that they have. So a cluster of any
size is sorted in the same memory. float32 numbers that are not negative sort like their bits.
"""

from __future__ import annotations

import io
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from streamkm.files import write_atomically
from streamkm.runs.partitioning.distribution import distribute, publish
from streamkm.runs.partitioning.flat import FlatOutput
from streamkm.runs.partitioning.gathered import DistributionPlan, plan_distribution
from streamkm.runs.partitioning.placing import SCAN_ROWS, ByKey, Stored, offsets_of
from streamkm.runs.partitioning.record import OFFSETS, ORDER
from streamkm.sources.npy import open_npy

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from streamkm.runs.partitioning.clusters import Clusters
    from streamkm.runs.partitioning.distribution import Stream
    from streamkm.runs.partitioning.placing import Placing
    from streamkm.runs.partitioning.work import Work
    from streamkm.sources.base import RowRange, Source

__all__ = ["order_bytes", "order_plans", "placing_of", "write_order"]

#: What is carried through the sort: a row number, and label and distance in one number.
_SORTED_BYTES = 16
#: Values of half a distance.
_N_DIGITS = 1 << 16
#: The steps of the sort that come before the order, and the one that inverts it.
_LOWER, _UPPER, _PLACES = "lower.npy", "upper.npy", "places.npy"

_NUMBERS = np.dtype(np.int64)


def order_plans(n_rows: int, k: int, memory: int, *, by_distance: bool) -> list[DistributionPlan]:
    """The plans of the distributions that make the order, as far as they are known beforehand."""
    sorts = [plan_distribution(n_rows, _SORTED_BYTES, memory)] * (2 * by_distance)
    n_clusters = k  # Also by distance: the rows come in the order of their distances.
    return [*sorts, plan_distribution(n_rows, 8, memory, n_clusters=n_clusters)]


def order_bytes(n_rows: int, *, by_distance: bool) -> int:
    """Bytes that the order takes on disk while it is made, beside the buckets."""
    return n_rows * (8 + 2 * _SORTED_BYTES * by_distance)


def write_order(clusters: Clusters, distances: Path | None, memory: int, work: Work) -> None:
    """Write offsets and order of `clusters`; by `distances`, a file of float32, if given."""
    if work.is_there(work.out / ORDER):
        return
    offsets = offsets_of(clusters.n_rows, clusters.labels, clusters.k, work.world)
    if work.world.is_first:
        content = io.BytesIO()
        np.save(content, offsets)
        write_atomically(work.out / OFFSETS, content.getvalue())
    n_kept = int(offsets[-1])
    if distances is None:
        placing = ByKey(clusters.n_rows, clusters.labels, offsets[:-1])
        _distribute(ORDER, n_kept, placing, _row_numbers(), memory, work, clusters.k)
        return
    with closing(open_npy(distances, column=True)) as source:
        sorted_ = _sort(clusters, source, memory, work)
    with closing(open_npy(sorted_)) as source:
        read = _read(source)
        keys = _digits(source, lambda carried: carried >> 32)
        placing = ByKey(clusters.n_rows, keys, offsets[:-1])
        stream = _records(lambda rows: read(rows)[:, :1])
        _distribute(ORDER, n_kept, placing, stream, memory, work, clusters.k)


def placing_of(clusters: Clusters, work: Work, memory: int, *, by_distance: bool) -> Placing:
    """Where each row goes: by its label, or to its place in the order, which is inverted."""
    if not by_distance:
        offsets = np.load(work.out / OFFSETS)
        return ByKey(clusters.n_rows, clusters.labels, offsets[:-1])
    path = work.folder / _PLACES
    if not work.is_there(path):
        with closing(open_npy(work.out / ORDER, column=True)) as order:
            _distribute(
                _PLACES, clusters.n_rows, Stored(order), _row_numbers(), memory,
                work,
            )  # fmt: skip
    return Stored(open_npy(path, column=True))


def _sort(clusters: Clusters, distances: Source, memory: int, work: Work) -> Path:
    """All rows in the order of their distances: a file of row numbers, and labels with distances.

    The label is the upper half of the second number, the bits of the distance the lower.
    """
    n_rows = clusters.n_rows

    def carried(rows: RowRange) -> np.ndarray:
        distances_B1 = np.empty((len(rows), 1), np.float32)
        distances.read(rows, distances_B1)
        bits = distances_B1[:, 0].view(np.uint32).astype(np.int64)
        return (clusters.labels(rows).astype(np.int64) << 32) | bits

    def records(rows: RowRange) -> np.ndarray:
        return np.stack((np.arange(rows.start, rows.stop), carried(rows)), axis=1)

    def lower(rows: RowRange) -> np.ndarray:
        return carried(rows) & (_N_DIGITS - 1)

    def upper(of: np.ndarray) -> np.ndarray:
        return (of >> 16) & (_N_DIGITS - 1)

    first, second = work.folder / _LOWER, work.folder / _UPPER
    is_sorted = work.is_there(second)
    if not (is_sorted or work.is_there(first)):
        placing = ByKey(n_rows, lower, offsets_of(n_rows, lower, _N_DIGITS, work.world)[:-1])
        _distribute(_LOWER, n_rows, placing, _records(records), memory, work)
    if not is_sorted:
        with closing(open_npy(first)) as source:
            keys = _digits(source, upper)
            placing = ByKey(n_rows, keys, offsets_of(n_rows, keys, _N_DIGITS, work.world)[:-1])
            _distribute(_UPPER, n_rows, placing, _records(_read(source)), memory, work)
    return second


def _distribute(
    name: str,
    n_places: int,
    placing: Placing,
    stream: Stream,
    memory: int,
    work: Work,
    n_clusters: int = 0,
) -> None:
    """Write the file `name`: of row numbers, or of two numbers a row if it is part of the sort."""
    is_sort = name in (_LOWER, _UPPER)
    width = _SORTED_BYTES if is_sort else 8
    plan = plan_distribution(n_places, width, memory, n_clusters=n_clusters)
    reached = work.begin(name, asdict(plan))
    shape = (n_places, 2) if is_sort else (n_places,)
    folder = work.out if name == ORDER else work.folder
    output = work.opened(
        partial(FlatOutput, folder / f"{name}.partial", shape, _NUMBERS),
        resumed=bool(reached.stage),
    )
    try:
        distribute(name, plan, placing, stream, output, work, reached)
        publish(output, folder / name, work)
    finally:
        output.close()


def _records(
    numbers: Callable[[RowRange], np.ndarray],
) -> Stream:
    """A stream of records that `numbers`, int64 of shape (rows, columns), make."""

    def stream(wanted: RowRange) -> Generator[tuple[RowRange, np.ndarray]]:
        for rows in wanted.split(SCAN_ROWS):
            found = np.ascontiguousarray(numbers(rows), np.int64)
            yield rows, found.view(np.uint8)

    return stream


def _row_numbers() -> Stream:
    return _records(lambda rows: np.arange(rows.start, rows.stop)[:, None])


def _read(source: Source) -> Callable[[RowRange], np.ndarray]:
    def read(rows: RowRange) -> np.ndarray:
        out = np.empty((len(rows), source.spec.n_features), np.int64)
        source.read(rows, out)
        return out

    return read


def _digits(
    source: Source, digit: Callable[[np.ndarray], np.ndarray]
) -> Callable[[RowRange], np.ndarray]:
    """The keys of rows of the sort: a digit of their second number."""
    read = _read(source)
    return lambda rows: digit(read(rows)[:, 1])
