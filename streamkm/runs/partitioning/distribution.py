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
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from streamkm.runs.partitioning.gathered import GatheredBytes, discard_buckets
from streamkm.runs.partitioning.placing import SCAN_ROWS, ByKey
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from streamkm.runs.partitioning.gathered import DistributionPlan, Gathered, Output
    from streamkm.runs.partitioning.placing import Placing
    from streamkm.runs.partitioning.work import Work
    from streamkm.sources.base import RowRange

__all__ = ["distribute"]


def distribute(
    step: str,
    plan: DistributionPlan,
    placing: Placing,
    stream: Callable[[int], Generator[tuple[RowRange, Any]]],
    output: Output,
    work: Work,
    reached: tuple[str, int],
    times: StageTimes | None = None,
    gathers: type[Gathered] = GatheredBytes,
) -> None:
    """Put each record that `stream` yields at its place in `output`.

    Parameters
    ----------
    step : str
        Its name, for the cursor and the progress.
    plan, placing
        How, and where to; a `ByKey` if the plan is direct.
    stream : callable
        Takes a row and yields, from there on, ranges of rows in order and their records: uint8 of
        shape (n, plan.width), or what else `gathers` holds. Rows without a place may be left out.
    output : Output
        Synced at the end. A place that no record comes to holds bytes of ones (-1).
    work : Work
        Where the cursor is, and buckets are for a while.
    reached : tuple of str and int
        What `Work.begin` says of the step.
    times : StageTimes, optional
        Those of `stream`.
    gathers : type
        What holds the records.
    """
    stage, done = reached
    if not plan.n_places or (stage == "write" and done == plan.n_places):
        discard_buckets(work.folder, step)
        return
    how, times = asdict(plan), times or StageTimes()
    with ExitStack() as stack:
        is_resumed = bool(stage) and not plan.is_in_memory
        gathered = gathers(step, plan, output, work.folder, resumed=is_resumed)
        stack.callback(gathered.close)
        if stage != "write" or plan.is_in_memory:
            first = 0 if plan.is_in_memory else done
            gathered.begin(placing, first)
            records = stack.enter_context(closing(stream(first)))
            work.progress.begin(step, placing.n_rows, times, done=first)
            at = first
            for rows, found in records:
                work.progress.advance(rows.stop - at)
                at = rows.stop
                _gather(gathered, placing, rows, found)

                def save(at: int = at) -> None:
                    if not plan.is_in_memory:
                        gathered.sync()
                        work.save(step, how, "gather", at)

                work.after_batch(save)
                if work.progress.is_due():
                    work.progress.report({})
            records.close()
            gathered.flush()
            if gathered.n_buckets > 1:
                gathered.sync()
                work.save(step, how, "write", 0)
        if not plan.is_direct:
            _write(step, gathered, output, work, done if stage == "write" else 0)
        output.sync()
        # From here on the buckets are not needed.
        work.save(step, how, "write", plan.n_places)
    discard_buckets(work.folder, step)


def _gather(gathered: Gathered, placing: Placing, rows: RowRange, records: Any) -> None:
    for part in rows.split(SCAN_ROWS):
        found = records[part.start - rows.start : part.stop - rows.start]
        if gathered.plan.is_direct:
            assert isinstance(placing, ByKey)
            gathered.add(placing.keys(part), None, found)
        else:
            places_B = placing.places(part)
            gathered.add(places_B // gathered.plan.bucket_rows, places_B, found)


def _write(step: str, gathered: Gathered, output: Output, work: Work, done: int) -> None:
    """Write the buckets, each sorted, from place `done` on."""
    plan = gathered.plan
    work.progress.begin(f"{step}: sorting", plan.n_places, StageTimes(), done=done)
    for bucket in range(done // plan.bucket_rows, plan.n_buckets):
        for start, rows in gathered.bucket(bucket, done):
            output.put(start, rows)
            work.progress.advance(len(rows))

            def save() -> None:
                work.save(step, asdict(plan), "write", output.sync())

            work.after_batch(save)
            if work.progress.is_due():
                work.progress.report({})
