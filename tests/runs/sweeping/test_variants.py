"""Which fits a sweep has: K from words, in order, and the names of folders."""

from __future__ import annotations

import pytest

from streamkm.config import FitConfig
from streamkm.errors import ConfigError
from streamkm.runs.sweeping.variants import in_order, parse_ks, spaces_of, variants_of


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
    (space,), _ = spaces_of(FitConfig(k=1), ["zscore"], [])
    names = [each.name for each in variants_of([space], [8, 12345], [3, 4], first_seed=4)]
    assert names == ["k-0008-seed-3", "k-0008", "k-12345-seed-3", "k-12345"]
    fits = variants_of([space], [1000], [3, 4], 3)
    assert [str(each) for each in fits] == ["k 1,000", "k 1,000, seed 4"]


# Breaks when a fit has a setting of another, or its folder does not tell which it has.
def test_every_scale_with_every_metric() -> None:
    base = FitConfig(k=1, epochs=3)
    spaces, notes = spaces_of(base, ["l2", "none"], ["cosine", "euclidean"])
    fits = variants_of(spaces, [8], [0, 1], 0)
    assert [each.name for each in fits] == [
        f"k-0008-{space}{seed}"
        for space in ("none-euclidean", "none-cosine", "l2-euclidean", "l2-cosine")
        for seed in ("", "-seed-1")
    ]
    assert [(c.scale, c.metric) for c in (each.config(base) for each in fits[::2])] == [
        ("none", "euclidean"), ("none", "cosine"), ("l2", "euclidean"), ("l2", "cosine"),
    ]  # fmt: skip
    assert {each.config(base).epochs for each in fits} == {3}
    assert not notes
    assert str(fits[-1]) == "k 8 l2-cosine, seed 1"
    # A name tells no more than what differs.
    one, _ = spaces_of(base, ["none", "zscore"], [])
    assert [each.name for each in one] == ["none", "zscore"]


# Breaks when a pair that no fit can have ends the sweep, or a setting without a partner is dropped.
def test_pairs_that_contradict_each_other() -> None:
    base = FitConfig(k=1)
    spaces, notes = spaces_of(base, ["none", "zscore"], ["euclidean", "cosine"])
    assert [each.name for each in spaces] == ["none-euclidean", "none-cosine", "zscore-euclidean"]
    (note,) = notes
    assert note.startswith("scale zscore with metric cosine is left out")
    for scales, metrics, left in (
        (["none", "zscore"], ["cosine"], ("none", "cosine")),
        (["zscore"], ["euclidean", "cosine"], ("zscore", "euclidean")),
    ):
        (space,), (note,) = spaces_of(base, scales, metrics)
        assert (space.scale, space.metric, space.name) == (*left, "")
        assert note.startswith("scale zscore with metric cosine is left out")
    with pytest.raises(ConfigError, match="cosine compares directions"):
        spaces_of(base, ["zscore", "minmax"], ["cosine"])
    with pytest.raises(ConfigError, match="scale must be one of none, zscore, minmax, l2, not 'z'"):
        spaces_of(base, ["none", "z"], [])
