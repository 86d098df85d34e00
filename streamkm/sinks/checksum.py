"""The checksum of bytes that follow each other, from the checksums of the two parts.

zlib has this function, Python's module of that name has not. A crc32 is a remainder of polynomials
over the field of two elements: behind `n` more bytes it is multiplied by x to the power 8 n.
"""

from __future__ import annotations

__all__ = ["joined_crc32"]

#: The polynomial of crc32, without its highest power; bit 31 is the coefficient of 1.
_POLYNOMIAL = 0xEDB88320
_ONE, _X = 1 << 31, 1 << 30


def joined_crc32(first: int, second: int, n_bytes: int) -> int:
    """The crc32 of bytes with crc32 `first`, followed by `n_bytes` with crc32 `second`."""
    power, square, n_left = _ONE, _X, 8 * n_bytes
    while n_left:
        if n_left & 1:
            power = _product(power, square)
        square = _product(square, square)
        n_left >>= 1
    return _product(power, first) ^ second


def _product(a: int, b: int) -> int:
    """The product of two polynomials, modulo the polynomial of crc32."""
    found = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            found ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return found
