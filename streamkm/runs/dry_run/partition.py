"""The dry run of a partition: what it would do and need, and what speaks against it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from streamkm.errors import InputError
from streamkm.runs.dry_run.report import DryRun
from streamkm.runs.partitioning.partition import prepare
from streamkm.runs.partitioning.record import PartitionFolder
from streamkm.text import format_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.config import ExecutionConfig
    from streamkm.runs.partitioning.grouping import Grouping
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.sources import Source

__all__ = ["dry_partition"]


def dry_partition(
    run_dir: Path,
    source: Source,
    execution: ExecutionConfig,
    out: Path,
    grouping: Grouping,
    *,
    resume: bool,
    stop_request: StopRequest,
) -> DryRun:
    """The report on what `streamkm.runs.partitioning.partition.partition` would do.

    Raises
    ------
    StreamkmError
        After `stop_request`.
    InputError
        As `partition` does, if it comes before there is anything to report. Later errors are in
        `DryRun.errors`.
    """
    with ExitStack() as stack:
        job = prepare(run_dir, source, execution, out, grouping, stack)
        report, spec, there = DryRun(), source.spec, 0
        is_done = False
        try:
            before = PartitionFolder.check_is_free(out, resume=resume)
            PartitionFolder(out, job.record, before)
            is_done = before is not None and before["done"]
            if before is not None:
                there = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        except InputError as error:
            report.errors.append(error)
    if is_done:
        return DryRun([("source", source.name), ("resume", f"{out}: nothing is left to do")])
    stop_request.end_if_asked()
    by = f"{grouping.labels}" if grouping.labels is not None else f"{run_dir}, read once"
    report.facts += [
        ("run", f"{run_dir}: {job.model.k:,} centroids"),
        ("source", source.name),
        ("rows", f"{spec.n_rows:,} x {spec.n_features:,} features, {spec.dtype}"),
        ("size", f"{format_bytes(spec.nbytes)} ({spec.layout})"),
        ("memory", str(job.memory)),
        ("labels", f"by {by}"),
        ("passes", job.plan.passes),
    ]
    report.notes = [*source.notes(), *job.notes]
    most, least = (max(n - there, 0) for n in (job.plan.most_bytes, job.plan.least_bytes))
    report.add_space(out, most, "the partition", least=least)
    return report
