"""Describes what a path holds: a source, or a run and how far it has come. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.config import FitConfig
from streamkm.errors import RunError
from streamkm.runs.engine.comparing import changes_line
from streamkm.runs.engine.summary import Spread, bounds_line, median_size
from streamkm.runs.reporting.terminal_plot import terminal_plot
from streamkm.runs.storage.checkpoint import load_checkpoint
from streamkm.runs.storage.metrics_file import inertia_course, read_metrics
from streamkm.runs.storage.model_file import (
    MODEL,
    NEWER_FIGURES,
    centroids_are_whole,
    read_model_file,
)
from streamkm.runs.storage.run_folder import feature_names, read_config, run_owner
from streamkm.sealed import DAMAGE, in_words
from streamkm.sources import parts_of
from streamkm.sources.names import shown
from streamkm.text import counted, format_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.sources import Part, Source

__all__ = ["describe_run", "describe_source"]

#: Settings of a run that are always shown; the others only if they differ from the default.
ALWAYS_SHOWN = ("k", "algorithm", "epochs", "batch_rows", "init", "metric", "scale", "seed", "rate")

#: Files of a source that are listed, at most.
PARTS_SHOWN = 12


def describe_source(source: Source) -> str:
    """Shape, dtype, size and layout of a source, and notes on it, a line each."""
    spec = source.spec
    lines = [
        f"source       {source.name}",
        f"rows         {spec.n_rows:,}",
        f"features     {spec.n_features:,}{_named(spec.feature_names)}",
        f"dtype        {spec.dtype}",
        f"size         {format_bytes(spec.nbytes)}",
        f"layout       {spec.layout}",
        f"read by      {spec.block_rows:,} rows ({format_bytes(spec.block_rows * spec.row_bytes)})",
        f"fingerprint  {source.fingerprint()}",
        *_order_lines(parts_of(source)),
    ]
    return "\n".join([*lines, *(f"note         {note}" for note in source.notes())])


def _order_lines(parts: list[Part]) -> list[str]:
    """The files of a source in the order of their rows; of many, the first and the last."""
    listed = parts if len(parts) <= PARTS_SHOWN else [*parts[: PARTS_SHOWN - 1], parts[-1]]
    lines = [f"{part.name} from row {part.first_row:,}" for part in listed]
    if len(parts) > PARTS_SHOWN:
        lines.insert(PARTS_SHOWN - 1, f"... ({len(parts) - PARTS_SHOWN:,} more)")
    return [f"{'' if i else 'order':<12} {line}" for i, line in enumerate(lines)]


def _named(names: tuple[str, ...]) -> str:
    # How many there are stands before them.
    listed = shown(names).removesuffix(f" ({len(names):,} in all)")
    return f" ({listed})" if names else ""


def describe_run(path: Path) -> str:
    """Settings of the run in the folder `path` and how far it has come, a line each."""
    record = read_config(path)
    data, settings = record["data"], record["fit"]
    lines = [f"run          {path}", f"source       {record['source']}"]
    lines.append(f"shape        {data['shape'][0]:,} x {data['shape'][1]:,} {data['dtype']}")
    if chosen := data.get("chosen"):
        lines.append(f"chosen       {chosen}")
    if names := feature_names(path):
        lines.append(f"features     {shown(names)}")
    given = FitConfig(k=settings["k"], algorithm=settings.get("algorithm", "minibatch"))
    usual = given.resolved(*data["shape"]).as_dict()
    lines += [
        f"{name.replace('_', '-'):<12} {value}"
        for name, value in settings.items()
        if (name in ALWAYS_SHOWN and value is not None) or value != usual.get(name)
    ]
    owner = run_owner(path)
    stands = "unfinished" if owner is None else "running"
    if owner is not None:
        lines.append(f"working      {owner} is working on it")
    if (path / MODEL).exists():
        lines += _finished_lines(path)
    elif checkpoint := load_checkpoint(path / "checkpoints"):
        cursor = checkpoint.manifest["cursor"]
        hint = "" if owner is not None else "; add --resume to its fit command to go on"
        lines.append(
            f"{stands:<12} {checkpoint.path.name}: {cursor['phase']}, epoch {cursor['epoch']}, "
            f"batch {cursor['batch']}{hint}"
        )
    else:
        lines.append(f"{stands:<12} no checkpoint yet")
    return "\n".join([*lines, *_course_lines(path)])


def _course_lines(path: Path) -> list[str]:
    """A plot of the inertia, where metrics.jsonl has at least two records of it."""
    course = inertia_course(read_metrics(path))
    rows = [record["total_rows"] for record in course]
    plot = terminal_plot(rows, [record["inertia_per_row"] for record in course])
    if not plot:
        return []
    return [f"course       inertia per row, after {rows[0]:,} to {rows[-1]:,} rows", *plot]


def _finished_lines(path: Path) -> list[str]:
    """Where the result of a finished run lies and what it is; refuses a damaged one."""
    tensors, about = read_model_file(path)
    centroids = path / "centroids.npy"
    if not centroids_are_whole(centroids, about):
        raise RunError(
            f"{centroids} is damaged or missing, the model is whole; repeat the fit command with "
            "--resume to have it written again from the model"
        )
    try:
        lines = _result_lines(about, np.sort(tensors["counts"]), tensors["weights"])
    except DAMAGE as error:
        raise RunError(
            f"{path / MODEL} is no model of a run: {in_words(error)}; restore it from a copy"
        ) from error
    return [f"finished     {centroids}", *lines]


def _result_lines(about: dict[str, Any], ordered_K: np.ndarray, weights_K: np.ndarray) -> list[str]:
    """What came out and why training ended, from the model file's header, sizes and weights."""
    inertia, figures = about["inertia"], NEWER_FIGURES | about["figures"]
    said = "not known without a closing pass; `evaluate` gives it"
    if inertia is not None:
        mass = float(weights_K.sum()) if len(weights_K) else int(ordered_K.sum())
        said = f"{inertia:.9g} ({inertia / (mass or 1):.6g} per row), each row in its cluster"
    sizes = figures.get("sizes")
    return [
        f"inertia      {said}",
        (
            f"sizes        {ordered_K[0]:,} least, {median_size(ordered_K.tolist()):,} median, "
            f"{ordered_K[-1]:,} most, {counted(int((ordered_K == 0).sum()), 'cluster')} empty"
        ),
        f"spread       {Spread.of(ordered_K.tolist())}",
        *([f"bounds       {bounds_line(sizes, inertia)}"] if sizes else []),
        f"steps        {figures['n_steps']:,} in {counted(figures['n_iter'], 'epoch')}",
        f"stopped      {figures['stop_reason']}",
        *([f"since        {changes_line(found)}"] if (found := figures.get("changes")) else []),
    ]
