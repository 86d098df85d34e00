"""Rows as a Zarr array, written chunk by chunk from the first row to the last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from streamkm.files import fsync_directory, fsync_file, remove_tree, rename_durably

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ZarrRows"]

#: The metadata of a Zarr array of version 3.
_METADATA = "zarr.json"


class ZarrRows:
    """A Zarr v3 array that `publish` gives its name.

    Parameters
    ----------
    path : Path
        The unfinished array.
    shape : tuple of int
        Rows and features.
    dtype : dtype
        Of the elements.
    chunk_rows : int
        Rows of a chunk; a shorter array is one chunk.
    resumed : bool
        Whether an earlier attempt has begun the array.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        chunk_rows: int,
        *,
        resumed: bool,
    ) -> None:
        self._path, self._shape, self._dtype = path, shape, dtype
        self.align_rows = chunk_rows
        self._held: list[np.ndarray] = []
        self._first = self._end = 0
        self._unsynced: list[Path] = []
        if resumed:
            with zarr.config.set({"array.write_empty_chunks": True}):
                self._array = zarr.open_array(LocalStore(path), mode="r+")
            return
        remove_tree(path)
        self._array = zarr.create_array(
            LocalStore(path),
            shape=shape,
            dtype=dtype,
            chunks=(max(min(self.align_rows, shape[0]), 1), shape[1]),
            # Without it Zarr leaves out a chunk of zeros, which would look like a missing one.
            config={"write_empty_chunks": True},
        )
        fsync_file(path / _METADATA)
        fsync_directory(path)
        fsync_directory(path.parent)

    def put(self, start: int, rows: np.ndarray) -> None:
        """Add `rows`, uint8 of shape (n, bytes of a row); whole chunks are written."""
        if not self._held:
            self._first = start
        self._held.append(rows.copy())
        self._end = start + len(rows)
        self._store(self._end if self._end == self._shape[0] else self._last_edge())

    def _last_edge(self) -> int:
        return self._end // self.align_rows * self.align_rows

    def _store(self, stop: int) -> None:
        """Write the chunks before row `stop`."""
        if stop <= self._first:
            return
        whole = np.concatenate(self._held) if len(self._held) > 1 else self._held[0]
        rows = whole.view(self._dtype).reshape(-1, self._shape[1])
        for start in range(self._first, stop, self.align_rows):
            chunk = slice(start, min(start + self.align_rows, stop))
            self._array[chunk] = rows[chunk.start - self._first : chunk.stop - self._first]
            key = self._array.metadata.encode_chunk_key((start // self.align_rows, 0))
            self._unsynced.append(self._path / key)
        left = whole[stop - self._first :]
        self._held, self._first = [left] if len(left) else [], stop

    def sync(self) -> int:
        """Bring whole chunks to disk; the row after the last of them."""
        folders = {self._path}
        for path in self._unsynced:
            fsync_file(path)
            folders |= {path.parent, path.parent.parent}
        for folder in sorted(folders):
            fsync_directory(folder)
        self._unsynced.clear()
        return self._first

    def publish(self, target: Path) -> None:
        """Give the complete array its name."""
        self.sync()
        rename_durably(self._path, target)

    def close(self) -> None:
        """Zarr keeps no file open."""
