"""Reads the wanted part of one stored chunk of a Zarr array, and decodes it into place.

A chunk is a range of bytes in an open file: this module knows neither file names nor shards. Each
thread has scratch memory of its own, which it allocates once.
"""

from __future__ import annotations

import mmap
import threading
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.sources.zarr.blosc import (
    HEADER_BYTES,
    is_stored_as_it_is,
    read_blocks,
    read_table,
)
from streamkm.sources.zarr.decode import DECODERS
from streamkm.sources.zarr.store import codec_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    import zarr

    from streamkm.sources.pagecache import OpenFile

    AnyArray = zarr.Array[Any]

__all__ = ["ChunkReader", "Part", "read_full", "release_scratch", "scratch", "stored_bytes"]

#: Bytes that a codec allocates to decode, beside Blosc's blocks: tables and buffers.
_CODEC_BYTES = 512 << 10
#: Blosc blocks that Blosc holds beside a chunk, and their bytes if the array does not say.
_BLOSC_BLOCKS, _BLOSC_BLOCK_BYTES = 3, 1 << 20
#: Bytes of a piece of an uncompressed chunk, as in files without chunks.
_PIECE_BYTES = 64 << 10
#: Elements of a piece of a Blosc chunk: about those of a Blosc block at the middle levels.
_BLOSC_PIECE_ELEMENTS = 128 << 10
#: Elements of a plane that is worth a copy of its own.
_MIN_PLANE_ELEMENTS = 4096
#: A stored chunk is refused if it has more bytes than twice the decoded ones plus these.
_SLACK_BYTES = 64 << 10

#: Each thread's scratch. All arrays share it, so that a source of a thousand parts has one.
_thread = threading.local()


@dataclass(frozen=True, slots=True)
class Part:
    """The part of one chunk that a read wants."""

    index: tuple[int, ...]
    """Index of the chunk along each axis."""
    within: tuple[slice, ...]
    """The part, as slices of the chunk."""
    target: np.ndarray
    """The memory to fill, with the shape of `within`."""


