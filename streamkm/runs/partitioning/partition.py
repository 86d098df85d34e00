"""Groups the rows of an array by cluster on disk, in bounded memory; can be resumed.

The steps, each with a result in the folder that a later attempt finds there: labels, order, rows.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from streamkm import __version__
from streamkm.distributed.world import ALONE
from streamkm.errors import (
    ConfigError,
    ElsewhereError,
    InputError,
    MemoryBudgetError,
    Option,
    RunError,
    StorageError,
)
from streamkm.files import remove_tree
from streamkm.runs.engine.labelling import plan_labelling
from streamkm.runs.partitioning.clusters import Clusters
from streamkm.runs.partitioning.given import GivenLabels
from streamkm.runs.partitioning.ordering import placing_of, write_order
from streamkm.runs.partitioning.planning import plan_partition
from streamkm.runs.partitioning.record import (
    DISTANCES,
    LABELS,
    OFFSETS,
    UNFINISHED,
    PartitionFolder,
)
from streamkm.runs.partitioning.rows import plan_rows, rows_path, write_rows
from streamkm.runs.partitioning.work import Work
from streamkm.runs.planning.checks import check_outside
from streamkm.runs.predict import job_of, predict
from streamkm.runs.reporting.out_of_memory import memory_told
from streamkm.runs.reporting.progress import Progress
from streamkm.runs.storage.model import load_model
from streamkm.runs.storage.shared_path import check_shared
from streamkm.sinks import tidy
from streamkm.sources import beside_of, beside_row_bytes, id_notes, ids_of
from streamkm.sources.names import in_order
from streamkm.text import counted, format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from streamkm.config import ExecutionConfig
    from streamkm.distributed.world import World
    from streamkm.runs.partitioning.grouping import Grouping
    from streamkm.runs.partitioning.planning import PartitionPlan
    from streamkm.runs.planning.memory import MemoryPlan
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.runs.storage.model import Model
    from streamkm.sources.base import Source

__all__ = ["Job", "partition", "prepare"]


@dataclass(frozen=True)
class Job:
    """A partition before anything is written: what it is made of, and how."""

    run_dir: Path
    model: Model
    source: Source
    grouping: Grouping
    given: GivenLabels | None
    plan: PartitionPlan
    labelling: MemoryPlan | None
    """The memory in which rows are labelled before; None if they have labels."""
    record: dict[str, Any]
    """The content of partition.json."""
    notes: list[str]
    beside_bytes: int
    """Bytes of a row in the columns of a table that are carried along."""

    @property
    def memory(self) -> MemoryPlan:
        """That of the step that takes most."""
        plans = [self.plan.memory, *([self.labelling] if self.labelling else [])]
        return max(plans, key=lambda plan: plan.total_bytes)

    def check_space(self, out: Path) -> None:
        """Raise `RunError` if what the partition takes for certain does not fit on the disk."""
        there = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        free = shutil.disk_usage(out).free
        if self.plan.least_bytes > free + there:
            raise RunError(
                f"{out}: the partition takes {format_bytes(self.plan.least_bytes)} while it is "
                f"made, {format_bytes(free + there)} are free there; free space, or choose "
                "another ",
                Option("out"),
            )


def prepare(
    run_dir: Path,
    source: Source,
    execution: ExecutionConfig,
    out: Path,
    grouping: Grouping,
    stack: ExitStack,
    world: World = ALONE,
) -> Job:
    """Check what a partition is asked to do, and plan it; `stack` closes what is opened.

    Rows that have labels in `out` are not labelled again. The first process of `world` alone reads
    the run, and labels that are given: a collective.

    Raises
    ------
    InputError
        If the run, the source, the labels or the memory cannot be used.
    """
    model = load_model(run_dir, world)
    spec, ordered = source.spec, _checked(source, model, grouping)
    nan = grouping.nan or model.settings["nan"]
    job = job_of(run_dir, source, nan, [], "exact") if world.is_first else {}
    notes: list[str] = []
    given = None
    if grouping.labels is not None and world.is_first:
        given = GivenLabels(grouping.labels, spec.n_rows, with_distances=grouping.by_distance)
        stack.callback(given.close)
        note = given.check_origin(run_dir, job, model.k)
        notes += [note] if note else []
    beside_bytes, n_here = _beside_bytes(source, grouping), world.hosts.count(world.host)
    plan_grouping = partial(
        plan_partition, spec, model.k, execution, grouping,
        drops=nan == "drop" or grouping.labels is not None, beside_bytes=beside_bytes,
        n_processes=n_here,
    )  # fmt: skip
    labelling = None
    if grouping.labels is None and not _has_labels(out, grouping):
        try:
            labelling = plan_labelling(ordered.spec, model, execution, n_processes=n_here)
        except MemoryBudgetError as error:
            _raise_larger(error, plan_grouping)
    plan = plan_grouping()
    ids = ids_of(source) if grouping.rows == "parquet" and world.is_first else None
    notes += [] if ids is None else id_notes(ids, execution.max_host_memory)
    if spec.dtype == "bfloat16" and grouping.rows is not None:
        notes.append("rows.npy has the bits of each bfloat16 as uint16")
    record = {
        "version": __version__,
        "run": str(run_dir),
        "model": job.get("model"),
        "source": source.name,
        "data": {
            "fingerprint": source.fingerprint(),
            "shape": [spec.n_rows, spec.n_features],
            "dtype": spec.dtype,
        },
        "settings": _settings(grouping, nan),
        "feature_names": list(spec.feature_names),
        "k": model.k,
        "done": False,
    }
    return Job(
        run_dir, model, source, grouping, given, plan, labelling, record, notes, beside_bytes
    )


def _settings(grouping: Grouping, nan: str) -> dict[str, Any]:
    """What decides the content of the partition, for its record."""
    return {
        "rows": grouping.rows,
        "sort": grouping.sort,
        "only": None if grouping.only is None else sorted({*grouping.only}),
        "nan": nan if grouping.labels is None else None,
        "labels": None if grouping.labels is None else str(grouping.labels),
    }


def _checked(source: Source, model: Model, grouping: Grouping) -> Source:
    """`source` with its features in the order of the model, if it can be partitioned."""
    spec = source.spec
    if spec.choice is not None:
        # Its row numbers would be those of the chosen rows, and its table columns missing.
        raise ConfigError(
            f"{source.name}: a partition is of all rows, not of those that were chosen "
            f"({spec.choice}); leave the choice out"
        )
    grouping.check(model.k, spec, source.name)
    ordered = in_order(source, model.feature_names, "the run")  # Refuses other names.
    if spec.n_features != model.n_features:
        raise ConfigError(
            f"{source.name} has {spec.n_features} features, the run's centroids have "
            f"{model.n_features}: they must agree; name the array that was clustered, or one with "
            "the same features in the same order"
        )
    return ordered


def _raise_larger(error: MemoryBudgetError, plan_grouping: Callable[[], object]) -> NoReturn:
    """Raise `error`, or that of the grouping if it asks for more."""
    try:
        plan_grouping()
    except MemoryBudgetError as other:
        if other.least_bytes > error.least_bytes:
            raise
    raise error


def _has_labels(out: Path, grouping: Grouping) -> bool:
    """Whether `out` has all that the labelling writes."""
    names = (LABELS, DISTANCES) if grouping.by_distance else (LABELS,)
    return all((out / name).exists() for name in names)


def _beside_bytes(source: Source, grouping: Grouping) -> int:
    """Bytes of a row in the columns that Parquet carries along; refuses a name that is taken."""
    if grouping.rows != "parquet":
        return 0
    if find_spec("pyarrow") is None:
        raise ConfigError(
            Option("rows", "parquet"),
            " needs pyarrow, which is not installed; install streamkm[parquet]",
        )
    from streamkm.runs.partitioning.parquet_rows import TableRows

    beside = beside_of(source)
    TableRows(source.spec, beside, source.name)
    return 0 if beside is None or not len(beside.schema) else beside_row_bytes(beside)


def partition(
    run_dir: Path,
    source: Source,
    execution: ExecutionConfig,
    out: Path,
    grouping: Grouping,
    *,
    resume: bool,
    stop_request: StopRequest,
    quiet: bool = False,
    world: World = ALONE,
) -> dict[str, Any]:
    """Group the rows of `source` by the clusters of a run; returns the content of partition.json.

    Parameters
    ----------
    run_dir : Path
        A finished run of K clusters.
    source : Source
        N rows by as many features as the run's centroids have. Rows are written as it gives them,
        not scaled.
    execution : ExecutionConfig
        How to carry it out; `checkpoint_every` says how often what is written is made durable.
    out : Path
        The folder to write (see `streamkm.runs.partitioning.record`).
    grouping : Grouping
        What to write, and in which order.
    resume : bool
        Go on with the partition in `out`, or start. Do nothing if it is done.
    stop_request : StopRequest
        Asked after every batch.
    quiet : bool
        Say nothing on stderr.
    world : World, optional
        The processes that share the rows. All call `partition` with the same arguments, and see
        `out`.

    Raises
    ------
    Interrupted
        After `stop_request`; what was written is durable.
    InputError
        If the arguments, the data, the run or the folder cannot be used.
    AllocationError
        If the machine refuses memory; what was durable before is kept.
    StorageError
        If the disk refuses; what was durable before is kept for `resume`.
    """
    check_outside(source, out=out)
    before = PartitionFolder.check_is_free(out, resume=resume) if world.is_first else None
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(quiet=quiet or not world.is_first))
        job = prepare(run_dir, source, execution, out, grouping, stack, world)
        world.agree({name: job.record[name] for name in ("data", "settings")})
        stack.enter_context(_told(out))
        folder = None
        if world.is_first:
            folder = stack.enter_context(PartitionFolder(out, job.record, before))
        if world.gather(before is not None and before["done"])[0]:
            if world.is_first:
                remove_tree(out / UNFINISHED)
            progress.say(f"{out} is finished, of this model and source: nothing is left to do")
            return _of_first(before, world)
        if world.is_first:
            job.check_space(out)
        check_shared([out], world)  # Its files would come and go while the others are added up.
        for note in job.notes:
            progress.say(f"note: {note}")
        work = Work(out, execution, stop_request, progress, world)
        world.meet()
        with memory_told(work.doing, resumable=True):
            _label(job, execution, work, stop_request, quiet=quiet)
            found = _group(job, work)
        if folder is not None:
            folder.write(done=True, **found)
        work.discard()
        progress.say(_conclusion(out, found, job))
        return _of_first(None if folder is None else folder.record, world)


def _of_first(record: dict[str, Any] | None, world: World) -> dict[str, Any]:
    """The record that the first process has, in all of them."""
    found: dict[str, Any] = world.gather(record if world.is_first else None)[0]
    return found


def _label(
    job: Job, execution: ExecutionConfig, work: Work, stop_request: StopRequest, *, quiet: bool
) -> None:
    """Write labels, and distances if rows are sorted by them, unless they are there."""
    world, labels = work.world, work.out / LABELS
    distances = work.out / DISTANCES if job.grouping.by_distance else None
    if job.given is not None:
        job.given.copy(labels, distances, job.source.spec.n_rows, job.model.k)
    is_labelled = job.grouping.labels is not None or _has_labels(work.out, job.grouping)
    if not world.gather(is_labelled)[0]:
        predict(
            job.run_dir, job.source, execution, labels=labels, distances=distances,
            nan=job.grouping.nan, resume=True, stop_request=stop_request, quiet=quiet,
            tells_ids=False, world=world,
        )  # fmt: skip
    if world.is_first:
        for path in (labels, *((distances,) if distances else ())):
            tidy(path)
    world.meet()


def _group(job: Job, work: Work) -> dict[str, Any]:
    """Write order and rows; what partition.json says of them."""
    kind = job.grouping.rows
    # Whoever goes on must find what others have put in buckets.
    memory = int(work.world.gather(job.plan.gather_bytes)[0])
    work.progress.say(f"grouping: {job.plan.memory}")
    with closing(Clusters(work.out / LABELS, job.model.k, job.grouping.only)) as clusters:
        write_order(
            clusters, work.out / DISTANCES if job.grouping.by_distance else None, memory, work
        )
        sizes = np.diff(np.load(work.out / OFFSETS))
        n_kept = int(sizes.sum())
        if kind is not None and not work.is_there(rows_path(work.out, kind)):
            plan = plan_rows(
                kind,
                job.source.spec,
                n_kept,
                job.model.k,
                memory,
                by_distance=job.grouping.by_distance,
            )
            placing = placing_of(clusters, work, memory, by_distance=job.grouping.by_distance)
            stream = job.plan.memory.stream
            write_rows(kind, job.source, clusters, placing, plan, job.plan.reading, stream, work)
        n_dropped = clusters.n_dropped() if work.world.is_first else 0
    only = job.grouping.only
    asked = sizes if only is None else sizes[sorted({*only})]
    return {
        "n_rows": n_kept,
        "n_dropped": n_dropped,
        "n_empty": int(np.count_nonzero(asked == 0)),
        "largest": int(sizes.max()),
    }


def _conclusion(out: Path, found: dict[str, Any], job: Job) -> str:
    said = f"written: {out}: {counted(found['n_rows'], 'row')} in "
    only = job.grouping.only
    n_asked = job.model.k if only is None else len({*only})
    said += f"{counted(n_asked - found['n_empty'], 'cluster')} of {n_asked:,}"
    said += f"{'' if only is None else ' asked for'}, the largest of "
    said += counted(found["largest"], "row")
    if found["n_dropped"]:
        said += f"; {counted(found['n_dropped'], 'row')} in no cluster, labelled -1 in {LABELS}"
    return said


@contextmanager
def _told(out: Path) -> Iterator[None]:
    """Turn the error of a full disk into one that says how to go on."""
    try:
        yield
    except (InputError, ElsewhereError, StorageError):
        raise
    except OSError as error:
        raise StorageError(
            f"{out}: cannot be written ({error}); what was saved before is intact: free space, or "
            "mend what keeps the disk from being written, then repeat with ",
            Option("resume", value=True),
        ) from error
