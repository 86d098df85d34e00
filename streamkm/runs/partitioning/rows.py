"""Writes the rows of the source in the order of a partition."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from streamkm.runs.partitioning.distribution import distribute, publish
from streamkm.runs.partitioning.flat import FlatOutput
from streamkm.runs.partitioning.gathered import GatheredBytes, plan_distribution
from streamkm.runs.partitioning.grouping import FORMATS
from streamkm.runs.partitioning.placing import SCAN_ROWS
from streamkm.runs.partitioning.record import OFFSETS
from streamkm.sources import BesideReader, beside_of
from streamkm.sources.base import RowRange
from streamkm.stream.prefetch import prefetch
from streamkm.stream.slots import HostSlots
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from streamkm.runs.partitioning.clusters import Clusters
    from streamkm.runs.partitioning.distribution import Stream
    from streamkm.runs.partitioning.gathered import DistributionPlan, Gathered
    from streamkm.runs.partitioning.parquet_rows import TableRows
    from streamkm.runs.partitioning.placing import Placing
    from streamkm.runs.partitioning.work import Work
    from streamkm.sources.base import ArraySpec, Source
    from streamkm.stream.plan import ReadingPlan
    from streamkm.stream.slots import StreamMemory

__all__ = ["align_rows", "plan_rows", "rows_path", "write_rows"]


#: Bytes of a row number in a table.
_NUMBER_BYTES = 8
#: Formats that several processes write; another one the first writes alone.
SHARED = ("npy", "zarr")
#: Bytes of a chunk of a Zarr array, about.
CHUNK_BYTES = 4 << 20


def rows_path(out: Path, kind: str) -> Path:
    """Where the rows of the partition in `out` are."""
    return out / FORMATS[kind]


def align_rows(kind: str, spec: ArraySpec) -> int:
    """Rows that are written together: a chunk's; they do not depend on the memory."""
    return max(CHUNK_BYTES // spec.row_bytes, 1) if kind == "zarr" else 1


def plan_rows(
    kind: str,
    spec: ArraySpec,
    n_kept: int,
    k: int,
    memory: int,
    *,
    by_distance: bool,
    beside_bytes: int = 0,
) -> DistributionPlan:
    """How `n_kept` rows of the source are brought in order within `memory` bytes.

    A row of a table has `beside_bytes` in the columns beside its features.
    """
    if kind == "parquet":
        # A table is held as it came, as it is taken in order, and as it is written.
        width = spec.row_bytes + _NUMBER_BYTES + beside_bytes
        return plan_distribution(n_kept, width, memory // 3)
    is_anywhere = kind == "npy" and not by_distance
    align = align_rows(kind, spec)
    return plan_distribution(
        n_kept, spec.row_bytes, memory, n_clusters=k * is_anywhere, align_rows=align
    )


def write_rows(
    kind: str,
    source: Source,
    clusters: Clusters,
    placing: Placing,
    plan: DistributionPlan,
    reading: ReadingPlan,
    memory: StreamMemory,
    work: Work,
) -> None:
    """Write the rows of the chosen clusters, as they are stored."""
    reached = work.begin("rows", asdict(plan))
    times, spec = StageTimes(), source.spec
    path = work.out / f"{FORMATS[kind]}.partial"
    shape = (plan.n_places, spec.n_features)
    stream = _stream(source, clusters, reading, memory, times)
    gathers: type[Gathered] = GatheredBytes
    make: Callable[..., Any]
    if kind == "npy":
        make = partial(FlatOutput, path, shape, spec.storage)
    elif kind == "zarr":
        from streamkm.runs.partitioning.zarr_rows import ZarrRows

        rows = align_rows(kind, spec)
        make = partial(ZarrRows, path, shape, spec.storage, rows)
    else:
        from streamkm.runs.partitioning.parquet_rows import GatheredTables, ParquetRows, TableRows

        tables, gathers = TableRows(spec, beside_of(source), source.name), GatheredTables
        stream = _tables(stream, tables, source)
        offsets = np.load(work.out / OFFSETS)
        make = partial(ParquetRows, path, tables.schema, spec.row_bytes, offsets)
    output: Any = work.opened(make, resumed=bool(reached.stage))
    try:
        distribute(
            "rows", plan, placing, stream, output, work, reached, times, gathers,
            align=reading.window_blocks * reading.block_rows, is_shared=kind in SHARED,
        )  # fmt: skip
        publish(output, rows_path(work.out, kind), work)
    finally:
        output.close()


def _stream(
    source: Source,
    clusters: Clusters,
    reading: ReadingPlan,
    memory: StreamMemory,
    times: StageTimes,
) -> Stream:
    """Windows that hold rows of a chosen cluster, read ahead; each row as its bytes."""

    def stream(wanted: RowRange) -> Generator[tuple[RowRange, Any]]:
        first = reading.batch_at(wanted.start) if wanted else reading.n_batches(0)
        windows = (
            window
            for window in takewhile(
                lambda window: window.reads[0].start < wanted.stop, reading.windows(0, first)
            )
            if clusters.has_any(window.reads)
        )
        times.n_readers = max(memory.n_readers, 1)
        with (
            HostSlots(memory, torch.device("cpu")) as slots,
            prefetch(source, windows, slots, memory.n_readers, times) as ahead,
        ):
            for host in ahead:
                reads = host.window.reads
                start, stop = reads[0].start, reads[-1].stop
                rows = RowRange(max(start, wanted.start), min(stop, wanted.stop))
                records = host.rows_ND.view("u1").reshape(len(host.rows_ND), -1)
                with times.working("copying"):
                    yield rows, records[rows.start - start : rows.stop - start]
                host.release()

    return stream


def _tables(stream: Stream, tables: TableRows, source: Source) -> Stream:
    """The rows of `stream` as tables, with the columns beside the features."""
    spec, beside = source.spec, beside_of(source)

    def stream_tables(wanted: RowRange) -> Generator[tuple[RowRange, Any]]:
        # Of no columns there is nothing to read.
        has_columns = beside is not None and len(beside.schema) > 0
        reader = BesideReader(beside, wanted.start, source.name) if has_columns and beside else None
        with closing(stream(wanted)) as found:
            for rows, records in found:
                for part in rows.split(SCAN_ROWS):
                    some = records[part.start - rows.start : part.stop - rows.start]
                    columns = None if reader is None else reader.read(part)
                    yield part, tables.table(part, some.view(spec.storage), columns)

    return stream_tables