class ChunkReader:
    """Reads and decodes the chunks of one array.

    Parameters
    ----------
    array : zarr.Array
        An array whose chunks are in C order and native byte order. The chunks of a sharded array
        are its inner chunks.
    codec : object or None
        Its only compressor, if it has one.
    """

    def __init__(self, array: AnyArray, codec: Any) -> None:
        self.shape = array.chunks
        self.nbytes = prod(array.chunks) * array.dtype.itemsize
        name = None if codec is None else codec_name(codec)
        self.decode = None if name is None else DECODERS[name]
        self._is_blosc = name == "blosc"
        self._blosc_block = int(getattr(codec, "blocksize", 0))
        self._dtype = array.dtype

    def is_whole(self, part: Part) -> bool:
        """Whether a part is a whole chunk, and its target contiguous."""
        return part.target.flags.c_contiguous and part.target.shape == self.shape

    def is_narrow(self, part: Part) -> bool:
        """Whether reading only a part of the chunk is worth it."""
        along = part.within[0]
        is_half = 2 * (along.stop - along.start) <= self.shape[0]
        return self.decode is None or (self._is_blosc and is_half)

    def check_size(self, size: int) -> None:
        """Refuse a number of stored bytes that no chunk of this array has."""
        if self.decode is None and size != self.nbytes:
            raise EOFError(f"{size} bytes are stored, the chunk has {self.nbytes}")
        if size > 2 * self.nbytes + _SLACK_BYTES:
            raise ValueError(f"{size} bytes are stored for a chunk of {self.nbytes}")

    def memory_for(self, size: int, target: np.ndarray) -> np.ndarray | None:
        """Where a whole chunk of `size` stored bytes is to be read for `target`, both uint8.

        None if that is no usual size.
        """
        if self.decode is None:
            return target if size == self.nbytes else None
        # What Blosc stores as it is, `read` reads into place.
        is_plain = self._is_blosc and size == HEADER_BYTES + self.nbytes
        most = stored_bytes(self.nbytes)
        return None if is_plain or size > most else scratch("stored", most)[:size]

    def read(self, file: OpenFile, offset: int, size: int, part: Part) -> None:
        """Fill a part from the chunk of `size` stored bytes at `offset` of a file."""
        self.check_size(size)
        if self.decode is None:
            self._copy(file, offset, part)
            return
        if self._is_blosc and size == HEADER_BYTES + self.nbytes and self.is_whole(part):
            # Blosc stores as they are the bytes that it cannot compress.
            header = np.empty(HEADER_BYTES, np.uint8)
            read_full(file, [header, _bytes(part.target)], offset)
            if is_stored_as_it_is(header, self.nbytes):
                return
        memory = scratch("stored", max(size, stored_bytes(self.nbytes)))
        if self.is_narrow(part) and self._decode_blocks(file, offset, size, part, memory):
            return
        stored = memory[:size]
        read_full(file, [stored], offset)
        self.decode_into(stored, part)

    def decode_into(self, stored: np.ndarray, part: Part) -> None:
        """Fill a part from the stored bytes of its whole chunk, uint8."""
        if self.decode is None:
            self._take(stored, part)
        elif self.is_whole(part):
            self.decode(stored, _bytes(part.target))
        else:
            chunk = scratch("chunk", self.nbytes)[: self.nbytes]
            self.decode(stored, chunk)
            self._take(chunk, part)

    def _copy(self, file: OpenFile, offset: int, part: Part) -> None:
        """Fill a part from a chunk that is not compressed."""
        shape = part.target.shape
        if part.target.flags.c_contiguous and _contiguous(shape, self.shape):
            first = 0
            for along, extent in zip(part.within, self.shape, strict=True):
                first = first * extent + along.start
            read_full(file, [_bytes(part.target)], offset + first * self._dtype.itemsize)
            return
        start, stop = self._along(part)
        rows = scratch("chunk", self.nbytes)[: stop - start]
        read_full(file, [rows], offset + start)
        self._take_rows(rows, part)

    def _decode_blocks(
        self, file: OpenFile, offset: int, size: int, part: Part, memory: np.ndarray
    ) -> bool:
        """Decode only the Blosc blocks that hold `part`; False if `memory` is too small for it."""
        read = partial(_read_from, file, offset)
        table = read_table(read, size, self.nbytes)
        if table is None:
            return False
        start, stop = self._along(part)
        if part.target.flags.c_contiguous and part.target.shape[1:] == self.shape[1:]:
            return read_blocks(read, table, start, stop, _bytes(part.target), memory)
        rows, rest = memory[: stop - start], memory[stop - start :]
        done = read_blocks(read, table, start, stop, rows, rest)
        if done:
            self._take_rows(rows, part)
        return done

    def _along(self, part: Part) -> tuple[int, int]:
        """First and last byte of the chunk cut along its first axis to `part`."""
        step = self.nbytes // self.shape[0]
        return part.within[0].start * step, part.within[0].stop * step

    def _take(self, chunk: np.ndarray, part: Part) -> None:
        _copy(chunk.view(self._dtype).reshape(self.shape)[part.within], part.target)

    def _take_rows(self, rows: np.ndarray, part: Part) -> None:
        """As `_take`, from a chunk cut along its first axis to `part`."""
        cut = rows.view(self._dtype).reshape(-1, *self.shape[1:])
        _copy(cut[:, *part.within[1:]], part.target)

    def piece_rows(self, shape: tuple[int, ...], chunk: tuple[int, ...]) -> int:
        """Rows of a piece of a chunk; 0 if chunks are read whole.

        `shape` and `chunk` are the extents of the array and of a chunk, with features as the last.
        """
        if self.decode is None:
            piece_bytes = _PIECE_BYTES
        elif self._is_blosc:
            usual = min(_BLOSC_PIECE_ELEMENTS * self._dtype.itemsize, _BLOSC_BLOCK_BYTES)
            piece_bytes = self._blosc_block or usual
            if 4 * piece_bytes > self.nbytes:
                return 0
        else:
            return 0
        inner = shape[1:-1]
        if any(size < extent for size, extent in zip(chunk[1:-1], inner, strict=True)):
            # Consecutive rows are scattered over such a chunk.
            return 0
        return max(1, piece_bytes // (self.nbytes // chunk[0])) * prod(inner)

    def scratch_bytes(self, *, are_whole: bool) -> int:
        """Bytes that one thread allocates; `are_whole` says that every chunk is read whole."""
        if self.decode is None:
            return 0 if are_whole else self.nbytes
        total = stored_bytes(self.nbytes) + _CODEC_BYTES
        if not are_whole:
            total += self.nbytes
        if self._is_blosc:
            total += _BLOSC_BLOCKS * min(self._blosc_block or _BLOSC_BLOCK_BYTES, self.nbytes)
        return total


def stored_bytes(chunk_bytes: int) -> int:
    """Bytes that an incompressible chunk takes with any of the codecs, at most."""
    return chunk_bytes + chunk_bytes // 255 + 4096


def scratch(use: str, size: int) -> np.ndarray:
    """The thread's buffer for `use`, of `size` bytes or more; allocated again only to grow."""
    buffer: np.ndarray | None = getattr(_thread, use, None)
    if buffer is None or buffer.size < size:
        # The old buffer is freed first, so that both never exist together.
        setattr(_thread, use, None)
        # It begins a page, so that it can be read into past the page cache.
        whole = np.empty(size + mmap.PAGESIZE, np.uint8)
        first = -whole.ctypes.data % mmap.PAGESIZE
        buffer = whole[first : first + size]
        setattr(_thread, use, buffer)
    return buffer


def release_scratch() -> None:
    """Release this thread's scratch; other threads release theirs when they end."""
    vars(_thread).clear()


def read_full(file: OpenFile, memories: Sequence[np.ndarray], offset: int) -> None:
    """Fill arrays, one after the other, with a file's bytes from `offset` on, or raise EOFError."""
    size = sum(memory.size for memory in memories)
    done = file.read(memories, offset)
    if done < size:
        raise EOFError(f"the file ends at byte {offset + done}, {size - done} bytes before its end")


def _read_from(file: OpenFile, base: int, memory: np.ndarray, offset: int) -> None:
    read_full(file, [memory], base + offset)


def _contiguous(shape: tuple[int, ...], chunk: tuple[int, ...]) -> bool:
    """Whether a box of `shape` is contiguous within a chunk."""
    axis = next((axis for axis, extent in enumerate(shape) if extent > 1), len(shape) - 1)
    return shape[axis + 1 :] == chunk[axis + 1 :]


def _copy(values: np.ndarray, target: np.ndarray) -> None:
    """Fill `target`, whose memory may be in another order of axes than that of `values`.

    A cube with its bands first is copied band by band: that reads in order, and took a half to a
    quarter of the time of NumPy's own order, which goes through the few bands of each pixel.
    """
    fastest = target.strides.index(min(target.strides))
    is_swapped = fastest != target.ndim - 1
    if not is_swapped or target.size < _MIN_PLANE_ELEMENTS * target.shape[fastest]:
        target[...] = values
        return
    values, target = np.moveaxis(values, fastest, 0), np.moveaxis(target, fastest, 0)
    for plane, out in zip(values, target, strict=True):
        out[...] = plane


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)
