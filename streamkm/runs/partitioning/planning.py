"""Plans a partition before a row is read: memory, passes, and space on disk."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING

from streamkm.runs.partitioning.gathered import (
    BESIDE_RECORD,
    MOST_WRITERS,
    PIECE_BYTES,
    plan_distribution,
)
from streamkm.runs.partitioning.ordering import order_bytes, order_plans
from streamkm.runs.partitioning.placing import SCAN_ROWS
from streamkm.runs.partitioning.rows import align_rows, plan_rows
from streamkm.runs.planning.memory import RUNTIME_BYTES, plan_memory
from streamkm.stream.plan import plan_reading
from streamkm.stream.slots import slot_bytes

if TYPE_CHECKING:
    from streamkm.config import ExecutionConfig
    from streamkm.runs.partitioning.gathered import DistributionPlan
    from streamkm.runs.partitioning.grouping import Grouping
    from streamkm.runs.planning.memory import MemoryPlan
    from streamkm.sources.base import ArraySpec
    from streamkm.stream.plan import ReadingPlan

__all__ = ["PartitionPlan", "plan_partition"]

#: Bytes that are gathered at least, and where that is enough for large writes.
LEAST_GATHERED, ENOUGH_GATHERED = 4 << 20, 64 << 20
#: Bytes that are gathered at most if all that there is does not fit.
MOST_GATHERED = 1 << 30
#: Bytes of a cluster's share, and of a bucket's, for which more memory is taken if there is some.
_SHARE_BYTES = 256 << 10
#: Bytes for each row whose place is worked out, and for each cluster: offsets, counts, next places.
_SCANNED_BYTES, _CLUSTER_BYTES = 120, 64


@dataclass(frozen=True)
class PartitionPlan:
    """All that is decided before a row is read."""

    reading: ReadingPlan
    memory: MemoryPlan
    gather_bytes: int
    """Memory in which records are gathered."""
    order: list[DistributionPlan]
    rows: DistributionPlan | None
    """None if no rows are written; for as many rows as there are."""
    most_bytes: int
    """Bytes on disk at most, buckets included."""
    least_bytes: int
    """Those that are certain."""

    @property
    def passes(self) -> str:
        """What is read and written how often, for people."""
        said = [f"order: {_in_words(self.order[-1])}"]
        if len(self.order) > 1:
            said.insert(0, f"two sorts by distance: {_in_words(self.order[0])}")
        if self.rows is not None:
            said.append(f"rows: {_in_words(self.rows)}")
        return "; ".join(said)


def _in_words(plan: DistributionPlan) -> str:
    if plan.is_direct:
        return "read once, each cluster's share written to its place"
    if plan.is_in_memory:
        return "read once, put in order in memory, written once"
    return f"read and written twice, by way of {plan.n_buckets:,} buckets on disk"


def plan_partition(
    spec: ArraySpec,
    k: int,
    execution: ExecutionConfig,
    grouping: Grouping,
    *,
    drops: bool,
    beside_bytes: int = 0,
    n_processes: int = 1,
) -> PartitionPlan:
    """The plan of a partition of `spec` into `k` clusters; `drops`: rows may be in none of them.

    `beside_bytes` are those of a row in the columns of a table that are no features. `n_processes`
    share the memory of the machine.

    Raises
    ------
    MemoryBudgetError
        If the budget holds no window of rows and a little beside it.
    """
    rows, by_distance = grouping.rows, grouping.by_distance
    # Windows are used as they are read: a batch is a block.
    reading = plan_reading(spec, batch_rows=min(spec.block_rows, spec.n_rows), seed=None)
    width = spec.row_bytes if rows is not None else 8 + 8 * by_distance
    if rows == "parquet":  # See `plan_rows`.
        width = 3 * (width + 8 + beside_bytes + BESIDE_RECORD)
    align = align_rows(rows, spec) if rows is not None else 1
    fixed = (
        RUNTIME_BYTES + reading.order_bytes + _CLUSTER_BYTES * k + (2 + MOST_WRITERS) * PIECE_BYTES
    )
    fixed += _SCANNED_BYTES * min(SCAN_ROWS, spec.n_rows)
    # A chunk is held twice: as it is gathered, and as it is written.
    fixed += 2 * align * width * (align > 1)
    one_row = width + BESIDE_RECORD
    least = max(min(LEAST_GATHERED, spec.n_rows * one_row), align * one_row)
    budget = plan_memory(
        spec, reading, execution, fixed_bytes=fixed + least, n_processes=n_processes
    ).budget
    slot = slot_bytes(reading.window_rows, spec.row_bytes, weighted=False)
    room = budget - fixed - slot - spec.scratch_bytes
    room = max(least, room - slot)
    gathered = max(least, min(room, _wanted(spec.n_rows, width, k, room)))
    memory = plan_memory(
        spec, reading, execution, fixed_bytes=fixed + gathered, n_processes=n_processes
    )
    order = order_plans(spec.n_rows, k, gathered, by_distance=by_distance)
    of_rows = None
    if rows is not None:
        of_rows = plan_rows(
            rows, spec, spec.n_rows, k, gathered, by_distance=by_distance, beside_bytes=beside_bytes
        )
    most = _space(spec, order, of_rows, by_distance=by_distance)
    certain = grouping.only is None and rows in (None, "npy") and not drops
    return PartitionPlan(
        reading, memory, gathered, order, of_rows, most, least_bytes=most if certain else 0
    )


def _wanted(n_rows: int, width: int, k: int, room: int) -> int:
    """Bytes to gather, at most, with which writes are large; all that there is if it is little."""
    whole = n_rows * (width + BESIDE_RECORD)
    if whole <= min(room, MOST_GATHERED):
        return whole
    direct = k * _SHARE_BYTES * (width + BESIDE_RECORD) // width
    if plan_distribution(n_rows, width, room, n_clusters=k).is_direct:
        return max(ENOUGH_GATHERED, direct)
    # Buckets are as large as what is gathered, so that a share is its square part of the whole.
    return max(ENOUGH_GATHERED, isqrt(whole * 4 * _SHARE_BYTES))


def _space(
    spec: ArraySpec,
    order: list[DistributionPlan],
    rows: DistributionPlan | None,
    *,
    by_distance: bool,
) -> int:
    """Bytes on disk at most: what stays, and the most that lies beside it at one time."""
    n_rows = spec.n_rows
    stays = n_rows * (4 + 4 * by_distance + 8)
    while_ordering = order_bytes(n_rows, by_distance=by_distance) - 8 * n_rows
    while_ordering += max(plan.scratch_bytes for plan in order)
    if rows is None:
        return stays + while_ordering
    places = 8 * n_rows * by_distance
    return stays + max(while_ordering, n_rows * spec.row_bytes + places + rows.scratch_bytes)
