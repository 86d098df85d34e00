"""Streams the label, and the distance, of every row of an array to disk; can be resumed."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from streamkm.distributed.world import ALONE
from streamkm.errors import (
    ElsewhereError,
    InputError,
    NonFiniteError,
    Option,
    ResumeError,
    StorageError,
)
from streamkm.files import file_sha256
from streamkm.runs.engine.allotment import Allotment
from streamkm.runs.engine.labelling import Labelling
from streamkm.runs.engine.outputs import (
    columns_of,
    fields_of,
    n_ranked,
    output_dtypes,
    table_bytes,
)
from streamkm.runs.engine.writing import FoundRows, Output, Writer
from streamkm.runs.reporting.out_of_memory import memory_told
from streamkm.runs.reporting.progress import Progress
from streamkm.runs.storage.model import load_model
from streamkm.runs.storage.output_records import are_finished, check_free, record_outputs
from streamkm.runs.storage.parts_file import check_parts, write_parts
from streamkm.runs.storage.shared_path import check_shared
from streamkm.sinks import (
    PartedSink,
    beside,
    commit_together,
    has_parts,
    is_table,
    open_part,
    open_sink,
    tidy,
    unfinished_rows,
)
from streamkm.sources import id_notes, ids_of, parts_of
from streamkm.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from streamkm.config import ExecutionConfig
    from streamkm.distributed.world import World
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.sinks import Sink
    from streamkm.sources import IdColumn, Source

T = TypeVar("T")

__all__ = [
    "finished_line",
    "job_of",
    "notes_on_ids",
    "origin_of",
    "predict",
    "written_ids",
]


def predict(
    run_dir: Path,
    source: Source,
    execution: ExecutionConfig,
    *,
    labels: Path,
    distances: Path | None = None,
    second: Path | None = None,
    nearest: int | None = None,
    nan: str | None = None,
    search: str = "exact",
    resume: bool,
    stop_request: StopRequest,
    quiet: bool = False,
    tells_ids: bool = True,
    world: World = ALONE,
) -> int:
    """Write the nearest centroid of every row of `source`; returns how many rows it dropped.

    Parameters
    ----------
    run_dir : Path
        A finished run.
    source : Source
        N rows by as many features as the run's centroids have.
    execution : ExecutionConfig
        How to carry it out; `checkpoint_every` says how often rows are made durable.
    labels : Path
        ``.npy`` or ``.zarr`` of N labels, int32 (int64 from 2^31 clusters on); -1 for rows
        that were dropped. A ``.parquet`` holds the columns cluster and distance, and the
        source's ids before them, if it was opened with some. An ``.h5ad`` is a copy of the
        source, whose obs gets the column cluster. An array in a Zarr store, such as
        ``store.zarr/cluster``, has the shape of the source's rows.
    distances : Path, optional
        The same of the Euclidean distances (not squared) in the scaled space, float32; NaN
        for rows that were dropped. For cosine they are those of the unit vectors: half the
        square is the cosine distance.
    second : Path, optional
        The same of the distances to the second nearest centroids.
    nearest : int, optional
        M: labels and distances are (N, M), of the M nearest centroids, nearest first; equal
        distances go by the lower index. 1 gives (N, 1). By default they are (N,).
    nan : {"error", "drop"}, optional
        What to do about rows with NaN or infinity; by default as in the run.
    search : {"exact", "fast"}
        Whether each row is compared with every centroid, or with those around one branch.
    resume : bool
        Go on with outputs that an interrupted predict left unfinished. Do nothing if this
        model has finished all of them from these rows.
    stop_request : StopRequest
        Asked after every batch.
    quiet : bool
        Say nothing on stderr.
    tells_ids : bool
        Say what there is to say about ids; False for a command that goes on with the labels.
    world : World, optional
        The processes that share the rows. All call `predict` with the same arguments. Each writes
        a part of the outputs, in a folder that all see; the first alone writes tables, and what
        says how far all have come.

    Raises
    ------
    Interrupted
        After `stop_request`; the rows written so far are durable.
    InputError
        If the arguments, the data, the run or an output cannot be used.
    AllocationError
        If the machine or the GPU refuses memory; what was durable before is kept.
    StorageError
        If the disk refuses; what was durable before is kept for `resume`.
    """
    model = load_model(run_dir, world)
    outputs = output_dtypes(model, labels, distances, second, nearest)
    paths = [path for path, _ in outputs]
    nan = nan or model.settings["nan"]
    # Only the first process needs the run folder, and what was written before.
    job = job_of(run_dir, source, nan, paths, search, second) if world.is_first else {}
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(quiet=quiet or not world.is_first))
        if resume and _is_finished(run_dir, job, outputs, source, progress, world):
            return 0
        ids = written_ids(source, paths)
        if world.is_first:
            _check_free(run_dir, paths, source, job["data"], resume=resume)
            if tells_ids:
                _say_notes(notes_on_ids(source, ids, execution), progress)
        labelling = Labelling(
            model, source, execution, output_bytes=table_bytes(outputs, ids), world=world,
            n_nearest=n_ranked(second, nearest), fast=search == "fast",
        )  # fmt: skip
        check_shared(_shared_folders(paths), world)
        sinks = [
            stack.enter_context(_opened(*output, source, ids, progress, resume=resume))
            for output in (outputs if world.is_first else ())
        ]
        columns = columns_of(distances, second)
        n_rows = source.spec.n_rows
        allotted, start_row = _allotted(outputs, columns, sinks, job, n_rows, world, stack)
        writer = Writer(
            allotted, job, source, refuses=nan == "error", execution=execution, world=world,
            stop_request=stop_request, start_row=start_row, most_sent=labelling.most_waiting,
        )  # fmt: skip
        with _kept_for_resuming(sinks), memory_told(writer.doing, resumable=True):
            if start_row < n_rows:
                fields = fields_of(outputs, columns)
                rows = FoundRows(fields, model.scaling.unit, labelling.most_ahead)
                _label_all(source, labelling, rows, writer, progress)
            # The last rows become durable, and their cursor names the job until the commit.
            writer.finish()
            _say_dropped(writer, progress)
            if world.is_first:
                _conclude(run_dir, source, sinks, writer.job, progress)
            world.meet()
    return writer.n_dropped


def _shared_folders(paths: list[Path]) -> list[Path]:
    """The folders in which all processes write."""
    folders = [beside(path, ".partial").parent for path in paths if has_parts(path)]
    return list(dict.fromkeys(folders))


def _allotted(
    outputs: list[tuple[Path, np.dtype[Any]]],
    columns: Sequence[str],
    sinks: list[Sink],
    job: dict[str, str],
    n_rows: int,
    world: World,
    stack: ExitStack,
) -> tuple[list[Output], int]:
    """The outputs as this process sees them, and the first row that one of them lacks.

    `sinks` are those of the first process, none in others, and `job` must be what they began with.
    """
    for sink in sinks:
        _check_job(sink, job)
    own: list[Sink | None] = [*sinks] or [None] * len(outputs)
    shares = [world.size > 1 and isinstance(sink, PartedSink) for sink in sinks]
    for sink, is_shared in zip(sinks, shares, strict=True):
        if is_shared:
            sink.admit_others()
    world.meet()  # To reserve the space, or to check what is there, may take a while.
    begun = world.gather([[sink.next_row for sink in sinks], shares])[0]
    found = []
    for (path, dtype), name, sink, start_row, is_shared in zip(
        outputs, columns, own, *begun, strict=True
    ):
        part = sink.part if isinstance(sink, PartedSink) and is_shared else None
        if sink is None and is_shared:
            part = stack.enter_context(
                open_part(path, n_rows=n_rows, dtype=dtype, start_row=start_row)
            )
        span_end = None if part is None else part.span_end
        allotment = Allotment(start_row, world.size, span_end)
        found.append(Output(name, dtype, sink, part, allotment))
    return found, min(begun[0])


def _check_free(
    run_dir: Path, paths: list[Path], source: Source, data: str, *, resume: bool
) -> None:
    """Refuse outputs that are there, or that another process writes."""
    check_free(run_dir, paths, resume=resume, data=data)
    for path in paths:
        check_parts(path, parts_of(source))


def _is_finished(
    run_dir: Path,
    job: dict[str, str],
    outputs: list[tuple[Path, np.dtype[Any]]],
    source: Source,
    progress: Progress,
    world: World,
) -> bool:
    """Whether all outputs are finished, which the first process says."""
    is_finished = world.is_first and are_finished(run_dir, job, outputs, source.spec.n_rows)
    if is_finished:
        _say_finished([path for path, _ in outputs], source, progress)
    world.meet()
    found: bool = world.gather(is_finished)[0]
    return found


def _say_finished(paths: list[Path], source: Source, progress: Progress) -> None:
    """Delete what an attempt has left beside finished outputs, and say that they are finished."""
    for path in paths:
        tidy(path)
        write_parts(path, parts_of(source))
    progress.say(finished_line(paths))


def _conclude(
    run_dir: Path, source: Source, sinks: list[Sink], job: dict[str, str], progress: Progress
) -> None:
    """Give the outputs their names, once all rows are in them."""
    refused = record_outputs(run_dir, job, sinks)
    parts, paths = parts_of(source), [sink.path for sink in sinks]
    lists = [write_parts(path, parts) for path in paths]
    commit_together(sinks)
    progress.say("written: " + " and ".join(map(str, paths)))
    if parts:
        says = "says" if len(lists) == 1 else "say"
        progress.say(f"{' and '.join(map(str, lists))} {says} which rows are of which file")
    if refused is not None:
        progress.say(f"note: a later --resume will not know that this is finished ({refused})")


def job_of(
    run_dir: Path,
    source: Source,
    nan: str,
    outputs: list[Path],
    search: str,
    second: Path | None = None,
) -> dict[str, str]:
    """What decides the values of `outputs`: model, data, `nan`, the column of ids, the search.

    `second` is the one of them that has second distances: distances look like them.
    """
    model = file_sha256(run_dir / "model.safetensors")
    job = {"model": model, "data": source.fingerprint(), "nan": nan}
    if search != "exact":
        job["search"] = search
    if second is not None:
        job["second"] = second.name
    ids = written_ids(source, outputs)
    return job if ids is None else {**job, "ids": ids.column}


def written_ids(source: Source, outputs: list[Path]) -> IdColumn | None:
    """The ids of `source`, if one of `outputs` is a table that has them."""
    return ids_of(source) if any(is_table(path) for path in outputs) else None


def origin_of(source: Source) -> Path | None:
    """The local file that `source` reads, or the folder of its Zarr array; None if it is none."""
    return Path(source.spec.file) if source.spec.file else None


def notes_on_ids(source: Source, ids: IdColumn | None, execution: ExecutionConfig) -> list[str]:
    """Notes on the `ids` that are written, or on those of `source` if none are."""
    if ids is not None:
        return id_notes(ids, execution.max_host_memory)
    unwritten = ids_of(source)
    if unwritten is None:
        return []
    return [f"ids of column {unwritten.column!r} are not written: only .parquet outputs have them"]


def finished_line(paths: list[Path]) -> str:
    """The line that says that the outputs at `paths` are finished."""
    are = "are" if len(paths) > 1 else "is"
    names = " and ".join(map(str, paths))
    return f"{names} {are} finished, by this model from this source: nothing is left to do"


def _opened(
    path: Path,
    dtype: np.dtype[Any],
    source: Source,
    ids: IdColumn | None,
    progress: Progress,
    *,
    resume: bool,
) -> Sink:
    """The sink of one output; says how many saved rows it discards."""
    lost = 0 if resume else unfinished_rows(path)
    spec = source.spec
    sink = open_sink(
        path, n_rows=spec.n_rows, dtype=dtype, resume=resume, ids=ids, grid=spec.grid,
        origin=origin_of(source),
    )  # fmt: skip
    if lost:  # Said only now: `open_sink` refuses an output that another process writes.
        progress.say(
            f"note: without --resume {beside(path, '.partial')} starts again; the {lost:,} rows "
            "that were in it are discarded"
        )
    return sink


@contextmanager
def _kept_for_resuming(sinks: list[Sink]) -> Iterator[None]:
    """On an error keep the durable rows, unless no later attempt could finish them."""
    try:
        yield
    except (InputError, ElsewhereError) as error:
        # A row that is not finite stays so; what could not be read may be read next time.
        is_input = error.exit_status == InputError.exit_status
        nothing_is_saved = is_input and not any(sink.durable_rows for sink in sinks)
        if isinstance(error, NonFiniteError) or nothing_is_saved:
            for sink in sinks:
                # Another process may be writing yet. Without a cursor what is left is nobody's.
                with suppress(OSError):
                    sink.discard()
        raise
    except OSError as error:
        where = sinks[0].path if sinks else error.filename
        raise StorageError(
            f"{where}: cannot be written ({error}); the rows that were saved before are "
            "intact: free space, or mend what keeps the disk from being written, then "
            "repeat with ",
            Option("resume", value=True),
        ) from error


def _label_all(
    source: Source,
    labelling: Labelling,
    rows: FoundRows,
    writer: Writer,
    progress: Progress,
) -> None:
    """Stream the rows that are left through the model to who writes them."""
    progress.introduce(source, labelling.notes)
    start_row = writer.start_row
    if start_row:
        progress.say(f"resumed: from row {start_row:,}")
    progress.say(f"on {labelling.device}, {labelling.kernel_description}, {labelling.memory}")
    with labelling.batches(start_row) as batches:
        progress.begin("predict", source.spec.n_rows, labelling.times, done=start_row)
        fetched = (
            (place, rows.queued(next(batches)) if place.owner == labelling.world.rank else None)
            for place in labelling.places(start_row)
        )
        for place, found in _after(fetched, labelling.most_ahead):
            writer.write(place, None if found is None else found())
            writer.after(place)
            progress.advance(place.n_rows)
            if progress.is_due():
                progress.report({})
    progress.say(labelling.times.summary())


def _after(items: Iterator[T], n: int) -> Iterator[T]:
    """`items`, each when `n` more have been begun, or none is left."""
    begun: deque[T] = deque()
    for item in items:
        begun.append(item)
        if len(begun) > n:
            yield begun.popleft()
    yield from begun


def _say_notes(notes: list[str], progress: Progress) -> None:
    for note in notes:
        progress.say(f"note: {note}")


def _say_dropped(writer: Writer, progress: Progress) -> None:
    if writer.n_dropped:
        since = f" from row {writer.start_row:,} on" if writer.start_row else ""
        dropped = counted(writer.n_dropped, "row")
        progress.say(f"dropped: {dropped}{since} with NaN or infinity, labelled -1")


def _check_job(sink: Sink, job: dict[str, str]) -> None:
    """Refuse to go on with an unfinished output of another model, other data or another `nan`."""
    before = sink.read_cursor() or ({} if sink.durable_rows else job)
    # Where none is named, it is the exact one.
    before, job = ({"search": "exact", **each} for each in (before, job))
    for name, value in job.items():
        if before.get(name) != value:
            raise ResumeError(
                f"{sink.path}: its unfinished output was made with another {name} "
                f"({before.get(name)}, now {value}); start again without ",
                Option("resume", value=True),
            )
