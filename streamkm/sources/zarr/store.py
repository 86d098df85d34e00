"""What zarr and numcodecs take on trust: that a stored object is as long as it should be."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.store import RangeByteRequest, Store, SuffixByteRequest
from zarr.storage import WrapperStore

if TYPE_CHECKING:
    import zarr
    from zarr.abc.buffer import Buffer, BufferPrototype
    from zarr.abc.store import ByteRequest

__all__ = ["WholeStore", "codec_name"]

#: Bytes of a Blosc header; the last four are the length of the whole, header included.
_BLOSC_HEADER = 16
_NEVER_WRITTEN = np.iinfo(np.uint64).max


def codec_name(codec: Any) -> str:
    """Name of a codec of Zarr v2 or v3, without the prefix of numcodecs' own in v3."""
    name = codec.codec_id if hasattr(codec, "codec_id") else codec.to_dict()["name"]
    return str(name).removeprefix("numcodecs.")


class WholeStore(WrapperStore[Store]):
    """Another store, with truncated objects refused by an `EOFError`.

    Two mistakes of the libraries beneath would go unnoticed otherwise. zarr
    takes a shard, or an inner chunk of one, that reads as no bytes for one that
    was never written, and gives the fill value. And numcodecs lets Blosc read
    after the end of a chunk that is shorter than its header says.

    Parameters
    ----------
    store : Store
        Where the bytes are.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._at_least = 0
        self._blosc = False
        self._index_pairs = 0

    def learn(self, array: zarr.Array[Any]) -> None:
        """Note how the chunks of `array` are stored; before, only metadata are read."""
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
        """As the other store gives it, or `EOFError` if it is too short."""
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
        """Bytes that a whole object needs, by what its first bytes say."""
        if self._blosc:
            header = value[:_BLOSC_HEADER].to_bytes()
            if len(header) < _BLOSC_HEADER:
                return _BLOSC_HEADER
            return max(_BLOSC_HEADER, int.from_bytes(header[12:], "little"))
        if self._index_pairs:
            # An index at the end is missing from a truncated shard, and its checksum with it;
            # one at the start is there, and leads zarr to slices that have no bytes.
            size = 16 * self._index_pairs
            head = value[:size].to_bytes()
            if len(head) < size:
                return size
            index = np.frombuffer(head, "<u8").reshape(-1, 2)
            written = index[index[:, 0] != _NEVER_WRITTEN]
            return int(written.sum(axis=1).max(initial=size))
        return self._at_least


def _index_at_start(codecs: Any) -> bool:
    """Whether the metadata of a sharded array say that a shard begins with its index."""
    return bool(codecs[0]["configuration"].get("index_location") == "start")
