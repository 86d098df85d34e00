"""Arrays to measure with: made from a seed once, kept in a folder outside git.

Rows are a mixture of overlapping Gaussians in full float32 precision. There are
clusters to find, and the mantissas compress as badly as those of measured data.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, ZstdCodec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["LAYOUTS", "Shape", "make_array", "rows_of"]

#: Part of every file's name. Raise it when other rows are made, so that no older file is used.
VERSION = 2
CHUNK_ROWS = 16384
N_BLOBS = 512
LAYOUTS = ("zarr-lz4", "zarr-zstd", "zarr-raw", "zarr-sharded-zstd", "npy")
DTYPES = ("float32", "float16", "uint8")
#: Chunks of a shard.
INNER_CHUNKS = 8


@dataclass(frozen=True)
class Shape:
    """Size and dtype of an array, in chunks (or shards) of `chunk_rows` rows."""

    n_rows: int
    n_features: int
    chunk_rows: int = CHUNK_ROWS
    dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        return np.dtype(self.dtype).itemsize * self.n_rows * self.n_features

    @property
    def size(self) -> str:
        """Bytes of all rows, as text: ``3.1 GB``."""
        gigabytes = self.nbytes / 1e9
        return f"{gigabytes:.1f} GB" if gigabytes >= 0.1 else f"{gigabytes * 1e3:.0f} MB"

    def __str__(self) -> str:
        return f"{self.n_rows:,} x {self.n_features}"


def rows_of(shape: Shape, seed: int = 0) -> Iterator[np.ndarray]:
    """The rows of an array, `chunk_rows` at a time."""
    rng = np.random.default_rng([VERSION, seed])
    centres = rng.standard_normal((N_BLOBS, shape.n_features), dtype=np.float32) * 2
    for start in range(0, shape.n_rows, shape.chunk_rows):
        n = min(shape.chunk_rows, shape.n_rows - start)
        rows = rng.standard_normal((n, shape.n_features), dtype=np.float32)
        rows += centres[rng.integers(N_BLOBS, size=n)]
        if shape.dtype == "uint8":
            rows = (rows * 16 + 128).clip(0, 255)
        yield rows.astype(shape.dtype)


def make_array(folder: Path, shape: Shape, layout: str) -> Path:
    """Path of the array in `folder`, written now if it is not there yet."""
    suffix = ".npy" if layout == "npy" else ".zarr"
    size = f"{shape.n_rows}x{shape.n_features}-{shape.chunk_rows}"
    name = f"v{VERSION}-{size}-{shape.dtype}-{layout}{suffix}"
    path = folder / name
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    # It gets its name when it is whole: an interrupted run must not leave half an array.
    partial = folder / f".partial-{name}"
    shutil.rmtree(partial, ignore_errors=True)
    target = _create(partial, shape, layout)
    start = 0
    for rows in rows_of(shape):
        target[start : start + len(rows)] = rows
        start += len(rows)
    partial.rename(path)
    return path


def _create(path: Path, shape: Shape, layout: str) -> Any:
    size = (shape.n_rows, shape.n_features)
    if layout == "npy":
        return np.lib.format.open_memmap(path, mode="w+", dtype=shape.dtype, shape=size)
    compressors = {
        "zarr-lz4": BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),
        "zarr-zstd": ZstdCodec(level=3),
        "zarr-sharded-zstd": ZstdCodec(level=3),
        "zarr-raw": None,
    }
    inner_rows = max(shape.chunk_rows // INNER_CHUNKS, 1)
    is_sharded = layout == "zarr-sharded-zstd"
    return zarr.create_array(
        path,
        shape=size,
        chunks=(inner_rows if is_sharded else shape.chunk_rows, shape.n_features),
        shards=(shape.chunk_rows, shape.n_features) if is_sharded else None,
        dtype=shape.dtype,
        compressors=compressors[layout],
    )
