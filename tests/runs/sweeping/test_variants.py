"""Which fits a sweep has: K from words, in order, and the names of folders."""

from __future__ import annotations

import pytest

from streamkm.errors import ConfigError
from streamkm.runs.sweeping.variants import in_order, parse_ks, variants_of


@pytest.mark.parametrize(
    ("text", "ks"),
    [
        ("16", [16]),
        ("8:1024:x2", [8, 16, 32, 64, 128, 256, 512, 1024]),
        ("8:1023:x2", [8, 16, 32, 64, 128, 256, 512]),
        ("4:20:x1.5", [4, 6, 9, 14, 20]),
        ("8:32:8", [8, 16, 24, 32]),
        ("5:5:1", [5]),
        ("1:8:x1.3", [1, 2, 3, 4, 5, 6, 8]),
    ],
)
def test_words_for_k(text: str, ks: list[int]) -> None:
    assert parse_ks(text) == ks


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8:64", "ranges with a step"),
        ("many", "must be whole numbers"),
        ("-3", "must be whole numbers"),
        ("8:64:x1", "a factor above 1"),
        ("8:64:0", "ranges with a step"),
        ("8:64:2.5", "ranges with a step"),
        ("64:8:8", "k: 64:8:8 holds no number of at least 1; write FIRST:LAST:STEP"),
        ("x.npy", "with spaces between and SOURCE before the option, not 'x.npy'"),
        ("0:8:x2", "holds no number of at least 1"),
        ("1:100000:1", "holds more than 1,000 numbers; write"),
        ("9" * 400 + ":1:8", "ranges with a step"),
        ("1:8:x" + "9" * 400, "ranges with a step"),
        ("9" * 5000, "must be whole numbers"),
    ],
)
def test_words_for_no_k(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_ks(text)


# Breaks when a K that was given twice is fitted twice, or the order is changed in silence.
def test_k_are_sorted_and_it_is_said() -> None:
    assert in_order("k", [8, 16]) == ([8, 16], [])
    assert in_order("k", [16, 8, 16]) == ([8, 16], ["--k: 1 given twice and sorted: 8 16"])
    assert in_order("seeds", [1, 0]) == ([0, 1], ["--seeds: sorted: 0 1"])


# Breaks when the folder of a fit gets another name once seeds are added.
def test_folders_have_the_names_of_their_fits() -> None:
    names = [each.name for each in variants_of([8, 12345], [3, 4], first_seed=4)]
    assert names == ["k-0008-seed-3", "k-0008", "k-12345-seed-3", "k-12345"]
    assert [str(each) for each in variants_of([1000], [3, 4], 3)] == ["k 1,000", "k 1,000, seed 4"]
