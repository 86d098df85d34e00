"""Moves records to their places in an output, in bounded memory and in large pieces.

Records come in the order of the rows. They are gathered in memory, sorted by group, and the share
of each group is written at once. There are three ways, and `plan_distribution` chooses:

- all records fit in memory: they are written once, from the first place to the last;
- the groups are clusters, few enough that a cluster's share of what is gathered is a large piece:
  each share is written to its final place;
- else the groups are buckets, of as many places as memory holds. They lie on disk for a while, and
  then each is sorted in memory and written (an external distribution sort, Knuth volume 3, 5.4.9).

Buckets hold equal numbers of places, whichever clusters these are of, so a cluster of any size is
no special case. Reading the source in the order of the output was rejected: it is a seek a row.

Several processes gather the rows of a part of the source each. Where a row goes follows from the
labels before it, so that each finds its positions in buckets or clusters by itself. Then each sorts
some of the buckets. What fits in the memory of one process the first one moves alone.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from streamkm.runs.partitioning.gathered import GatheredBytes, discard_buckets
from streamkm.runs.partitioning.placing import SCAN_ROWS, ByKey
from streamkm.runs.partitioning.shares import left_of, share_of
from streamkm.sources.base import RowRange
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from pathlib import Path

    from streamkm.runs.partitioning.gathered import DistributionPlan, Gathered, Output
    from streamkm.runs.partitioning.placing import Placing
    from streamkm.runs.partitioning.work import Reached, Work

__all__ = ["Stream", "distribute", "publish"]

#: Takes rows, and yields ranges of them and their records.
Stream: TypeAlias = "Callable[[RowRange], Generator[tuple[RowRange, Any]]]"


def distribute(
    step: str,
    plan: DistributionPlan,
    placing: Placing,
    stream: Stream,
    output: Output,
    work: Work,
    reached: Reached,
    times: StageTimes | None = None,
    gathers: type[Gathered] = GatheredBytes,
    *,
    align: int = 1,
    is_shared: bool = True,
) -> None:
    """Put each record that `stream` yields at its place in `output`; a collective.

    Parameters
    ----------
    step : str
        Its name, for the cursor and the progress.
    plan, placing
        How, and where to; a `ByKey` if the plan is direct.
    stream : callable
        Takes rows and yields ranges of them in order, and their records: uint8 of shape
        (n, plan.width), or what else `gathers` holds. Rows without a place may be left out.
    output : Output
        Synced at the end. A place that no record comes to holds bytes of ones (-1).
    work : Work
        Where the cursor is, and buckets are for a while.
    reached : Reached
        What `Work.begin` says of the step.
    times : StageTimes, optional
        Those of `stream`.
    gathers : type
        What holds the records.
    align : int
        Rows that `stream` reads best together.
    is_shared : bool
        Whether all processes can write the output; otherwise the first writes alone.
    """
    stage, done = reached
    world = work.world
    if not plan.n_places or (stage == "write" and not left_of(plan.n_places, done)):
        if world.is_first:
            discard_buckets(work.folder, step)
        return
    how, times = asdict(plan), times or StageTimes()
    rank, size = world.rank, world.size
    if not is_shared or plan.is_in_memory:  # The memory of one process holds all of it.
        rank, size = 0 if world.is_first else 1, 1

    def share(n: int, done: Iterable[RowRange], align: int) -> list[RowRange]:
        return share_of(left_of(n, done), rank, size, align) if rank < size else []

    with ExitStack() as stack:
        is_resumed = bool(stage) and not plan.is_in_memory
        gathered = work.opened(
            partial(gathers, step, plan, output, work.folder),
            resumed=is_resumed,
        )
        stack.callback(gathered.close)
        if stage != "write" or plan.is_in_memory:
            passed = () if plan.is_in_memory else done
            mine = share(placing.n_rows, passed, align)
            work.progress.begin(
                step, placing.n_rows, times, done=placing.n_rows - sum(map(len, mine))
            )
            _gather_all(step, gathered, placing, stream, mine, passed, work)
            if not plan.is_in_memory:
                gathered.sync()
            if gathered.n_buckets > 1:
                work.save(step, how, "write", ())
        if not plan.is_direct:
            put = done if stage == "write" else ()
            _write(step, gathered, output, share(plan.n_places, put, plan.bucket_rows), put, work)
        output.sync()
        # From here on the buckets are not needed.
        work.save(step, how, "write", [RowRange(0, plan.n_places)] if world.is_first else ())
    if world.is_first:
        discard_buckets(work.folder, step)


def publish(output: Output, target: Path, work: Work) -> None:
    """Give an output that all processes have written its name; a collective."""
    if work.world.is_first:
        output.publish(target)
    work.world.meet()


def _gather_all(
    step: str,
    gathered: Gathered,
    placing: Placing,
    stream: Stream,
    mine: list[RowRange],
    before: Iterable[RowRange],
    work: Work,
) -> None:
    """Gather the records of the rows that are `mine`, until all processes have theirs.

    Those of `before` have been gathered by an earlier attempt.
    """
    passed, at = [*before], 0

    def save() -> None:
        if not gathered.plan.is_in_memory:
            gathered.sync()
            work.save(step, asdict(gathered.plan), "gather", passed)

    for own in mine:
        gathered.skip(placing, RowRange(at, own.start))
        at = own.start
        passed.append(RowRange(at, at))
        with closing(stream(own)) as records:
            for rows, found in records:
                work.progress.advance(rows.stop - at)
                _gather(gathered, placing, rows, found)
                at = rows.stop
                passed[-1] = RowRange(own.start, at)
                work.after_batch(save)
                if work.progress.is_due():
                    work.progress.report({})
        passed[-1] = own  # Rows at its end that have no place may have been left out.
    while work.world.size > 1 and work.after_batch(save, is_busy=False):
        pass


def _gather(gathered: Gathered, placing: Placing, rows: RowRange, records: Any) -> None:
    for part in rows.split(SCAN_ROWS):
        found = records[part.start - rows.start : part.stop - rows.start]
        if gathered.plan.is_direct:
            assert isinstance(placing, ByKey)
            gathered.add(placing.keys(part), None, found)
        else:
            places_B = placing.places(part)
            gathered.add(places_B // gathered.plan.bucket_rows, places_B, found)


def _write(
    step: str,
    gathered: Gathered,
    output: Output,
    mine: list[RowRange],
    before: Iterable[RowRange],
    work: Work,
) -> None:
    """Write the buckets with the places that are `mine`, each sorted, until all are written.

    Those of `before` have been written by an earlier attempt.
    """
    plan = gathered.plan
    left = sum(map(len, mine))
    work.progress.begin(f"{step}: sorting", plan.n_places, StageTimes(), done=plan.n_places - left)
    written: list[RowRange] = []

    def save() -> None:
        synced = output.sync()
        # What is at work may be on disk in part, and nothing of it may have been put.
        known = [RowRange(each.start, min(max(synced, each.start), each.stop)) for each in written]
        work.save(step, asdict(plan), "write", [*before, *known])

    for own in mine:
        written.append(own)
        for bucket in range(own.start // plan.bucket_rows, -(-own.stop // plan.bucket_rows)):
            for start, rows in gathered.bucket(bucket, own.start):
                kept = rows[: max(own.stop - start, 0)]
                if not len(kept):
                    break
                output.put(start, kept)
                work.progress.advance(len(kept))
                work.after_batch(save)
                if work.progress.is_due():
                    work.progress.report({})
    while work.world.size > 1 and work.after_batch(save, is_busy=False):
        pass
