"""What a path holds: a source of rows, or a run and how far it has come. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkm.config import format_bytes
from streamkm.errors import RunError
from streamkm.files import file_sha256
from streamkm.runs.checkpoint import load_checkpoint
from streamkm.runs.folder import read_config
from streamkm.runs.modelfile import MODEL, read_model_file

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.sources import Source

__all__ = ["describe_run", "describe_source"]


def describe_source(source: Source) -> str:
    """Shape, type, size and layout of a source, and what speaks against it."""
    spec = source.spec
    lines = [
        f"source       {source.name}",
        f"rows         {spec.n_rows:,}",
        f"features     {spec.n_features:,}",
        f"dtype        {spec.dtype}",
        f"size         {format_bytes(spec.nbytes)}",
        f"layout       {spec.layout}",
        f"read by      {spec.block_rows:,} rows ({format_bytes(spec.block_rows * spec.row_bytes)})",
        f"fingerprint  {source.fingerprint()}",
    ]
    return "\n".join([*lines, *(f"note         {note}" for note in source.notes())])


def describe_run(path: Path) -> str:
    """Settings of a run and how far it has come."""
    record = read_config(path)
    data, settings = record["data"], record["fit"]
    lines = [f"run          {path}", f"source       {record['source']}"]
    lines.append(f"shape        {data['shape'][0]:,} x {data['shape'][1]:,} {data['dtype']}")
    lines += [f"{name.replace('_', '-'):<18} {value}" for name, value in settings.items()]
    if (path / MODEL).exists():
        lines.append(f"finished     {_checked_centroids(path)}")
    elif checkpoint := load_checkpoint(path / "checkpoints"):
        cursor = checkpoint.manifest["cursor"]
        lines.append(
            f"unfinished   {checkpoint.path.name}: {cursor['phase']}, epoch {cursor['epoch']}, "
            f"batch {cursor['batch']}; add --resume to its fit command to go on"
        )
    else:
        lines.append("unfinished   no checkpoint yet")
    return "\n".join(lines)


def _checked_centroids(path: Path) -> Path:
    """centroids.npy of a finished run, if it and the model are what the run wrote."""
    _, about = read_model_file(path)
    centroids = path / "centroids.npy"
    try:
        is_intact = file_sha256(centroids) == about["centroids_sha256"]
    except FileNotFoundError:
        is_intact = False
    if not is_intact:
        raise RunError(
            f"{centroids} is damaged; remove {path / MODEL} and repeat the fit command with "
            "--resume to have both written again"
        )
    return centroids
