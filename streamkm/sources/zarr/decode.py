"""Decodes one stored chunk into memory that already exists.

The codecs' libraries trust stored bytes, and a reader of other people's files must not. Blosc reads
as many bytes as its header says, even past the end of its input. A Zstd frame that is shorter than
its target leaves the rest of the target unchanged, and so does gzip in numcodecs, after two copies.
So headers are checked first, and gzip and zlib are decoded by the standard library, a portion at a
time.
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
#: Bytes of magic, descriptor, window, dictionary and content size, at most.
_ZSTD_HEADER = 18
#: zlib's `wbits` for a stream with a header of gzip, and of zlib.
_GZIP_BITS, _ZLIB_BITS = 31, 15
#: Bytes of a portion of gzip and zlib: as stored, and as decoded.
_PORTION_IN, _PORTION_OUT = 64 << 10, 64 << 10


def _blosc(stored: np.ndarray, out: np.ndarray) -> None:
    """Decode a Blosc chunk in one thread: importing zarr turns Blosc's own threads off.

    If ``numcodecs.blosc.use_threads`` turns them on again, Blosc holds a lock around them. That is
    slower, and still correct.
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
        # numcodecs refuses more bytes than fit, and if the size is unknown also fewer.
        numcodecs.zstd.decompress(stored, out)
        return
    # Several frames, or one that is too short: only the decoded length can tell.
    decoded = numcodecs.zstd.decompress(stored)
    _same_size(len(decoded), out)
    out[:] = np.frombuffer(decoded, np.uint8)


def _zstd_content(header: bytes) -> int | None:
    """Decoded bytes of the first frame by its header; None if it does not say, 0 for no frame."""
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
    """Decode all members of a gzip stream; zeros between and after them are padding."""
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
    """Decode one stream into ``out[filled:]``; returns the bytes read and the new `filled`."""
    stream = zlib.decompressobj(bits)
    read = 0
    tail = b""
    while not stream.eof:
        portion = tail or stored[read : read + _PORTION_IN].data
        if not tail:
            read += len(portion)
        decoded = stream.decompress(portion, _PORTION_OUT)
        if not decoded and not len(portion) and not stream.eof:
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


#: Functions by the name of their codec. Each decodes stored bytes to exactly the bytes of `out`, or
#: raises; both are one-dimensional arrays of uint8.
DECODERS: dict[str, Decode] = {
    "blosc": _blosc,
    "gzip": _gzip,
    "lz4": _lz4,
    "zlib": _zlib,
    "zstd": _zstd,
}
