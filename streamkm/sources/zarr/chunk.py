"""One stored chunk of a Zarr array: what of it is wanted, read and decoded into place.

Nothing here knows of files' names or of shards: stored bytes are a place in an
open file. Memory beside the target is the reading thread's own, made once.
"""

from __future__ import annotations

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

#: What a codec allocates to decode, beside Blosc's blocks: tables, pieces.
_CODEC_BYTES = 512 << 10
#: Blocks that Blosc holds beside a chunk, and their size unless the array gives one.
_BLOSC_BLOCKS, _BLOSC_BLOCK_BYTES = 3, 1 << 20
#: What is read by itself: of a chunk that is not compressed, in bytes, and of Blosc's, whose
#: blocks have about so many elements at its middle levels.
_PIECE_BYTES, _BLOSC_PIECE_ELEMENTS = 64 << 10, 128 << 10
#: A stored chunk this much longer than decoded, and twice as long, is no chunk of the array.
_SLACK_BYTES = 64 << 10

#: Of each thread its scratch, shared by all arrays: a source of a thousand parts has one.
_thread = threading.local()


@dataclass(frozen=True, slots=True)
class Part:
    """What a chunk and a range of rows have in common."""

    index: tuple[int, ...]
    """The chunk, along each axis."""
    within: tuple[slice, ...]
    """Where in the chunk."""
    target: np.ndarray
    """Where it belongs, of the shape of `within`."""


class ChunkReader:
    """Reads and decodes the chunks of one array.

    Parameters
    ----------
    array : zarr.Array
        One whose chunks are in C order and native byte order; of a sharded
        array the inner chunks are meant.
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
        self._array_shape = array.shape

    def is_whole(self, part: Part) -> bool:
        """Whether a part is a whole chunk that lies in one piece in its target."""
        return part.target.flags.c_contiguous and part.target.shape == self.shape

    def is_narrow(self, part: Part) -> bool:
        """Whether less of the chunk than all is worth reading."""
        along = part.within[0]
        is_half = 2 * (along.stop - along.start) <= self.shape[0]
        return self.decode is None or (self._is_blosc and is_half)

    def check_size(self, size: int) -> None:
        """Refuse a length that no stored chunk of this array has."""
        if self.decode is None and size != self.nbytes:
            raise EOFError(f"{size} bytes are stored, the chunk has {self.nbytes}")
        if size > 2 * self.nbytes + _SLACK_BYTES:
            raise ValueError(f"{size} bytes are stored for a chunk of {self.nbytes}")

    def read(self, file: OpenFile, offset: int, size: int, part: Part) -> None:
        """Fill a part from the chunk of `size` stored bytes at `offset` of a file."""
        self.check_size(size)
        if self.decode is None:
            self._copy(file, offset, part)
            return
        if self._is_blosc and size == HEADER_BYTES + self.nbytes and self.is_whole(part):
            # What does not compress, Blosc stores as it is.
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
        """Read what is wanted of a chunk that is not compressed."""
        shape = part.target.shape
        if part.target.flags.c_contiguous and _contiguous(shape, self.shape):
            first = 0
            for piece, extent in zip(part.within, self.shape, strict=True):
                first = first * extent + piece.start
            read_full(file, [_bytes(part.target)], offset + first * self._dtype.itemsize)
            return
        start, stop = self._along(part)
        rows = scratch("chunk", self.nbytes)[: stop - start]
        read_full(file, [rows], offset + start)
        self._take_rows(rows, part)

    def _decode_blocks(
        self, file: OpenFile, offset: int, size: int, part: Part, memory: np.ndarray
    ) -> bool:
        """Decode the blocks of Blosc that hold `part`, if `memory` holds both, else nothing."""
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
        """Bytes of a chunk cut along its first axis to what is wanted."""
        step = self.nbytes // self.shape[0]
        return part.within[0].start * step, part.within[0].stop * step

    def _take(self, chunk: np.ndarray, part: Part) -> None:
        part.target[...] = chunk.view(self._dtype).reshape(self.shape)[part.within]

    def _take_rows(self, rows: np.ndarray, part: Part) -> None:
        """As `_take`, of a chunk cut along its first axis to what is wanted."""
        cut = rows.view(self._dtype).reshape(-1, *self.shape[1:])
        part.target[...] = cut[:, *part.within[1:]]

    def piece_rows(self) -> int:
        """Rows of what can be read of a chunk by itself; 0 if chunks are read whole."""
        if self.decode is None:
            piece_bytes = _PIECE_BYTES
        elif self._is_blosc:
            usual = min(_BLOSC_PIECE_ELEMENTS * self._dtype.itemsize, _BLOSC_BLOCK_BYTES)
            piece_bytes = self._blosc_block or usual
            if 4 * piece_bytes > self.nbytes:
                return 0
        else:
            return 0
        inner = self._array_shape[1:-1]
        if any(size < extent for size, extent in zip(self.shape[1:-1], inner, strict=True)):
            # Rows that follow each other lie all over a chunk.
            return 0
        return max(1, piece_bytes // (self.nbytes // self.shape[0])) * prod(inner)

    def scratch_bytes(self, *, are_whole: bool) -> int:
        """What one thread allocates: a stored chunk, the codec's, a decoded one if any is cut."""
        if self.decode is None:
            return 0 if are_whole else self.nbytes
        total = stored_bytes(self.nbytes) + _CODEC_BYTES
        if not are_whole:
            total += self.nbytes
        if self._is_blosc:
            total += _BLOSC_BLOCKS * min(self._blosc_block or _BLOSC_BLOCK_BYTES, self.nbytes)
        return total


def stored_bytes(chunk_bytes: int) -> int:
    """Bound of what an incompressible chunk takes with any of the codecs."""
    return chunk_bytes + chunk_bytes // 255 + 4096


def scratch(use: str, size: int) -> np.ndarray:
    """The thread's buffer for `use`, of `size` bytes or more; made anew only to grow."""
    buffer: np.ndarray | None = getattr(_thread, use, None)
    if buffer is None or buffer.size < size:
        # The old one goes first.
        setattr(_thread, use, None)
        buffer = np.empty(size, np.uint8)
        setattr(_thread, use, buffer)
    return buffer


def release_scratch() -> None:
    """Release the scratch of this thread; that of others goes when they end."""
    vars(_thread).clear()


def read_full(file: OpenFile, memories: Sequence[np.ndarray], offset: int) -> None:
    """Fill arrays of bytes, one after the other, with a file's bytes from `offset` on."""
    size = sum(memory.size for memory in memories)
    done = file.read(memories, offset)
    if done < size:
        raise EOFError(f"the file ends at byte {offset + done}, {size - done} bytes before its end")


def _read_from(file: OpenFile, base: int, memory: np.ndarray, offset: int) -> None:
    read_full(file, [memory], base + offset)


def _contiguous(shape: tuple[int, ...], chunk: tuple[int, ...]) -> bool:
    """Whether a box of `shape` lies in one piece within a chunk."""
    axis = next((axis for axis, extent in enumerate(shape) if extent > 1), len(shape) - 1)
    return shape[axis + 1 :] == chunk[axis + 1 :]


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)
