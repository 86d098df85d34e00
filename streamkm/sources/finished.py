"""Whether an output was finished by an earlier command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamkm.errors import SourceError
from streamkm.sources.npy import read_npy_header
from streamkm.sources.sinks import unfinished_cursor

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

__all__ = ["is_finished"]


def is_finished(target: Path, n_rows: int, dtype: np.dtype[Any]) -> bool:
    """Whether `target` is a whole output of `n_rows` values of `dtype`, with nothing left to do.

    An output has its name only when every row is in it. A cursor beside it says that a
    commit of several outputs is still to be ended.
    """
    if not target.exists() or unfinished_cursor(target).exists():
        return False
    if target.suffix.lower() == ".npy":
        return _is_npy(target, n_rows, dtype)
    import zarr

    try:
        array = zarr.open_array(target, mode="r")
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(array.shape == (n_rows,) and array.dtype == dtype)


def _is_npy(target: Path, n_rows: int, dtype: np.dtype[Any]) -> bool:
    try:
        with target.open("rb") as stream:
            shape, _, stored = read_npy_header(stream, target)
            offset = stream.tell()
    except (OSError, SourceError):
        return False
    size = offset + n_rows * dtype.itemsize
    return shape == (n_rows,) and stored == dtype and target.stat().st_size == size
