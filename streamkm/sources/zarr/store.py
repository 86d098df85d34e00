"""Wraps a Zarr store so that a truncated object raises an error.

zarr and numcodecs trust that a stored object is as long as it should be.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.store import RangeByteRequest, Store, SuffixByteRequest
from zarr.storage import LocalStore, WrapperStore

if TYPE_CHECKING:
    import zarr
    from zarr.abc.buffer import Buffer, BufferPrototype
    from zarr.abc.store import ByteRequest

__all__ = ["WholeStore", "codec_name", "folder_of"]

#: Bytes of a Blosc header; the last four are the length of the chunk with its header.
_BLOSC_HEADER = 16
_NEVER_WRITTEN = np.iinfo(np.uint64).max


def codec_name(codec: Any) -> str:
    """Name of a codec of Zarr v2 or v3, without the prefix that v3 gives to numcodecs' codecs."""
    name = codec.codec_id if hasattr(codec, "codec_id") else codec.to_dict()["name"]
    return str(name).removeprefix("numcodecs.")


def folder_of(node: zarr.Array[Any] | zarr.Group) -> str:
    """The local folder of an array or a group; ``""`` if its store is elsewhere."""
    return str(node.store.root / node.path) if isinstance(node.store, LocalStore) else ""


class WholeStore(WrapperStore[Store]):
    """Another store that raises an `EOFError` for a truncated object.

    Without it, two faults of the libraries would go unnoticed. zarr reads a shard or an inner chunk
    of no bytes as never written, and gives the fill value. numcodecs lets Blosc read past the end
    of a chunk that is shorter than its header says.

    Parameters
    ----------
    store : Store
        The store that holds the bytes.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._at_least = 0
        self._blosc = False
        self._index_pairs = 0

    def learn(self, array: zarr.Array[Any]) -> None:
        """Learn how the chunks of `array` are stored, before the first of them is read."""
        self._at_least = 1
        compressors = array.compressors
        if array.shards is None:
            self._blosc = bool(compressors) and codec_name(compressors[-1]) == "blosc"
        elif _index_at_start(array.metadata.to_dict()["codecs"]):
            pairs = zip(array.shards, array.chunks, strict=True)
            self._index_pairs = prod(shard // chunk for shard, chunk in pairs)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The object from the other store; `EOFError` if it is too short."""
        value = await super().get(key, prototype, byte_range)
        if value is None:
            return None
        if isinstance(byte_range, RangeByteRequest):
            expected = byte_range.end - byte_range.start
        elif isinstance(byte_range, SuffixByteRequest):
            expected = byte_range.suffix
        else:
            expected = self._expected(value)
        if len(value) < expected:
            raise EOFError(f"{key} is truncated: {len(value)} bytes instead of {expected} or more")
        return value

    def _expected(self, value: Buffer) -> int:
        """Bytes that an object needs at least, judged by its first bytes."""
        if self._blosc:
            header = value[:_BLOSC_HEADER].to_bytes()
            if len(header) < _BLOSC_HEADER:
                return _BLOSC_HEADER
            return max(_BLOSC_HEADER, int.from_bytes(header[12:], "little"))
        if self._index_pairs:
            # A truncated shard lacks an index at its end, which zarr notices. An index at the
            # start is there, and leads zarr to slices without bytes.
            size = 16 * self._index_pairs
            head = value[:size].to_bytes()
            if len(head) < size:
                return size
            index = np.frombuffer(head, "<u8").reshape(-1, 2)
            written = index[index[:, 0] != _NEVER_WRITTEN]
            return int(written.sum(axis=1).max(initial=size))
        return self._at_least


def _index_at_start(codecs: Any) -> bool:
    """Whether the shards of an array with these codecs begin with their index."""
    return bool(codecs[0]["configuration"].get("index_location") == "start")
