"""The checksum of two parts."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from streamkm.sinks.checksum import joined_crc32


@given(st.binary(max_size=300), st.binary(max_size=5000))
def test_the_checksum_of_parts_is_that_of_the_whole(first, second):
    found = joined_crc32(zlib.crc32(first), zlib.crc32(second), len(second))
    assert found == zlib.crc32(first + second)


def test_long_parts():
    second = bytes(3 << 20)
    assert joined_crc32(zlib.crc32(b"x"), zlib.crc32(second), len(second)) == zlib.crc32(
        b"x" + second
    )
