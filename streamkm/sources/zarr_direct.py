"""Chunks of common Zarr arrays, decoded straight into the caller's memory.

Through zarr a chunk costs a coroutine, a hop to another thread and two
temporaries, which then stay in that thread's heap. Here the reading thread
itself reads the stored bytes into a buffer of its own and decodes them to where
they belong; uncompressed ones need no buffer. That is done for arrays in local
folders, not sharded, in C order and native byte order, with at most one codec
of those in `zarr_decode`. All others go through zarr.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numcodecs.blosc
import numcodecs.gzip
import numcodecs.lz4
import numcodecs.zlib
import numcodecs.zstd
import numpy as np
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ZstdCodec
from zarr.storage import LocalStore

from streamkm.errors import ReadError
from streamkm.sources.base import DTYPES, RowRange
from streamkm.sources.layout import one_line
from streamkm.sources.zarr_blosc import read_blocks, read_table
from streamkm.sources.zarr_decode import DECODERS
from streamkm.sources.zarr_store import codec_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    import zarr

    from streamkm.sources.layout import RowBox

    AnyArray = zarr.Array[Any]

__all__ = ["DirectReader", "direct_reader"]

#: Exactly these, for a subclass may store anything; in v3 also numcodecs' by their prefix.
_CODECS = (
    numcodecs.blosc.Blosc,
    numcodecs.gzip.GZip,
    numcodecs.lz4.LZ4,
    numcodecs.zlib.Zlib,
    numcodecs.zstd.Zstd,
    BloscCodec,
    GzipCodec,
    ZstdCodec,
)
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


def direct_reader(array: AnyArray) -> DirectReader | None:
    """Reader of `array` without zarr, or None where only zarr is known to read it rightly."""
    if type(array.store) is not LocalStore or array.shards is not None or array.filters:
        return None
    if array.metadata.zarr_format == 2:
        plain = array.order == "C"
    else:
        serializer = array.serializer
        # The elements' order in memory, `array.order`, says nothing of stored ones in v3.
        plain = type(serializer) is BytesCodec and (
            serializer.endian is None or serializer.endian.value == sys.byteorder
        )
    native = array.dtype.isnative and array.dtype in DTYPES.values()
    codecs = tuple(array.compressors)
    if not (plain and native) or len(codecs) > 1 or not all(map(_known, codecs)):
        return None
    return DirectReader(array, codecs[0] if codecs else None)


def _known(codec: Any) -> bool:
    if type(codec) not in _CODECS:
        # zarr's own wrappers of numcodecs' codecs, which are no class of either in all versions.
        metadata = codec.to_dict() if hasattr(codec, "to_dict") else {}
        if not str(metadata.get("name")).startswith("numcodecs."):
            return False
    return codec_name(codec) in DECODERS


@dataclass(frozen=True, slots=True)
class _Part:
    """What a chunk and a range of rows have in common."""

    index: tuple[int, ...]
    """The chunk, along each axis."""
    within: tuple[slice, ...]
    """Where in the chunk."""
    target: np.ndarray
    """Where it belongs, of the shape of `within`."""


class DirectReader:
    """Reads boxes of an array's rows.

    Parameters
    ----------
    array : zarr.Array
        One that `direct_reader` has looked at.
    codec : object or None
        Its only compressor, if it has one.
    """

    def __init__(self, array: AnyArray, codec: Any) -> None:
        assert isinstance(array.store, LocalStore)
        self._folder = str(array.store.root / array.path)
        self._chunk_key = array.metadata.encode_chunk_key
        self._chunk = array.chunks
        self._dtype = array.dtype
        self._chunk_bytes = prod(array.chunks) * array.dtype.itemsize
        self._fill = 0 if array.fill_value is None else array.fill_value
        name = None if codec is None else codec_name(codec)
        self._decode = None if name is None else DECODERS[name]
        self._is_blosc = name == "blosc"
        self.scratch_bytes = self._scratch_bytes(array, codec)
        self.piece_rows = self._piece_rows(array, codec)

    def read(self, name: str, box: RowBox, out: np.ndarray) -> None:
        """Fill `out` with a box of rows.

        Parameters
        ----------
        name : str
            The array, for the message.
        box : RowBox
            Which rows.
        out : ndarray, C order
            Of the box's extents and all features.

        Raises
        ------
        ReadError
            If a chunk is truncated, corrupt or unreadable.
        """
        for part in self._parts(box, out):
            try:
                self._read_part(part)
            except Exception as error:  # each codec raises what it likes
                raise ReadError(
                    f"{name}: {RowRange(box.start, box.stop)} cannot be read: {one_line(error)}; "
                    f"chunk {self._chunk_key(part.index)} is corrupt, truncated or unreadable"
                ) from error

    def close(self) -> None:
        """Release the scratch of this thread; that of others goes when they end."""
        vars(_thread).clear()

    def _parts(self, box: RowBox, out: np.ndarray) -> Iterator[_Part]:
        axes = []
        bounds = [(piece.start, piece.stop) for piece in box.selection]
        for (start, stop), size in zip((*bounds, (0, out.shape[-1])), self._chunk, strict=True):
            along = []
            for index in range(start // size, -(-stop // size)):
                first, last = max(start, index * size), min(stop, (index + 1) * size)
                within = slice(first - index * size, last - index * size)
                along.append((index, within, slice(first - start, last - start)))
            axes.append(along)
        for place in product(*axes):
            index, within, target = zip(*place, strict=True)
            yield _Part(index, within, out[target])

    def _read_part(self, part: _Part) -> None:
        with self._opened(part.index) as fd:
            if fd is None:
                part.target[...] = self._fill
            elif self._decode is None:
                self._copy_stored(fd, part)
            else:
                self._decode_stored(fd, part)

    @contextmanager
    def _opened(self, index: tuple[int, ...]) -> Iterator[int | None]:
        """Descriptor of a chunk's file; None if it was never written."""
        try:
            fd = os.open(f"{self._folder}/{self._chunk_key(index)}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            # Without its folder the array is gone: a disk no longer there is no fill value.
            Path(self._folder).stat()
            yield None
            return
        try:
            yield fd
        finally:
            os.close(fd)

    def _copy_stored(self, fd: int, part: _Part) -> None:
        """Read an uncompressed chunk, or what of it is wanted."""
        size = os.fstat(fd).st_size
        if size != self._chunk_bytes:
            raise EOFError(f"{size} bytes are stored, the chunk has {self._chunk_bytes}")
        shape = part.target.shape
        if part.target.flags.c_contiguous and _contiguous(shape, self._chunk):
            offset = 0
            for piece, extent in zip(part.within, self._chunk, strict=True):
                offset = offset * extent + piece.start
            _read_full(fd, _bytes(part.target), offset * self._dtype.itemsize)
            return
        # Whole along all axes but the first, which is cut to what is wanted.
        along, step = part.within[0], self._chunk_bytes // self._chunk[0]
        rows = _scratch("chunk", self._chunk_bytes)[: (along.stop - along.start) * step]
        _read_full(fd, rows, along.start * step)
        self._take_rows(rows, part)

    def _decode_stored(self, fd: int, part: _Part) -> None:
        assert self._decode is not None
        size = os.fstat(fd).st_size
        if size > 2 * self._chunk_bytes + _SLACK_BYTES:
            raise ValueError(f"{size} bytes are stored for a chunk of {self._chunk_bytes}")
        scratch = _scratch("stored", max(size, _stored_bytes(self._chunk_bytes)))
        if self._is_blosc and self._decode_blocks(fd, size, part, scratch):
            return
        stored = scratch[:size]
        _read_full(fd, stored, 0)
        if part.target.flags.c_contiguous and part.target.shape == self._chunk:
            self._decode(stored, _bytes(part.target))
            return
        chunk = _scratch("chunk", self._chunk_bytes)[: self._chunk_bytes]
        self._decode(stored, chunk)
        self._take(chunk, part)

    def _decode_blocks(self, fd: int, size: int, part: _Part, scratch: np.ndarray) -> bool:
        """Decode the blocks of Blosc that hold `part`, if `scratch` holds both, else nothing."""
        along, step = part.within[0], self._chunk_bytes // self._chunk[0]
        start, stop = along.start * step, along.stop * step
        if 2 * (stop - start) > self._chunk_bytes:
            return False
        read = partial(_read_full, fd)
        table = read_table(read, size, self._chunk_bytes)
        if table is None:
            return False
        if part.target.flags.c_contiguous and part.target.shape[1:] == self._chunk[1:]:
            return read_blocks(read, table, start, stop, _bytes(part.target), scratch)
        rows, rest = scratch[: stop - start], scratch[stop - start :]
        done = read_blocks(read, table, start, stop, rows, rest)
        if done:
            self._take_rows(rows, part)
        return done

    def _take(self, chunk: np.ndarray, part: _Part) -> None:
        part.target[...] = chunk.view(self._dtype).reshape(self._chunk)[part.within]

    def _take_rows(self, rows: np.ndarray, part: _Part) -> None:
        """As `_take`, of a chunk cut along its first axis to what is wanted."""
        cut = rows.view(self._dtype).reshape(-1, *self._chunk[1:])
        part.target[...] = cut[:, *part.within[1:]]

    def _piece_rows(self, array: AnyArray, codec: Any) -> int:
        """Rows of what can be read of a chunk by itself; 0 if chunks are read whole."""
        if codec is None:
            piece_bytes = _PIECE_BYTES
        elif self._is_blosc:
            piece_bytes = int(getattr(codec, "blocksize", 0)) or min(
                _BLOSC_PIECE_ELEMENTS * self._dtype.itemsize, _BLOSC_BLOCK_BYTES
            )
            if 4 * piece_bytes > self._chunk_bytes:
                return 0
        else:
            return 0
        inner = array.shape[1:-1]
        if any(size < extent for size, extent in zip(self._chunk[1:-1], inner, strict=True)):
            # Rows that follow each other lie all over a chunk.
            return 0
        return max(1, piece_bytes // (self._chunk_bytes // self._chunk[0])) * prod(inner)

    def _scratch_bytes(self, array: AnyArray, codec: Any) -> int:
        """What one thread allocates: a stored chunk, a decoded one if any is cut, the codec's."""
        tail_is_whole = array.chunks[1:] == array.shape[1:]
        if codec is None:
            return 0 if tail_is_whole else self._chunk_bytes
        whole = tail_is_whole and array.shape[0] % array.chunks[0] == 0
        scratch = _stored_bytes(self._chunk_bytes) + _CODEC_BYTES
        if not whole:
            scratch += self._chunk_bytes
        if codec_name(codec) == "blosc":
            block = int(getattr(codec, "blocksize", 0)) or _BLOSC_BLOCK_BYTES
            scratch += _BLOSC_BLOCKS * min(block, self._chunk_bytes)
        return scratch


def _contiguous(shape: tuple[int, ...], chunk: tuple[int, ...]) -> bool:
    """Whether a box of `shape` lies in one piece within a chunk."""
    axis = next((axis for axis, extent in enumerate(shape) if extent > 1), len(shape) - 1)
    return shape[axis + 1 :] == chunk[axis + 1 :]


def _stored_bytes(chunk_bytes: int) -> int:
    """Bound of what an incompressible chunk takes with any of the codecs."""
    return chunk_bytes + chunk_bytes // 255 + 4096


def _scratch(use: str, size: int) -> np.ndarray:
    """The thread's buffer for `use`, of `size` bytes or more; made anew only to grow."""
    buffer: np.ndarray | None = getattr(_thread, use, None)
    if buffer is None or buffer.size < size:
        # The old one goes first.
        setattr(_thread, use, None)
        buffer = np.empty(size, np.uint8)
        setattr(_thread, use, buffer)
    return buffer


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _read_full(fd: int, memory: np.ndarray, offset: int) -> None:
    """Fill `memory` with a file's bytes from `offset` on."""
    view = memory.data
    # One call gives at most 2 GiB, and fewer bytes when a signal arrives.
    while view:
        count = os.preadv(fd, [view], offset)
        if count == 0:
            raise EOFError(f"the file ends at byte {offset}, {len(view)} bytes before its end")
        view = view[count:]
        offset += count
