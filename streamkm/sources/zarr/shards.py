"""Reads shards of Zarr v3: files of many inner chunks, with an index of their places.

An index is checked when it is read, and then kept for as long as its shard stays the same. Adjacent
inner chunks are read together; zarr makes a request for each.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from math import prod
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from streamkm.sources.zarr.chunk import read_full, scratch, stored_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import zarr

    from streamkm.sources.pagecache import OpenFile
    from streamkm.sources.zarr.chunk import ChunkReader, Part

    AnyArray = zarr.Array[Any]

__all__ = ["MERGE_BYTES", "MERGE_GAP_BYTES", "Sharding", "plain_index"]

#: Bytes of one read of several inner chunks, at most, with the gaps between them.
MERGE_BYTES = 4 << 20
#: Bytes of a gap between two inner chunks that one read spans, at most.
MERGE_GAP_BYTES = 64 << 10
#: Vectors that one call fills, at most: Linux and macOS allow no more.
_MAX_VECTORS = 1024
#: Bytes of the indices that are kept, of all arrays together.
INDEX_CACHE_BYTES = 8 << 20

#: Offset and size, both, of an inner chunk that was never written.
_ABSENT = np.iinfo(np.uint64).max
_CRC_BYTES = 4

_indices: OrderedDict[tuple[object, ...], np.ndarray] = OrderedDict()
_lock = threading.Lock()


def _unlock() -> None:
    """In a forked child: a thread that holds the lock in the parent is not here to release it."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


def plain_index(array: AnyArray) -> dict[str, Any] | None:
    """The configuration of `array`'s shards, if their index has one of the two usual forms.

    These are little-endian numbers with and without a crc32c, in shards that are not compressed as
    a whole. None for any other form.
    """
    codecs: Any = array.metadata.to_dict()["codecs"]
    config = codecs[0]["configuration"]
    names = [codec["name"] for codec in config["index_codecs"]]
    little = config["index_codecs"][0].get("configuration", {}).get("endian") == "little"
    plain = len(codecs) == 1 and names in (["bytes"], ["bytes", "crc32c"]) and little
    return dict(config) if plain else None


