"""Writes the rows of the source in the order of a partition."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from streamkm.runs.partitioning.distribution import distribute, plan_distribution
from streamkm.runs.partitioning.flat import FlatOutput
from streamkm.runs.partitioning.grouping import FORMATS
from streamkm.runs.partitioning.zarr_rows import ZarrRows, chunk_rows
from streamkm.sources.base import RowRange
from streamkm.stream.prefetch import prefetch
from streamkm.stream.slots import HostSlots
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    import numpy as np

    from streamkm.runs.partitioning.clusters import Clusters
    from streamkm.runs.partitioning.distribution import DistributionPlan
    from streamkm.runs.partitioning.placing import Placing
    from streamkm.runs.partitioning.work import Work
    from streamkm.sources.base import ArraySpec, Source
    from streamkm.stream.plan import ReadingPlan
    from streamkm.stream.slots import StreamMemory

__all__ = ["align_rows", "plan_rows", "rows_path", "write_rows"]


def rows_path(out: Path, kind: str) -> Path:
    """Where the rows of the partition in `out` are."""
    return out / FORMATS[kind]


def align_rows(kind: str, spec: ArraySpec) -> int:
    """Rows that are written together."""
    return chunk_rows(spec.row_bytes) if kind == "zarr" else 1


def plan_rows(
    kind: str, spec: ArraySpec, n_kept: int, k: int, memory: int, *, by_distance: bool
) -> DistributionPlan:
    """How `n_kept` rows of the source are brought in order within `memory` bytes."""
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
    times = StageTimes()
    path = work.folder / f"{FORMATS[kind]}.partial"
    shape = (plan.n_places, source.spec.n_features)
    kinds: dict[str, Any] = {"npy": FlatOutput, "zarr": ZarrRows}
    output = kinds[kind](path, shape, source.spec.storage, resumed=bool(reached[0]))
    stream = _stream(source, clusters, reading, memory, times)
    try:
        distribute("rows", plan, placing, stream, output, work, reached, times)
        output.publish(rows_path(work.out, kind))
    finally:
        output.close()


def _stream(
    source: Source,
    clusters: Clusters,
    reading: ReadingPlan,
    memory: StreamMemory,
    times: StageTimes,
) -> Callable[[int], Generator[tuple[RowRange, np.ndarray]]]:
    """Windows that hold rows of a chosen cluster, read ahead."""

    def stream(start: int) -> Generator[tuple[RowRange, np.ndarray]]:
        first = reading.batch_at(start) if start < reading.n_rows else reading.n_batches(0)
        windows = (window for window in reading.windows(0, first) if clusters.has_any(window.reads))
        times.n_readers = max(memory.n_readers, 1)
        with (
            HostSlots(memory, torch.device("cpu")) as slots,
            prefetch(source, windows, slots, memory.n_readers, times) as ahead,
        ):
            for host in ahead:
                reads = host.window.reads
                rows = RowRange(max(reads[0].start, start), reads[-1].stop)
                records = host.rows_ND.view("u1").reshape(len(host.rows_ND), -1)
                with times.working("copying"):
                    yield rows, records[rows.start - reads[0].start :]
                host.release()

    return stream
