"""Streams the label, and the distance, of every row of an array to disk; can be resumed."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.distributed.world import ALONE
from streamkm.errors import (
    ConfigError,
    ElsewhereError,
    InputError,
    NonFiniteError,
    Option,
    ResumeError,
    StorageError,
)
from streamkm.files import file_sha256
from streamkm.runs.engine.collecting import collected
from streamkm.runs.engine.labelling import Labelling, label_dtype
from streamkm.runs.engine.writing import CLUSTER, DISTANCE, SECOND, FoundRows, Writer
from streamkm.runs.reporting.bad_rows import non_finite_error
from streamkm.runs.reporting.out_of_memory import memory_told
from streamkm.runs.reporting.progress import Progress
from streamkm.runs.storage.model import load_model
from streamkm.runs.storage.output_records import are_finished, check_free, record_outputs
from streamkm.runs.storage.parts_file import check_parts, write_parts
from streamkm.sinks import (
    beside,
    chunk_rows_of,
    commit_together,
    is_copy,
    is_table,
    open_sink,
    tidy,
    unfinished_rows,
)
from streamkm.sources import RowRange, id_notes, id_row_bytes, ids_of, parts_of
from streamkm.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streamkm.config import ExecutionConfig
    from streamkm.distributed.world import World
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.runs.storage.model import Model
    from streamkm.sinks import Sink
    from streamkm.sources import IdColumn, Source

__all__ = [
    "finished_line",
    "job_of",
    "n_ranked",
    "notes_on_ids",
    "origin_of",
    "output_dtypes",
    "predict",
    "table_bytes",
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
    resume: bool,
    stop_request: StopRequest,
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
    resume : bool
        Go on with outputs that an interrupted predict left unfinished. Do nothing if this
        model has finished all of them from these rows.
    stop_request : StopRequest
        Asked after every batch.
    world : World, optional
        The processes that share the rows. All call `predict` with the same arguments; the first
        alone writes, reads and locks outputs.

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
    job = job_of(run_dir, source, nan, paths) if world.is_first else {}
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(quiet=not world.is_first))
        if resume:
            is_finished = False
            if world.is_first and are_finished(run_dir, job, outputs, source.spec.n_rows):
                is_finished = True
                _say_finished(paths, source, progress)
            world.meet()
            if world.gather(is_finished)[0]:
                return 0
        ids = written_ids(source, paths)
        if world.is_first:
            check_free(run_dir, paths, resume=resume)
            for path in paths:
                check_parts(path, parts_of(source))
            for note in notes_on_ids(source, ids, execution):
                progress.say(f"note: {note}")
        labelling = Labelling(
            model, source, execution, output_bytes=table_bytes(outputs, ids), world=world,
            n_nearest=n_ranked(second, nearest),
        )  # fmt: skip
        sinks = [
            stack.enter_context(_opened(*output, source, ids, progress, resume=resume))
            for output in (outputs if world.is_first else ())
        ]
        for sink in sinks:
            _check_job(sink, job)
        world.meet()
        start_row = world.gather(min((sink.next_row for sink in sinks), default=0))[0]
        columns = (CLUSTER, *_columns(distances, second))
        writer = Writer(sinks, columns, job, execution, stop_request, start_row, world)
        with _kept_for_resuming(sinks), memory_told(writer.doing, resumable=True):
            if start_row < source.spec.n_rows:
                found = FoundRows(_fields(outputs, columns), model.scaling.unit)
                _label_all(source, labelling, found, writer, progress, nan=nan)
            if world.is_first:
                _conclude(run_dir, source, sinks, writer, progress)
            world.meet()
    return writer.n_dropped


def _say_finished(paths: list[Path], source: Source, progress: Progress) -> None:
    """Delete what an attempt has left beside finished outputs, and say that they are finished."""
    for path in paths:
        tidy(path)
        write_parts(path, parts_of(source))
    progress.say(finished_line(paths))


def _conclude(
    run_dir: Path, source: Source, sinks: list[Sink], writer: Writer, progress: Progress
) -> None:
    """Give the outputs their names, once all rows are in them."""
    # The last rows become durable, and their cursor names the job until the commit.
    writer.save()
    refused = record_outputs(run_dir, writer.job, sinks)
    parts, paths = parts_of(source), [sink.path for sink in sinks]
    lists = [write_parts(path, parts) for path in paths]
    commit_together(sinks)
    progress.say("written: " + " and ".join(map(str, paths)))
    if parts:
        says = "says" if len(lists) == 1 else "say"
        progress.say(f"{' and '.join(map(str, lists))} {says} which rows are of which file")
    if refused is not None:
        progress.say(f"note: a later --resume will not know that this is finished ({refused})")


def job_of(run_dir: Path, source: Source, nan: str, outputs: list[Path]) -> dict[str, str]:
    """What decides the values of `outputs`: the model, the data, `nan`, and the column of ids."""
    model = file_sha256(run_dir / "model.safetensors")
    job = {"model": model, "data": source.fingerprint(), "nan": nan}
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


def table_bytes(outputs: list[tuple[Path, np.dtype[Any]]], ids: IdColumn | None) -> int:
    """Host bytes of a chunk of each output that is a table: values and ids, three times each.

    Once as they come, once as the columns of a chunk, once as the chunk is written.
    """
    id_bytes = 0 if ids is None else id_row_bytes(ids)
    return 3 * sum(
        chunk_rows_of(dtype) * (dtype.itemsize + id_bytes)
        for path, dtype in outputs
        if is_table(path)
    )


def finished_line(paths: list[Path]) -> str:
    """The line that says that the outputs at `paths` are finished."""
    are = "are" if len(paths) > 1 else "is"
    names = " and ".join(map(str, paths))
    return f"{names} {are} finished, by this model from this source: nothing is left to do"


def n_ranked(second: Path | None, nearest: int | None) -> int:
    """How many of the nearest centroids of each row must be found."""
    return max(nearest or 1, 1 if second is None else 2)


def output_dtypes(
    model: Model,
    labels: Path,
    distances: Path | None,
    second: Path | None = None,
    nearest: int | None = None,
) -> list[tuple[Path, np.dtype[Any]]]:
    """(path, dtype) of each output, labels first; a table has a field for each column."""
    _check_nearest(model, second, nearest)
    several = () if nearest is None else (nearest,)
    cluster = (CLUSTER, np.dtype((label_dtype(model.k), several)))
    distance = (DISTANCE, np.dtype((np.float32, several)))
    of_labels = np.dtype([cluster, distance]) if is_table(labels) else cluster[1]
    outputs: list[tuple[Path, np.dtype[Any]]] = [(labels, of_labels)]
    for column, path in _columns(distances, second).items():
        if is_copy(path):
            raise ConfigError(
                f"{path}: only ",
                Option("labels"),
                " can be a copy of the source; write the distances as .npy or .parquet",
            )
        dtype: np.dtype[Any] = distance[1] if column == DISTANCE else np.dtype(np.float32)
        outputs.append((path, np.dtype([(column, dtype)]) if is_table(path) else dtype))
    _refuse_same({"labels": labels, "distances": distances, "second": second})
    return outputs


def _check_nearest(model: Model, second: Path | None, nearest: int | None) -> None:
    """Refuse more centroids of a row than there are."""
    if nearest is not None and not 1 <= nearest <= model.k:
        raise ConfigError(
            Option("nearest", nearest),
            f" must be from 1 to {model.k}, the number of centroids of the run",
        )
    if second is not None and model.k == 1:
        raise ConfigError(
            Option("second"), " is the distance to the second nearest centroid, the run has only 1"
        )


def _refuse_same(outputs: dict[str, Path | None]) -> None:
    """Refuse two outputs of one path; `outputs` are by option."""
    seen: dict[Path, str] = {}
    for option, path in outputs.items():
        other = None if path is None else seen.setdefault(path.resolve(), option)
        if other not in (None, option):
            both = f" must differ, both are {path}"
            raise ConfigError(Option(str(other)), " and ", Option(option), both)


def _columns(distances: Path | None, second: Path | None) -> dict[str, Path]:
    """The outputs beside the labels by the name of their column."""
    outputs = {DISTANCE: distances, SECOND: second}
    return {column: path for column, path in outputs.items() if path is not None}


def _fields(
    outputs: list[tuple[Path, np.dtype[Any]]], columns: Sequence[str]
) -> list[tuple[str, np.dtype[Any]]]:
    """(name, dtype) of all columns that the outputs have, each once."""
    fields: dict[str, np.dtype[Any]] = {}
    for (_, dtype), column in zip(outputs, columns, strict=True):
        fields |= {name: dtype[name] for name in dtype.names or ()} or {column: dtype}
    return list(fields.items())


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
                sink.discard()
        raise
    except OSError as error:
        raise StorageError(
            f"{sinks[0].path}: cannot be written ({error}); the rows that were saved before are "
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
    *,
    nan: str,
) -> None:
    """Stream the rows that are left through the model to the sinks."""
    progress.introduce(source, labelling.notes)
    start_row = writer.start_row
    if start_row:
        progress.say(f"resumed: from row {start_row:,}")
    progress.say(f"on {labelling.device}, {labelling.kernel_description}, {labelling.memory}")
    with labelling.batches(start_row) as batches:
        progress.begin("predict", source.spec.n_rows, labelling.times, done=start_row)
        for place, found_B in collected(
            labelling.places(start_row),
            map(rows.of, batches),
            rows.dtype,
            labelling.world,
            labelling.most_waiting,
        ):
            if found_B is not None:
                n_dropped = rows.n_dropped(found_B)
                if n_dropped and nan == "error":
                    where = RowRange(place.start_row, place.start_row + place.n_rows)
                    raise non_finite_error(source, n_dropped, within=where)
                writer.write(place.start_row, found_B)
            writer.after(place)
            progress.advance(place.n_rows)
            if progress.is_due():
                progress.report({})
    writer.finish()
    progress.say(labelling.times.summary())
    if writer.n_dropped:
        since = f" from row {start_row:,} on" if start_row else ""
        dropped = counted(writer.n_dropped, "row")
        progress.say(f"dropped: {dropped}{since} with NaN or infinity, labelled -1")


def _check_job(sink: Sink, job: dict[str, str]) -> None:
    """Refuse to go on with an unfinished output of another model, other data or another `nan`."""
    before = sink.read_cursor() or ({} if sink.durable_rows else job)
    for name, value in job.items():
        if before.get(name) != value:
            raise ResumeError(
                f"{sink.path}: its unfinished output was made with another {name} "
                f"({before.get(name)}, now {value}); start again without ",
                Option("resume", value=True),
            )
