"""Reads chunks of common Zarr arrays without zarr, straight into the caller's memory.

zarr spends a coroutine, a hop to another thread and two temporaries on a chunk, and the temporaries
stay in that thread's heap. Here the reading thread reads the stored bytes into a buffer of its own
and decodes them into place; uncompressed bytes need no buffer. This is done for arrays in local
folders, sharded or not, in C order and native byte order, with at most one codec, which must be in
`streamkm.sources.zarr.decode.DECODERS`. All other arrays are read through zarr.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from contextlib import closing, contextmanager
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
from streamkm.sources.pagecache import BUFFER_BYTES, OpenFile, has_spare_memory
from streamkm.sources.zarr.chunk import ChunkReader, Part, release_scratch
from streamkm.sources.zarr.decode import DECODERS
from streamkm.sources.zarr.shards import Sharding, plain_index
from streamkm.sources.zarr.store import codec_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    import zarr

    from streamkm.sources.axes import Axes
    from streamkm.sources.layout import RowBox

    AnyArray = zarr.Array[Any]

__all__ = ["DirectReader", "direct_reader"]

#: O_NONBLOCK, because a stranger's array may hold a pipe that nobody writes to.
_OPENING = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
#: Classes of codecs that `DECODERS` decodes. Subclasses are left out: they may store anything.
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


def direct_reader(array: AnyArray, axes: Axes) -> DirectReader | None:
    """A reader of `array`, with the features of `axes`, without zarr.

    None if only zarr is known to read it correctly.
    """
    if type(array.store) is not LocalStore or array.filters:
        return None
    index = None if array.shards is None else plain_index(array)
    if array.shards is not None and index is None:
        return None
    if array.metadata.zarr_format == 2:
        plain = array.order == "C"
    else:
        serializer = array.serializer
        # In v3 `array.order` is the order in memory, and says nothing of the stored one.
        plain = type(serializer) is BytesCodec and (
            serializer.endian is None or serializer.endian.value == sys.byteorder
        )
    native = array.dtype.isnative and array.dtype in DTYPES.values()
    codecs = tuple(array.compressors)
    if not (plain and native) or len(codecs) > 1 or not all(map(_known, codecs)):
        return None
    return DirectReader(array, axes, codecs[0] if codecs else None, index)


def _known(codec: Any) -> bool:
    if type(codec) not in _CODECS:
        # zarr wraps numcodecs' codecs in classes that differ from version to version.
        metadata = codec.to_dict() if hasattr(codec, "to_dict") else {}
        if not str(metadata.get("name")).startswith("numcodecs."):
            return False
    return codec_name(codec) in DECODERS


class DirectReader:
    """Reads boxes of an array's rows.

    Parameters
    ----------
    array : zarr.Array
        An array that `direct_reader` accepts.
    axes : Axes
        Which of its axes are features.
    codec : object or None
        Its only compressor, if it has one.
    index : dict or None
        The configuration of its shards, from `plain_index`, if it has shards.
    """

    def __init__(
        self, array: AnyArray, axes: Axes, codec: Any, index: dict[str, Any] | None
    ) -> None:
        assert isinstance(array.store, LocalStore)
        self._axes = axes
        self._folder = str(array.store.root / array.path)
        self._key = array.metadata.encode_chunk_key
        self._fill = 0 if array.fill_value is None else array.fill_value
        self._chunks = ChunkReader(array, codec)
        self._shards = None if index is None else Sharding(array, index, self._chunks)
        # Compressed chunks take less, but only a look at each would tell how much.
        self._fits = has_spare_memory(array.nbytes)
        tail_is_whole = array.chunks[1:] == array.shape[1:]
        # Uncompressed bytes are read from any row to any row: only other axes can cut a chunk.
        rows_are_whole = codec is None or array.shape[0] % array.chunks[0] == 0
        are_whole = tail_is_whole and rows_are_whole and axes.are_last
        self.cuts_rows_alone = index is None and array.ndim == 2 and tail_is_whole and axes.are_last
        """Whether a chunk holds whole rows, so that `read_rows` can be used."""
        if self.cuts_rows_alone:
            self._key_around = _around(self._key)
        self.scratch_bytes = BUFFER_BYTES + self._chunks.scratch_bytes(are_whole=are_whole)
        # Those of the same rows with features last, so that both give the same sample.
        shape, chunks = axes.rows_first(array.shape), axes.rows_first(array.chunks)
        self.piece_rows = self._chunks.piece_rows(shape, chunks)
        if self._shards is not None:
            self.scratch_bytes += self._shards.scratch_bytes()
            if self.piece_rows == 0 and chunks[1:-1] == shape[1:-1]:
                self.piece_rows = chunks[0] * prod(shape[1:-1])

    def read(self, name: str, box: RowBox, out: np.ndarray) -> None:
        """Fill `out` with a box of rows.

        Parameters
        ----------
        name : str
            Name of the array, for the message.
        box : RowBox
            The rows to read.
        out : ndarray, C order
            Filled completely; its shape is the rows of the box by all features.

        Raises
        ------
        ReadError
            If a chunk is truncated, corrupt or unreadable.
        """
        where = f"{name}: {RowRange(box.start, box.stop)}"
        for key, parts in self._by_file(box, self._axes.stored_view(out, box)).items():
            with _blaming(where, f"chunk {key}"):
                if self._shards is None:
                    (part,) = parts
                    self._read_chunk(key, part)
                elif (opened := self._open(key)) is None:
                    self._fill_in(parts)
                else:
                    with closing(opened[0]) as file:
                        self._read_shard(self._shards, file, key, parts, where)

    def read_rows(self, name: str, reads: Sequence[RowRange], out: np.ndarray) -> None:
        """Fill `out` with rows as `read` does, in a third of the time; where `cuts_rows_alone`.

        Several ranges of rows come one after the other.
        """
        chunk_rows, n_features = self._chunks.shape
        before, after = self._key_around
        through_cache = self._fits and has_spare_memory()
        memory, row_bytes = out.reshape(-1).view(np.uint8), n_features * out.itemsize
        at = 0
        for rows in reads:
            for number in range(rows.start // chunk_rows, -(-rows.stop // chunk_rows)):
                first = number * chunk_rows
                start, stop = max(first, rows.start), min(first + chunk_rows, rows.stop)
                end = at + stop - start
                key = f"{before}{number}{after}"
                try:
                    is_whole = through_cache and end - at == chunk_rows
                    target = memory[at * row_bytes : end * row_bytes]
                    if not (is_whole and self._read_whole(key, target)):
                        within = (slice(start - first, stop - first), slice(0, n_features))
                        self._read_chunk(key, Part((number, 0), within, out[at:end]))
                except ReadError:
                    raise
                except Exception as error:  # codecs raise errors of any class
                    raise _blamed(f"{name}: {rows}", f"chunk {key}", error) from error
                at = end

    def close(self) -> None:
        """Release this thread's scratch; other threads release theirs when they end."""
        release_scratch()

    def _read_whole(self, key: str, target: np.ndarray) -> bool:
        """Fill `target`, uint8, with a whole chunk through the page cache, by the fewest calls.

        False where anything is unusual: then `_read_chunk`, which knows what to do or to say.
        """
        try:
            fd = os.open(f"{self._folder}/{key}", _OPENING)
        except OSError:
            return False
        try:
            found = os.fstat(fd)
            size = found.st_size
            stored = self._chunks.memory_for(size, target)
            if stored is None or not stat.S_ISREG(found.st_mode):
                return False
            if os.preadv(fd, (stored.data,), 0) != size:
                return False
        except OSError:
            return False
        finally:
            os.close(fd)
        if self._chunks.decode is not None:
            self._chunks.decode(stored, target)
        return True

    def _read_chunk(self, key: str, part: Part) -> None:
        """Fill a part from the file of its chunk."""
        opened = self._open(key)
        if opened is None:
            self._fill_in([part])
            return
        file, size = opened
        try:
            self._chunks.read(file, 0, size, part)
        finally:
            file.close()

    def _read_shard(
        self, shards: Sharding, file: OpenFile, key: str, parts: list[Part], where: str
    ) -> None:
        absent, present = shards.locate(file, f"{self._folder}/{key}", parts)
        self._fill_in(absent)
        together = []
        for offset, size, part in present:
            with self._blaming_inner(where, key, part):
                self._chunks.check_size(size)
                if self._chunks.is_narrow(part) and not self._chunks.is_whole(part):
                    self._chunks.read(file, offset, size, part)
                else:
                    together.append((offset, size, part))
        for run in shards.runs(together):
            stored = shards.read_together(file, run)
            for chunk, (_, _, part) in zip(stored, run, strict=False):
                with self._blaming_inner(where, key, part):
                    self._chunks.decode_into(chunk, part)

    def _blaming_inner(self, where: str, key: str, part: Part) -> AbstractContextManager[None]:
        index = ", ".join(map(str, part.index))
        return _blaming(where, f"inner chunk ({index}) in shard {key}")

    def _fill_in(self, parts: list[Part]) -> None:
        for part in parts:
            part.target[...] = self._fill

    def _by_file(self, box: RowBox, out: np.ndarray) -> dict[str, list[Part]]:
        """The parts to read from each file, in C order of the chunks."""
        files: dict[str, list[Part]] = {}
        for part in self._parts(box, out):
            index = part.index
            if self._shards is not None:
                index = tuple(
                    number // extent
                    for number, extent in zip(index, self._shards.per_shard, strict=True)
                )
            files.setdefault(self._key(index), []).append(part)
        return files

    def _parts(self, box: RowBox, out: np.ndarray) -> Iterator[Part]:
        """The parts of `box`, one for each chunk that it touches."""
        axes = []
        for along, size in zip(self._axes.selection(box), self._chunks.shape, strict=True):
            start, stop = along.start, along.stop
            places = []
            for index in range(start // size, -(-stop // size)):
                first, last = max(start, index * size), min(stop, (index + 1) * size)
                within = slice(first - index * size, last - index * size)
                places.append((index, within, slice(first - start, last - start)))
            axes.append(places)
        for place in product(*axes):
            index, within, target = zip(*place, strict=True)
            yield Part(index, within, out[target])

    def _open(self, key: str) -> tuple[OpenFile, int] | None:
        """The file of a chunk or shard and its bytes; None if it was never written."""
        path = f"{self._folder}/{key}"
        try:
            fd = os.open(path, _OPENING)
        except FileNotFoundError:
            # If the folder is gone too, the disk may be: that must not read as the fill value.
            Path(self._folder).stat()
            return None
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "is no regular file", path)
        return OpenFile(fd, path, fits=self._fits), found.st_size


def _around(key: Callable[[tuple[int, int]], str]) -> tuple[str, str]:
    """What stands before and after a row of chunks in their keys, such as ``c/`` and ``/0``."""
    number = 1234567
    before, _, after = key((number, 0)).partition(str(number))
    return before, after


@contextmanager
def _blaming(where: str, what: str) -> Iterator[None]:
    """Turn any error into a ReadError that names the rows and the chunk."""
    try:
        yield
    except ReadError:
        raise
    except Exception as error:  # codecs raise errors of any class
        raise _blamed(where, what, error) from error


def _blamed(where: str, what: str, error: Exception) -> ReadError:
    """`error` as one that names the rows and the chunk."""
    return ReadError(
        f"{where} cannot be read: {one_line(error)}; {what} is corrupt, truncated or unreadable"
    )
