"""Text for people: sizes that are printed can be read, and numbers have the right noun."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkm.errors import ConfigError
from streamkm.text import counted, format_bytes, parse_bytes, with_spans_joined


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("123", 123),
        ("123b", 123),
        ("8GiB", 8 << 30),
        ("512 MB", 512_000_000),
        ("1.5g", 1_500_000_000),
        (" 2kib ", 2048),
        ("1T", 10**12),
        ("0.5TiB", 1 << 39),
    ],
)
def test_parse_bytes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


# Breaks with a KeyError where an error of the program's own is due.
@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "GiB",
            "8ib",
            "8gi",
            "-1",
            "1e9",
            "1,5g",
            "8 GiB x",
            "8PiB",
            "nan",
            "0x10",
            "1.",
            ".",
        ),
        *("9" * 400, "9" * 308 + "TiB", "9" * 5000),
    ],
)
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(ConfigError, match="a size is"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (8 << 30, "8.0 GiB"),
        (3 << 50, "3072.0 TiB"),
    ],
)
def test_format_bytes(n_bytes: int, expected: str) -> None:
    assert format_bytes(n_bytes) == expected


# Breaks when a unit is a thousand in one direction and 1024 in the other.
@given(st.integers(0, 2**50))
def test_what_is_printed_can_be_read(n_bytes: int) -> None:
    read = parse_bytes(format_bytes(n_bytes).removesuffix("ytes"))
    # One decimal: half a tenth of at least one unit.
    assert read == pytest.approx(n_bytes, rel=0.051)


@pytest.mark.parametrize(
    ("n", "noun", "text"),
    [
        (1, "row", "1 row"),
        (0, "row", "0 rows"),
        (2000, "batch", "2,000 batches"),
        (1, "entry", "1 entry"),
        (2, "entry", "2 entries"),
        (2, "array", "2 arrays"),
    ],
)
def test_one_thing_or_many(n, noun, text):
    assert counted(n, noun) == text


# Breaks when a range that counts from the end is taken for an option, or another word is joined.
def test_a_span_from_the_end_is_joined_to_its_option() -> None:
    words = ["fit", "x", "--rows", "-5:", "--rows", "3:-1", "--k", "-5:", "--rows", "--out"]
    assert with_spans_joined(words) == [
        "fit", "x", "--rows=-5:", "--rows", "3:-1", "--k", "-5:", "--rows", "--out",
    ]  # fmt: skip
