"""Decoding one stored chunk into memory that is already there.

The libraries trust what is stored more than a reader of people's files may.
Blosc reads as many bytes as its header says, at hand or not; a Zstd frame that
is shorter than the memory it goes to leaves the rest as it was, and so does
gzip in numcodecs, after two copies. So headers are looked at first, and gzip
and zlib are decoded by the standard library, in pieces.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numcodecs.blosc
import numcodecs.lz4
import numcodecs.zstd
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    Decode = Callable[[np.ndarray, np.ndarray], None]

__all__ = ["DECODERS"]

_BLOSC_HEADER = 16
_LZ4_HEADER = 4
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
#: Magic, descriptor, window, dictionary and content size, at most.
_ZSTD_HEADER = 18
#: zlib's `wbits` for a stream with a header of gzip, and of zlib.
_GZIP_BITS, _ZLIB_BITS = 31, 15
#: Pieces of gzip and zlib: as stored, and as decoded.
_PIECE_IN, _PIECE_OUT = 64 << 10, 64 << 10


def _blosc(stored: np.ndarray, out: np.ndarray) -> None:
    """Decode a Blosc chunk; in one thread, unless `numcodecs.blosc.use_threads` was changed.

    Importing zarr turns Blosc's own threads off. Were they turned on again,
    Blosc would hold a lock of its own around them: slower, and still right.
    """
    if stored.size < _BLOSC_HEADER:
        raise EOFError(f"{stored.size} bytes are shorter than a header of Blosc")
    decoded, _, length = stored[4:_BLOSC_HEADER].view("<u4").tolist()
    _same_size(decoded, out)
    if length > stored.size:
        raise EOFError(f"{stored.size} bytes are stored, a header of Blosc says {length}")
    numcodecs.blosc.decompress(stored, out)


def _lz4(stored: np.ndarray, out: np.ndarray) -> None:
    if stored.size < _LZ4_HEADER:
        raise EOFError(f"{stored.size} bytes are shorter than a header of LZ4")
    _same_size(int.from_bytes(stored[:_LZ4_HEADER].tobytes(), "little"), out)
    numcodecs.lz4.decompress(stored, out)


def _zstd(stored: np.ndarray, out: np.ndarray) -> None:
    content = _zstd_content(stored[:_ZSTD_HEADER].tobytes())
    if content is None or content >= out.size:
        # numcodecs itself refuses more than fits, and with an unknown size also less.
        numcodecs.zstd.decompress(stored, out)
        return
    # Several frames, or one that is too short: only the length of the result can tell.
    decoded = numcodecs.zstd.decompress(stored)
    _same_size(len(decoded), out)
    out[:] = np.frombuffer(decoded, np.uint8)


def _zstd_content(header: bytes) -> int | None:
    """Decoded bytes that the first frame promises; None if it does not say, 0 if it is no frame."""
    if len(header) < len(_ZSTD_MAGIC) + 1 or not header.startswith(_ZSTD_MAGIC):
        return 0
    descriptor = header[4]
    single_segment = bool(descriptor & 0x20)
    start = 5 + (not single_segment) + (0, 1, 2, 4)[descriptor & 3]
    size = (int(single_segment), 2, 4, 8)[descriptor >> 6]
    if size == 0:
        return None
    content = int.from_bytes(header[start : start + size], "little")
    return content + 256 if size == 2 else content


def _gzip(stored: np.ndarray, out: np.ndarray) -> None:
    """Decode all members of a gzip file; zeros between and after them are padding."""
    start = filled = 0
    while start < stored.size or not filled:
        read, filled = _inflate(stored[start:], out, filled, _GZIP_BITS)
        start += read
        while start < stored.size and not stored[start]:
            start += 1
    _same_size(filled, out)


def _zlib(stored: np.ndarray, out: np.ndarray) -> None:
    _, filled = _inflate(stored, out, 0, _ZLIB_BITS)
    _same_size(filled, out)


def _inflate(stored: np.ndarray, out: np.ndarray, filled: int, bits: int) -> tuple[int, int]:
    """Decode one stream to ``out[filled:]``; bytes of `stored` used, and `filled` after it."""
    stream = zlib.decompressobj(bits)
    read = 0
    tail = b""
    while not stream.eof:
        piece = tail or stored[read : read + _PIECE_IN].data
        if not tail:
            read += len(piece)
        decoded = stream.decompress(piece, _PIECE_OUT)
        if not decoded and not len(piece) and not stream.eof:
            raise EOFError(f"{stored.size} bytes are stored, and their end is missing")
        if filled + len(decoded) > out.size:
            raise ValueError(f"decodes to more than the chunk's {out.size} bytes")
        out[filled : filled + len(decoded)] = np.frombuffer(decoded, np.uint8)
        filled += len(decoded)
        tail = stream.unconsumed_tail
    return read - len(stream.unused_data), filled


def _same_size(decoded: int, out: np.ndarray) -> None:
    if decoded != out.size:
        raise ValueError(f"decodes to {decoded} bytes, the chunk has {out.size}")


#: Name of a codec -> function that decodes stored bytes to exactly the bytes of `out`,
#: both one-dimensional arrays of uint8, or raises.
DECODERS: dict[str, Decode] = {
    "blosc": _blosc,
    "gzip": _gzip,
    "lz4": _lz4,
    "zlib": _zlib,
    "zstd": _zstd,
}
