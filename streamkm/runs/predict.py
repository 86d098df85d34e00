"""Streams the label, and the distance, of every row of an array to disk; can be resumed."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.errors import (
    ConfigError,
    InputError,
    Interrupted,
    NonFiniteError,
    Option,
    ResumeError,
    StorageError,
)
from streamkm.files import file_sha256
from streamkm.runs.engine.labelling import Labelling, label_dtype
from streamkm.runs.reporting.bad_rows import non_finite_error
from streamkm.runs.reporting.out_of_memory import memory_told
from streamkm.runs.reporting.progress import Progress
from streamkm.runs.storage.model import load_model
from streamkm.runs.storage.output_records import are_finished, check_free, record_outputs
from streamkm.runs.storage.parts_file import check_parts, write_parts
from streamkm.sinks import (
    CHUNK_ROWS,
    beside,
    commit_together,
    is_copy,
    is_table,
    open_sink,
    tidy,
    unfinished_rows,
)
from streamkm.sources import id_notes, id_row_bytes, ids_of, parts_of
from streamkm.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamkm.config import ExecutionConfig
    from streamkm.runs.engine.labelling import LabelledBatch
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.runs.storage.model import Model
    from streamkm.sinks import Sink
    from streamkm.sources import IdColumn, Source

__all__ = [
    "finished_line",
    "job_of",
    "notes_on_ids",
    "origin_of",
    "output_dtypes",
    "predict",
    "table_bytes",
    "written_ids",
]

#: Names of the columns of a table.
CLUSTER, DISTANCE = "cluster", "distance"


def predict(
    run_dir: Path,
    source: Source,
    execution: ExecutionConfig,
    *,
    labels: Path,
    distances: Path | None = None,
    nan: str | None = None,
    resume: bool,
    stop_request: StopRequest,
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
    nan : {"error", "drop"}, optional
        What to do about rows with NaN or infinity; by default as in the run.
    resume : bool
        Go on with outputs that an interrupted predict left unfinished. Do nothing if this
        model has finished all of them from these rows.
    stop_request : StopRequest
        Asked after every batch.

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
    model = load_model(run_dir)
    outputs = output_dtypes(model, labels, distances)
    paths = [path for path, _ in outputs]
    nan = nan or model.settings["nan"]
    job = job_of(run_dir, source, nan, paths)
    parts = parts_of(source)
    ids = written_ids(source, paths)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress())
        if resume and are_finished(run_dir, job, outputs, source.spec.n_rows):
            for path in paths:
                tidy(path)
                write_parts(path, parts)
            progress.say(finished_line(paths))
            return 0
        check_free(run_dir, paths, resume=resume)
        for path in paths:
            check_parts(path, parts)
        for note in notes_on_ids(source, ids, execution):
            progress.say(f"note: {note}")
        labelling = Labelling(model, source, execution, output_bytes=table_bytes(outputs, ids))
        sinks = [
            stack.enter_context(_opened(path, dtype, source, ids, progress, resume=resume))
            for path, dtype in outputs
        ]
        for sink in sinks:
            _check_job(sink, job)
        writer = _Writer(sinks, job, execution, stop_request, model.scaling.unit)
        with _kept_for_resuming(sinks), memory_told(writer.doing, resumable=True):
            if writer.start_row < source.spec.n_rows:
                _label_all(source, labelling, writer, progress, nan=nan)
            # The last rows become durable, and their cursor names the job until the commit.
            writer.save()
            refused = record_outputs(run_dir, job, sinks)
            lists = [write_parts(path, parts) for path in paths]
            commit_together(sinks)
        progress.say("written: " + " and ".join(map(str, paths)))
        if parts:
            says = "says" if len(lists) == 1 else "say"
            progress.say(f"{' and '.join(map(str, lists))} {says} which rows are of which file")
        if refused is not None:
            progress.say(f"note: a later --resume will not know that this is finished ({refused})")
    return writer.n_dropped


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
    rows = [dtype.itemsize + id_bytes for path, dtype in outputs if is_table(path)]
    return 3 * CHUNK_ROWS * sum(rows)


def finished_line(paths: list[Path]) -> str:
    """The line that says that the outputs at `paths` are finished."""
    are = "are" if len(paths) > 1 else "is"
    names = " and ".join(map(str, paths))
    return f"{names} {are} finished, by this model from this source: nothing is left to do"


def output_dtypes(
    model: Model, labels: Path, distances: Path | None
) -> list[tuple[Path, np.dtype[Any]]]:
    """(path, dtype) of each output, labels first; a table has a field for each column."""
    cluster, distance = (CLUSTER, label_dtype(model.k)), (DISTANCE, np.dtype(np.float32))
    outputs = [(labels, np.dtype([cluster, distance]) if is_table(labels) else cluster[1])]
    if distances is not None:
        if distances.resolve() == labels.resolve():
            both = f" must differ, both are {labels}"
            raise ConfigError(Option("labels"), " and ", Option("distances"), both)
        if is_copy(distances):
            raise ConfigError(
                f"{distances}: only ",
                Option("labels"),
                " can be a copy of the source; write the distances as .npy or .parquet",
            )
        outputs.append((distances, np.dtype([distance]) if is_table(distances) else distance[1]))
    return outputs


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
    except InputError as error:
        # A row that is not finite stays so; what could not be read may be read next time.
        if isinstance(error, NonFiniteError) or not any(sink.durable_rows for sink in sinks):
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
    source: Source, labelling: Labelling, writer: _Writer, progress: Progress, *, nan: str
) -> None:
    """Stream the rows that are left through the model to the sinks."""
    progress.introduce(source, labelling.notes)
    if writer.start_row:
        progress.say(f"resumed: from row {writer.start_row:,}")
    progress.say(f"on {labelling.device}, {labelling.kernel_description}, {labelling.memory}")
    with labelling.batches(writer.start_row) as batches:
        progress.begin("predict", source.spec.n_rows, labelling.times, done=writer.start_row)
        for batch in batches:
            if batch.n_dropped and nan == "error":
                raise non_finite_error(source, batch.n_dropped)
            writer.write(batch)
            progress.advance(len(batch.labels_B))
            if progress.is_due():
                progress.report({})
    progress.say(labelling.times.summary())
    if writer.n_dropped:
        since = f" from row {writer.start_row:,} on" if writer.start_row else ""
        rows = counted(writer.n_dropped, "row")
        progress.say(f"dropped: {rows}{since} with NaN or infinity, labelled -1")


class _Writer:
    """Writes batches to the sinks and makes them durable as often as asked."""

    def __init__(
        self,
        sinks: list[Sink],
        job: dict[str, str],
        execution: ExecutionConfig,
        stop_request: StopRequest,
        unit: float,
    ) -> None:
        self._sinks, self._job, self._stop_request = sinks, job, stop_request
        self._unit = unit
        self._cadence = execution.checkpoint_every
        self._saved_at, self._batches = time.monotonic(), 0
        self.n_dropped = 0
        self.start_row = self._counted_to = min(sink.next_row for sink in sinks)

    def write(self, batch: LabelledBatch) -> None:
        """Write one batch; make it durable if that is due; raise `Interrupted` if asked."""
        labels_B = batch.labels_B.cpu().numpy()
        distances_B = (batch.sq_distances_B.sqrt() / self._unit).cpu().numpy()
        columns = {CLUSTER: labels_B, DISTANCE: distances_B}
        # A resumed predict begins with the batch of the first missing row: some of it was counted.
        fresh = labels_B[max(self._counted_to - batch.start_row, 0) :]
        self.n_dropped += int((fresh < 0).sum())
        self._counted_to = batch.start_row + len(labels_B)
        for sink, column in zip(self._sinks, columns.values(), strict=False):
            sink.write(batch.start_row, _as_stored(sink.dtype, column, columns))
        self._batches += 1
        asked = self._stop_request.signal_name
        elapsed_s = time.monotonic() - self._saved_at
        if asked is not None or self._cadence.is_due(self._batches, elapsed_s):
            self.save()
        if asked is not None:
            raise Interrupted(
                f"stopped by {asked}; rows up to {self._sinks[0].durable_rows:,} are saved: "
                "repeat with ",
                Option("resume", value=True),
                " to go on",
            )

    def doing(self) -> str:
        """How far labelling has come, for the message of an `AllocationError`."""
        return f"labelling, after row {self._counted_to:,}"

    def save(self) -> None:
        """Make the rows so far durable."""
        for sink in self._sinks:
            sink.write_cursor(self._job)
        self._saved_at, self._batches = time.monotonic(), 0


def _as_stored(
    dtype: np.dtype[Any], column: np.ndarray, columns: dict[str, np.ndarray]
) -> np.ndarray:
    """`column` in `dtype`, or the `columns` that its fields name."""
    if dtype.names is None:
        return column.astype(dtype, copy=False)
    table = np.empty(len(column), dtype)
    for name in dtype.names:
        table[name] = columns[name]
    return table


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
