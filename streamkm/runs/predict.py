"""Streams the label, and the distance, of every row of an array to disk; can be resumed."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
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
from streamkm.runs.storage.parts_file import write_parts
from streamkm.sinks import commit_together, open_sink, tidy, unfinished_rows
from streamkm.sources import parts_of
from streamkm.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamkm.config import ExecutionConfig
    from streamkm.runs.engine.labelling import LabelledBatch
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.runs.storage.model import Model
    from streamkm.sinks import Sink
    from streamkm.sources import Source

__all__ = ["finished_line", "job_of", "output_dtypes", "predict"]


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
        that were dropped.
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
    job = job_of(run_dir, source, nan)
    parts = parts_of(source)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress())
        if resume and are_finished(run_dir, job, outputs, source.spec.n_rows):
            for path in paths:
                tidy(path)
                write_parts(path, parts)
            progress.say(finished_line(paths))
            return 0
        check_free(run_dir, paths, resume=resume)
        labelling = Labelling(model, source, execution)
        sinks = []
        for path, dtype in outputs:
            lost = 0 if resume else unfinished_rows(path)
            sink = open_sink(path, n_rows=source.spec.n_rows, dtype=dtype, resume=resume)
            sinks.append(stack.enter_context(sink))
            if lost:  # Said only now: `open_sink` refuses an output that another process writes.
                progress.say(
                    f"note: without --resume {path}.partial starts again; the {lost:,} rows "
                    "that were in it are discarded"
                )
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


def job_of(run_dir: Path, source: Source, nan: str) -> dict[str, str]:
    """What decides the values of an output: the model, the data and `nan`."""
    model = file_sha256(run_dir / "model.safetensors")
    return {"model": model, "data": source.fingerprint(), "nan": nan}


def finished_line(paths: list[Path]) -> str:
    """The line that says that the outputs at `paths` are finished."""
    are = "are" if len(paths) > 1 else "is"
    names = " and ".join(map(str, paths))
    return f"{names} {are} finished, by this model from this source: nothing is left to do"


def output_dtypes(
    model: Model, labels: Path, distances: Path | None
) -> list[tuple[Path, np.dtype[Any]]]:
    """(path, dtype) of each output, labels first."""
    outputs = [(labels, label_dtype(model.k))]
    if distances is not None:
        if distances.resolve() == labels.resolve():
            both = f" must differ, both are {labels}"
            raise ConfigError(Option("labels"), " and ", Option("distances"), both)
        outputs.append((distances, np.dtype(np.float32)))
    return outputs


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
        values = (labels_B, (batch.sq_distances_B.sqrt() / self._unit).cpu().numpy())
        # A resumed predict begins with the batch of the first missing row: some of it was counted.
        fresh = labels_B[max(self._counted_to - batch.start_row, 0) :]
        self.n_dropped += int((fresh < 0).sum())
        self._counted_to = batch.start_row + len(labels_B)
        for sink, value in zip(self._sinks, values, strict=False):
            sink.write(batch.start_row, value.astype(sink.dtype, copy=False))
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
