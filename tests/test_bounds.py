"""Bounds on the sizes of clusters: what a multiple means in rows, and what no clusters can meet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkm.bounds import Bounds, parse_size
from streamkm.config import FitConfig
from streamkm.errors import ConfigError
from tests.runs.helpers import cli


def bounds(n_rows: int, **settings: object) -> tuple[int, int]:
    found = Bounds.of(FitConfig(**settings), n_rows)  # type: ignore[arg-type]
    return found.least, found.most


@pytest.mark.parametrize(
    ("text", "value"), [("500", 500), ("1.2x", "1.2x"), ("-5", "-5"), ("²", "²")]
)
def test_rows_are_a_number_and_multiples_are_kept(text, value):
    assert parse_size(text) == value


# 1.1 * 50 in floats is 55.00000000000001, and 1.2 * 50 is 60 only by luck.
def test_multiples_are_exact_and_rounded_towards_the_mean():
    assert bounds(500, k=10, max_size="1.1x", min_size="0.7x") == (35, 55)
    assert bounds(10, k=3, max_size="1x") == (0, 4)
    assert bounds(10, k=3, min_size="1x") == (3, 10)
    assert bounds(10, k=3, max_size="1.3x", min_size="0.5x") == (2, 4)
    assert bounds(10, k=3, max_size=9, min_size=1) == (1, 9)


# Breaks when a bound in multiples of the mean can be one that no clusters meet.
@given(
    st.integers(1, 9), st.integers(1, 99), st.fractions(1, 3, max_denominator=20),
    st.fractions("1/20", 1, max_denominator=20),
)  # fmt: skip
def test_multiples_can_always_be_met(k, more, above, below):
    config = FitConfig(k=k, max_size=f"{float(above):.2f}x", min_size=f"{float(below):.2f}x")
    n_rows = k + more
    found = Bounds.of(config, n_rows)
    assert k * found.least <= n_rows <= k * found.most
    found.check(config, n_rows, "x")


@pytest.mark.parametrize("name", ["max_size", "min_size"])
@pytest.mark.parametrize("value", [0, -1, "0x", "x", "1.5", "2 x", 1.5, True, "1e3x", "nanx"])
def test_what_is_no_size_is_refused(name, value):
    with pytest.raises(ConfigError, match="rows of at least 1, or a multiple of the mean"):
        FitConfig(k=2, **{name: value})


WRONG = {
    "--max-size 0.5x": "--max-size 0.5x must be at least the mean size: clusters have it on "
    "average; give --max-size 1x",
    "--min-size 1.5x": "--min-size 1.5x must be at most the mean size: clusters have it on "
    "average; give --min-size 1x",
    "--max-size 19": "--max-size 19 lets 5 clusters hold 95 rows, {x} has 100; give at least "
    "--max-size 20, or more clusters",
    "--min-size 21": "--min-size 21 asks for 105 rows in 5 clusters, {x} has 100; give at most "
    "--min-size 20, or fewer clusters",
    "--max-size 22 --min-size 30": "--min-size 30 asks for 150 rows in 5 clusters, {x} has 100; "
    "give at most --min-size 20, or fewer clusters",
    "--max-size 0": "--max-size must be a whole number of rows of at least 1, or a multiple of "
    "the mean such as 1.5x, not 0",
    "--max-size 2x --algorithm tree": "--max-size 2x needs the distance of a row to every "
    "cluster, which --algorithm tree does not take; choose --algorithm minibatch",
    "--max-size 2x --precision fast": "--max-size 2x cannot be promised with --precision fast; "
    "leave one of them out",
}


# Each is one line and status 2, before a row is read.
@pytest.mark.parametrize("words", WRONG)
def test_bounds_that_cannot_be_met_are_refused(words, tmp_path, capsys):
    x = tmp_path / "x.npy"
    np.save(x, np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32))
    assert cli("fit", x, "--k", 5, "--out", tmp_path / "run", *words.split()) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(WRONG[words].format(x=x)), error
    assert not (tmp_path / "run").exists()


# Only the first pass tells how many rows there are.
def test_rows_that_are_dropped_may_leave_too_few(tmp_path, capsys):
    x = tmp_path / "x.npy"
    rows = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    rows[::4] = np.nan
    np.save(x, rows)
    words = ("--k", 5, "--nan", "drop", "--min-size", 18, "--out", tmp_path / "run")
    assert cli("fit", x, *words) == 2
    assert "--min-size 18 asks for 90 rows in 5 clusters" in capsys.readouterr().err
