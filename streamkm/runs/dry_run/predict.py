"""The dry run of a predict: what it would do and need, and what speaks against it."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from streamkm.config import FitConfig
from streamkm.errors import InputError
from streamkm.runs.dry_run.report import DryRun, format_duration
from streamkm.runs.engine.labelling import Labelling
from streamkm.runs.engine.outputs import n_ranked, output_dtypes, table_bytes
from streamkm.runs.engine.probe import PROBE_S, format_rate
from streamkm.runs.planning.inspection import look_at
from streamkm.runs.predict import (
    finished_line,
    job_of,
    notes_on_ids,
    origin_of,
    written_ids,
)
from streamkm.runs.storage.model import load_model
from streamkm.runs.storage.output_records import are_finished, check_free
from streamkm.runs.storage.parts_file import check_parts
from streamkm.sinks import check_origin, copied_bytes, is_copy, is_table, unfinished_bytes
from streamkm.sources import id_row_bytes, parts_of
from streamkm.text import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

    from streamkm.config import ExecutionConfig
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.sources import Source

__all__ = ["dry_predict"]

#: Batches that are timed, at most, after a first one that counts only if it is alone.
PROBE_BATCHES = 64


def dry_predict(
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
) -> DryRun:
    """The report on what `streamkm.runs.predict.predict` would do with the same arguments.

    Raises
    ------
    StreamkmError
        After `stop_request`, which is asked after every batch.
    InputError
        As `predict` does, if it comes before there is anything to report. Later errors are in
        `DryRun.errors`.
    """
    model = load_model(run_dir)
    outputs = output_dtypes(model, labels, distances, second, nearest)
    paths = [path for path, _ in outputs]
    job = job_of(run_dir, source, nan or model.settings["nan"], paths, search, second)
    ids = written_ids(source, paths)
    if resume and are_finished(run_dir, job, outputs, source.spec.n_rows):
        return DryRun([("source", source.name), ("resume", finished_line(paths))])
    labelling = Labelling(
        model, source, execution, output_bytes=table_bytes(outputs, ids),
        n_nearest=n_ranked(second, nearest), fast=search == "fast",
    )  # fmt: skip
    spec, report, pause = source.spec, DryRun(), stop_request.end_if_asked
    config = FitConfig(**{**model.settings, "nan": nan or model.settings["nan"]})
    look = look_at(source, None, config, pause)
    rate = _rows_per_s(labelling, pause)
    report.facts += [
        ("run", f"{run_dir}: {model.k:,} centroids"),
        ("source", source.name),
        ("rows", f"{spec.n_rows:,} x {spec.n_features:,} features, {spec.dtype}"),
        ("size", f"{format_bytes(spec.nbytes)} ({spec.layout})"),
        ("memory", labelling.memory_description),
        ("device", f"{labelling.device}, {labelling.kernel_description}"),
        ("time", f"about {format_duration(spec.n_rows / rate)} at {format_rate(rate)}"),
    ]
    report.notes = [
        *source.notes(),
        *notes_on_ids(source, ids, execution),
        *labelling.notes,
        *look.notes,
    ]
    id_bytes = 0 if ids is None else id_row_bytes(ids)
    space = _space(report, outputs, id_bytes, source, run_dir, job["data"], resume=resume)
    report.errors += [look.error] if look.error is not None else []
    for folder, (most, least) in space.items():
        report.add_space(folder, most, "outputs", least=least)
    pause()
    return report


def _space(
    report: DryRun,
    outputs: list[tuple[Path, np.dtype[Any]]],
    id_bytes: int,
    source: Source,
    run_dir: Path,
    data: str,
    *,
    resume: bool,
) -> dict[Path, tuple[int, int]]:
    """(most, least) bytes that the outputs take in each folder; refusals go to the report.

    A row of a table or of a copy takes its bytes twice: unfinished and finished lie side by side
    for a while.
    """
    space: dict[Path, tuple[int, int]] = {}
    n_rows, origin = source.spec.n_rows, origin_of(source)
    for path, dtype in outputs:
        each = dtype.itemsize + id_bytes * is_table(path)
        # An unfinished output has part of its space already.
        there = unfinished_bytes(path) if resume else 0
        times = 2 if is_table(path) or is_copy(path) else 1
        missing = max(times * n_rows * each + copied_bytes(path, origin) - there, 0)
        # Chunks of Zarr and Parquet are compressed; an .npy file takes its space at the start.
        is_whole = path.suffix.lower() == ".npy" or is_copy(path)
        most, least = space.get(path.parent, (0, 0))
        space[path.parent] = most + missing, least + is_whole * missing
        try:
            check_free(run_dir, [path], resume=resume, data=data)
            check_origin(path, origin, n_rows, dtype)
            check_parts(path, parts_of(source))
        except InputError as error:
            report.errors.append(error)
    return space


def _rows_per_s(labelling: Labelling, pause: Callable[[], None]) -> float:
    """Rows a second of reading and labelling together, as a predict does them."""
    began = time.perf_counter()
    with labelling.batches() as batches:
        n_first = len(next(batches).labels_B.cpu())  # `cpu` waits for the device.
        first_s = time.perf_counter() - began
        n_rows, began = 0, time.perf_counter()
        for batch in islice(batches, PROBE_BATCHES):
            n_rows += len(batch.labels_B.cpu())
            pause()
            if time.perf_counter() - began >= PROBE_S:
                break
        spent_s = time.perf_counter() - began
    return n_rows / spent_s if n_rows else n_first / first_s
