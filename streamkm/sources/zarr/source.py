"""Makes a Zarr array a source of rows, through zarr's public interface.

So every codec and every store that zarr reads can be read. Arrays in local folders with common
codecs go around zarr, through `streamkm.sources.zarr.direct`, which is faster.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import operator
import re
from concurrent.futures import ThreadPoolExecutor
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import zarr
from zarr.buffer.cpu import NDBuffer, buffer_prototype
from zarr.storage import LocalStore, MemoryStore, ObjectStore

from streamkm.errors import ReadError, SourceError
from streamkm.sources.base import ArraySpec, Described, RowRange, check_dtype
from streamkm.sources.layout import check_read, check_reads, one_line, row_boxes
from streamkm.sources.within import is_inside
from streamkm.sources.zarr.direct import direct_reader
from streamkm.sources.zarr.listing import LISTED, object_versions
from streamkm.sources.zarr.store import WholeStore, codec_name, folder_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from streamkm.sources.axes import Axes

    AnyArray = zarr.Array[Any]

__all__ = ["ZarrSource"]

#: Bytes of a block of whole chunks, at most, if it can be cut along a further axis.
SLAB_BYTES = 64 << 20
#: Bytes of a shard that is one block, at most; a larger one is cut between inner chunks.
SHARD_BYTES = 16 << 20


class _Extents(NamedTuple):
    """Extents of an array, of a chunk and of a shard, with all features as one last axis."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    itemsize: int