class Sharding:
    """Finds the inner chunks of an array, and reads adjacent ones together.

    Parameters
    ----------
    array : zarr.Array
        A sharded array.
    config : dict
        Its configuration, from `plain_index`.
    chunks : ChunkReader
        The reader of its inner chunks.
    """

    def __init__(self, array: AnyArray, config: dict[str, Any], chunks: ChunkReader) -> None:
        assert array.shards is not None
        self.per_shard = tuple(
            shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True)
        )
        self._n_chunks = prod(self.per_shard)
        self._has_crc = len(config["index_codecs"]) == 2
        self._at_start = config.get("index_location", "end") == "start"
        self._chunks = chunks

    @property
    def _index_bytes(self) -> int:
        return 16 * self._n_chunks + _CRC_BYTES * self._has_crc

    def scratch_bytes(self) -> int:
        """Bytes that one thread allocates beside those of `ChunkReader.scratch_bytes`."""
        of_a_shard = self._n_chunks * stored_bytes(self._chunks.nbytes)
        together = 0 if self._chunks.decode is None else min(MERGE_BYTES, of_a_shard)
        # An index takes 6 times its bytes: as stored, as numbers, and sorted for the check.
        return together + 6 * self._index_bytes

    def locate(
        self, file: OpenFile, path: str, parts: Sequence[Part]
    ) -> tuple[list[Part], list[tuple[int, int, Part]]]:
        """Parts whose chunk was never written; (offset, size, part) of the others, by offset."""
        index = self._index(file, path)
        absent, present = [], []
        for part in parts:
            place = 0
            for number, extent in zip(part.index, self.per_shard, strict=True):
                place = place * extent + number % extent
            offset, size = index[place].tolist()
            if offset == size == _ABSENT:
                absent.append(part)
            else:
                present.append((offset, size, part))
        return absent, sorted(present, key=lambda found: found[0])

    def runs(self, found: list[tuple[int, int, Part]]) -> Iterator[list[tuple[int, int, Part]]]:
        """Cut chunks, which are in order of their offsets, into runs that one read takes."""
        # Uncompressed chunks are read straight into place, where a gap has no room.
        gap = 0 if self._chunks.decode is None else MERGE_GAP_BYTES
        run: list[tuple[int, int, Part]] = []
        for chunk in found:
            if run:
                first, (last, size, _) = run[0][0], run[-1]
                apart = chunk[0] - (last + size) > gap
                long = chunk[0] + chunk[1] - first > MERGE_BYTES
                if apart or long or len(run) == _MAX_VECTORS:
                    yield run
                    run = []
            run.append(chunk)
        if run:
            yield run

    def read_together(self, file: OpenFile, run: list[tuple[int, int, Part]]) -> list[np.ndarray]:
        """Read a run of chunks; returns the stored bytes of each.

        Chunks that are not compressed must be whole. They are read into place, and the list is
        empty.
        """
        first, stop = run[0][0], run[-1][0] + run[-1][1]
        if self._chunks.decode is None:
            targets = [part.target.reshape(-1).view(np.uint8) for _, _, part in run]
            read_full(file, targets, first)
            return []
        needed = max(stop - first, stored_bytes(self._chunks.nbytes))
        memory = scratch("stored", needed)[: stop - first]
        read_full(file, [memory], first)
        return [memory[offset - first : offset - first + size] for offset, size, _ in run]

    def _index(self, file: OpenFile, path: str) -> np.ndarray:
        """The checked index: (offset, size) of every inner chunk in C order, uint64."""
        stat = os.fstat(file.fd)
        key = (path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        with _lock:
            if key in _indices:
                _indices.move_to_end(key)
                return _indices[key]
        index = self._read_index(file, stat.st_size)
        with _lock:
            _indices[key] = index
            while sum(kept.nbytes for kept in _indices.values()) > INDEX_CACHE_BYTES:
                _indices.popitem(last=False)
        return index

    def _read_index(self, file: OpenFile, size: int) -> np.ndarray:
        length = self._index_bytes
        if size < length:
            raise EOFError(f"the shard has {size} bytes, its index alone takes {length}")
        start = 0 if self._at_start else size - length
        raw = np.empty(length, np.uint8)
        read_full(file, [raw], start)
        if self._has_crc:
            raw, stored = raw[:-_CRC_BYTES], raw[-_CRC_BYTES:].tobytes()
            found = google_crc32c.value(raw.tobytes())
            if found != int.from_bytes(stored, "little"):
                raise ValueError("the crc32c of the shard's index is wrong")
        index: np.ndarray = raw.view("<u8").astype(np.uint64).reshape(-1, 2)
        low, high = (length, size) if self._at_start else (0, size - length)
        _check_index(index, low, high)
        return index


def _check_index(index: np.ndarray, low: int, high: int) -> None:
    """Refuse an index whose chunks overlap, or lie outside bytes `low` to `high` of the shard."""
    offsets, sizes = index[:, 0], index[:, 1]
    written = np.flatnonzero((offsets != _ABSENT) | (sizes != _ABSENT))
    offsets, sizes = offsets[written], sizes[written]
    # Not as offset + size > high, because the sum may overflow 64 bits.
    outside = (offsets < low) | (offsets > high) | (sizes > high - np.minimum(offsets, high))
    if outside.any():
        bad = int(outside.argmax())
        raise ValueError(
            f"the shard's index puts its chunk number {written[bad]} at bytes {offsets[bad]} to "
            f"{int(offsets[bad]) + int(sizes[bad])}, outside those for chunks, {low} to {high}"
        )
    order = np.argsort(offsets, kind="stable")
    starts, stops = offsets[order], (offsets + sizes)[order]
    over = np.flatnonzero(starts[1:] < stops[:-1])
    if over.size:
        one, other = sorted(written[order[over[0] : over[0] + 2]].tolist())
        raise ValueError(f"the shard's index puts its chunks number {one} and {other} in one place")
