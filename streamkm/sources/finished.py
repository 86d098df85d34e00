"""Whether an output was finished by an earlier command."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.errors import RunError, SourceError
from streamkm.files import discard
from streamkm.sources.npy import read_npy_header
from streamkm.sources.sinks import output_lock, unfinished_cursor

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["first_values", "is_finished", "tidy"]


def is_finished(target: Path, n_rows: int, dtype: np.dtype[Any]) -> bool:
    """Whether `target` is a whole output of `n_rows` values of `dtype`.

    An output has its name only when every row is in it.
    """
    if not target.exists():
        return False
    if target.suffix.lower() == ".npy":
        return _is_npy(target, n_rows, dtype)
    import zarr

    try:
        array = zarr.open_array(target, mode="r")
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(array.shape == (n_rows,) and array.dtype == dtype)


def first_values(target: Path, n_values: int) -> np.ndarray:
    """The first values of a finished output."""
    if target.suffix.lower() == ".npy":
        with target.open("rb") as stream:
            _, _, dtype = read_npy_header(stream, target)
            return np.frombuffer(stream.read(n_values * dtype.itemsize), dtype)
    import zarr

    return np.asarray(zarr.open_array(target, mode="r")[:n_values])


def tidy(target: Path) -> None:
    """Remove what a command that was killed in its last moment left beside a finished output."""
    with suppress(RunError):  # Else it is somebody else's.
        lock = output_lock(target)
        lock.take()
        discard(unfinished_cursor(target))
        lock.release(remove=True)


def _is_npy(target: Path, n_rows: int, dtype: np.dtype[Any]) -> bool:
    try:
        with target.open("rb") as stream:
            shape, _, stored = read_npy_header(stream, target)
            offset = stream.tell()
    except (OSError, SourceError):
        return False
    size = offset + n_rows * dtype.itemsize
    return shape == (n_rows,) and stored == dtype and target.stat().st_size == size