class ZarrSource(Described):
    """A Zarr array as rows, decoded straight into `out` or copied there by zarr.

    Parameters
    ----------
    array : zarr.Array
        An open array of real numbers.
    name : str
        Name of the array, for errors.
    axes : Axes
        Which of its axes are features.
    remarks : tuple of str
        Notes that come first.

    Raises
    ------
    SourceError
        If its chunks are empty.
    """

    def __init__(
        self, array: AnyArray, name: str, axes: Axes, *, remarks: tuple[str, ...] = ()
    ) -> None:
        if min(array.chunks) < 1 or min(array.shards or (1,)) < 1:
            raise SourceError(f"{name}: its chunks are empty, their shape is {array.chunks}")
        self._store = array.store
        # A read-only store refuses "r+"; "r" needs a read-only twin, which not every store has.
        mode: Literal["r", "r+"] = "r" if array.read_only else "r+"
        store = WholeStore(array.store)
        self._array = zarr.open_array(store, path=array.path, mode=mode)
        store.learn(self._array)
        self._name = name
        self._axes = axes
        self._remarks = remarks
        self._closed = False
        self._direct = direct_reader(array, axes)
        extents = _Extents(
            axes.rows_first(array.shape),
            axes.rows_first(array.chunks),
            axes.rows_first(array.shards) if array.shards else None,
            array.dtype.itemsize,
        )
        block_rows = min(_block_rows(extents, axes.n_features * extents.itemsize), axes.n_rows)
        how = "decoded in place" if self._direct else "through zarr"
        self._spec = ArraySpec(
            n_rows=axes.n_rows,
            n_features=axes.n_features,
            dtype=check_dtype(array.dtype, name),
            block_rows=block_rows,
            layout=f"{_describe(array)}, {how}{axes.describe()}",
            scratch_bytes=(
                self._direct.scratch_bytes if self._direct else _scratch_bytes(extents, block_rows)
            ),
            piece_rows=self._direct.piece_rows if self._direct else 0,
            is_remote=isinstance(array.store, ObjectStore),
            grid=axes.grid(_group_of(array, name)),
            file=folder_of(array),
        )

    @property
    def name(self) -> str:
        """Path of the array, or its address in the store."""
        return self._name

    @property
    def spec(self) -> ArraySpec:
        """Shape, dtype and layout."""
        return self._spec

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out` with `rows`; see `Source.read`."""
        check_read(self._name, self._spec, rows, out, closed=self._closed)
        if self._direct and self._direct.cuts_rows_alone:
            self._direct.read_rows(self._name, [rows], out)
            return
        for box in row_boxes(self._axes.row_shape, rows):
            target = out[box.start - rows.start : box.stop - rows.start]
            if self._direct:
                self._direct.read(self._name, box, target)
                continue
            buffer = NDBuffer.from_numpy_array(self._axes.stored_view(target, box))
            try:
                self._array.get_basic_selection(self._axes.selection(box), out=buffer)
            except Exception as error:  # codecs and stores raise errors of any class
                raise ReadError(
                    f"{self._name}: {RowRange(box.start, box.stop)} cannot be read: "
                    f"{one_line(error)}; a chunk is corrupt, truncated or unreadable"
                ) from error

    def read_together(self, reads: Sequence[RowRange], out: np.ndarray) -> bool:
        """Fill `out` with `reads`, where a chunk holds whole rows; see `ReadsTogether`."""
        if not (self._direct and self._direct.cuts_rows_alone):
            return False
        check_reads(self._name, self._spec, reads, out, closed=self._closed)
        self._direct.read_rows(self._name, reads, out)
        return True

    def fingerprint(self) -> str:
        """Hex digest of the metadata, and of what the store tells about the chunks.

        A local store gives name, size and modification time of every file, and a bucket its entity
        tag as well. A store in memory gives every byte. Any other store gives only the total of
        its bytes, and a web server nothing: `notes` says so.
        """
        digest = hashlib.sha256()
        metadata = self._array.metadata.to_dict()
        # Attributes are left out: they do not change rows, and people add to them later.
        metadata.pop("attributes", None)
        digest.update(json.dumps(metadata, sort_keys=True, default=str).encode())
        if not self._axes.are_last:
            digest.update(f"features {self._axes.features}".encode())
        try:
            self._digest_chunks(digest)
        except Exception as error:  # stores raise errors of any class
            raise ReadError(f"{self._name}: cannot be listed: {one_line(error)}") from error
        return digest.hexdigest()

    def would_take(self, path: Path) -> bool:
        """Whether `path` lies in the array's folder, every file of which is in `fingerprint`."""
        store = self._store
        return isinstance(store, LocalStore) and is_inside(path, store.root / self._array.path)

    def notes(self) -> list[str]:
        """How many chunks were never written, and which changes `fingerprint` cannot see."""
        notes = list(self._remarks)
        missing, total, what = self._missing()
        if missing is None:
            notes.append(
                f"{self._name}: of a web server nothing is watched but the metadata: a change of "
                f"{what} goes unnoticed when a run resumes, as do those that are not there"
            )
        elif missing:
            fill = self._array.fill_value
            notes.append(
                f"{self._name}: {missing} of {total} {what} were never written, "
                f"their rows read as the fill value {0 if fill is None else fill}"
            )
        if not isinstance(self._store, (*LISTED, MemoryStore)):
            notes.append(
                f"{self._name}: of this store only the total size is watched: a change that "
                "keeps it goes unnoticed when a run resumes"
            )
        return notes

    def close(self) -> None:
        """Refuse further reads; no file is held open."""
        self._closed = True
        if self._direct:
            self._direct.close()

    def _digest_chunks(self, digest: Any) -> None:
        store = self._store
        if isinstance(store, LISTED):
            for key, version in sorted((object_versions(store, self._array.path) or {}).items()):
                if Path(key).name not in _METADATA:
                    digest.update(f"{key}\n{version}\n".encode())
        elif isinstance(store, MemoryStore):
            _run(_digest_memory(store, self._array.path, digest))
        else:
            digest.update(str(self._array.nbytes_stored()).encode())

    def _missing(self) -> tuple[int | None, int, str]:
        """Unwritten chunks or shards (None if unknown), the number of all, and which they are."""
        array = self._array
        stored = array.shards or array.chunks
        grid = [-(-extent // size) for extent, size in zip(array.shape, stored, strict=True)]
        total = prod(grid)
        what = "shards" if array.shards else "chunks"
        if isinstance(self._store, LISTED):
            # array.nchunks_initialized searches a list once a chunk: hours for a million chunks.
            present = object_versions(self._store, array.path)
            if present is None:
                return None, total, what
            # Stored files are counted, because metadata may promise any number of chunks.
            encode = array.metadata.encode_chunk_key
            written = sum(_is_chunk(key, grid, encode) for key in present)
            return total - written, total, what
        per_object = prod(s // c for s, c in zip(stored, array.chunks, strict=True))
        return total - array.nchunks_initialized // per_object, total, what


#: Files that hold metadata, which is in the fingerprint by itself.
_METADATA = frozenset({"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"})


def _is_chunk(key: str, grid: list[int], encode: Callable[[tuple[int, ...]], str]) -> bool:
    """Whether `key` names a chunk within `grid`, the number of chunks along each axis."""
    index = tuple(int(digits) for digits in re.findall("[0-9]{1,20}", key))[-len(grid) :]
    inside = len(index) == len(grid) and all(map(operator.lt, index, grid))
    return inside and encode(index) == key


async def _digest_memory(store: MemoryStore, path: str, digest: Any) -> None:
    prefix = f"{path}/" if path else ""
    keys = [key async for key in store.list_prefix(prefix)]
    for key in sorted(keys):
        if key.rpartition("/")[2] in _METADATA:
            continue
        value = await store.get(key, prototype=buffer_prototype)
        if value is not None:
            digest.update(f"{key.removeprefix(prefix)}\n{len(value)}\n".encode())
            digest.update(value.to_bytes())


def _run(coroutine: Any) -> None:
    """Run `coroutine` to its end, even if the calling thread is in an event loop."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, coroutine).result()


def _group_of(array: AnyArray, name: str) -> str:
    """Where the array's group lies, which may hold coordinates; ``""`` if it has no address."""
    if folder := folder_of(array):
        return str(Path(folder).parent)
    return name.rpartition("/")[0] if isinstance(array.store, ObjectStore) else ""


def _block_rows(array: _Extents, row_bytes: int) -> int:
    """Rows of a block: a shard, several inner chunks, or a slab of chunks along the first axes."""
    leading = array.shape[:-1]
    if array.shards:
        step = prod(leading[1:])
        if array.shards[0] * step * row_bytes <= SHARD_BYTES:
            return array.shards[0] * step
        inner = array.chunks[0] * step
        return max(1, SHARD_BYTES // (inner * row_bytes)) * inner
    slabs = [chunk * prod(leading[axis + 1 :]) for axis, chunk in enumerate(array.chunks[:-1])]
    return next((rows for rows in slabs if rows * row_bytes <= SLAB_BYTES), slabs[-1])


def _scratch_bytes(array: _Extents, block_rows: int) -> int:
    """Bytes that zarr allocates to read a block: each chunk as stored and as decoded."""
    itemsize = array.itemsize
    chunk_bytes = prod(array.chunks) * itemsize
    # A block touches one chunk along the axes before the one that cuts it.
    touched = ceil(array.shape[-1] / array.chunks[-1])
    rows = block_rows
    for extent, size in zip(array.shape[-2::-1], array.chunks[-2::-1], strict=True):
        along = min(rows, extent)
        touched *= ceil(along / size)
        rows = ceil(rows / extent)
    at_once = min(touched, int(zarr.config.get("async.concurrency")))
    if array.shards is None:
        return 2 * chunk_bytes * at_once
    # zarr holds all stored chunks of a shard, and the whole selection, before it copies.
    selection = block_rows * array.shape[-1] * itemsize
    return touched * chunk_bytes + selection + chunk_bytes * at_once


def _describe(array: AnyArray) -> str:
    """The layout as a phrase: ``zarr v3, chunks of 16384 x 128, blosc``."""
    parts = [f"zarr v{array.metadata.zarr_format}", f"chunks of {_by(array.chunks)}"]
    if array.shards:
        parts.append(f"shards of {_by(array.shards)}")
    codecs = [codec_name(codec) for codec in array.compressors]
    parts.append("+".join(codecs) if codecs else "uncompressed")
    return ", ".join(parts)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(extent) for extent in shape)
