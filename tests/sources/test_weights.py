"""Weights of rows: where they may lie, and what is refused before a run begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zarr

from streamkm.errors import SourceError
from streamkm.sources.base import RowRange
from streamkm.sources.weights import MAX_HEAVY, SCAN_ROWS, open_weights

N = 1000


@pytest.fixture
def numbers(rng) -> np.ndarray:
    drawn: np.ndarray = np.round(rng.uniform(0, 50, N))
    return drawn


def saved(kind: str, numbers: np.ndarray, tmp_path) -> Any:
    if kind == "array":
        return numbers
    if kind == "list":
        return numbers.tolist()
    if kind.endswith("zarr"):
        shaped = numbers[:, None] if kind.startswith("column") else numbers
        zarr.create_array(tmp_path / "w.zarr", data=shaped, chunks=(300, 1)[: shaped.ndim])
        return tmp_path / "w.zarr"
    order = {"big-endian.npy": ">f8", "bytes.npy": "u1", "half.npy": "f2"}.get(kind, "f8")
    shaped = numbers[:, None] if kind == "column.npy" else numbers
    np.save(tmp_path / "w.npy", shaped.astype(order))
    return str(tmp_path / "w.npy")


KINDS = ["array", "list", "one.npy", "column.npy", "big-endian.npy", "bytes.npy", "half.npy"]
KINDS += ["one.zarr", "column.zarr"]


# Breaks when a dtype, a byte order or a range is read otherwise than NumPy would.
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_read_by_range_as_float64(kind, numbers, tmp_path) -> None:
    weights = open_weights(saved(kind, numbers, tmp_path), N)
    assert (weights.n_rows, weights.n_positive) == (N, int(np.count_nonzero(numbers)))
    assert weights.resident_bytes == (8 * N if kind.endswith("zarr") else 0)
    for rows in (RowRange(0, N), RowRange(999, N), RowRange(250, 613)):
        out = np.full(len(rows), -1.0)
        weights.read(rows, out)
        np.testing.assert_array_equal(out, numbers[rows.start : rows.stop])
    weights.close()


# Breaks when the digest is of the file and not of the numbers: a copy may be resumed with.
def test_equal_numbers_have_one_fingerprint_and_others_another(numbers, tmp_path) -> None:
    prints = set()
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        prints.add(open_weights(saved(kind, numbers, tmp_path / kind), N).fingerprint)
    assert len(prints) == 1
    numbers[17] += 1
    assert open_weights(numbers, N).fingerprint not in prints


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ((3, -0.5), "that of row 3 is -0.5"),
        ((SCAN_ROWS + 5, np.nan), f"that of row {SCAN_ROWS + 5} is nan"),
        ((7, np.inf), "that of row 7 is inf"),
        ((slice(None), 0), "at least one weight must be positive"),
    ],
)
def test_weights_that_are_none(change, reason) -> None:
    numbers = np.ones(SCAN_ROWS + 10)
    numbers[change[0]] = change[1]
    with pytest.raises(SourceError, match=reason):
        open_weights(numbers, len(numbers))


@pytest.mark.parametrize("shape", [(N - 1,), (N + 1,), (N, 2), (2, N // 2), ()])
def test_one_weight_is_needed_for_each_row(shape, tmp_path) -> None:
    with pytest.raises(SourceError, match="one weight is needed for each"):
        open_weights(np.ones(shape), N)
    if shape:
        np.save(tmp_path / "w.npy", np.ones(shape))
        zarr.create_array(tmp_path / "w.zarr", data=np.ones(shape), chunks=shape)
        for name in ("w.npy", "w.zarr"):
            with pytest.raises(SourceError, match=f"{name}: one weight is needed for each"):
                open_weights(tmp_path / name, N)


@pytest.mark.parametrize("content", [["a"] * 3, [1j, 2, 3], [None, 1, 2], [[1], [1, 2], []]])
def test_weights_that_are_no_numbers(content) -> None:
    with pytest.raises(ValueError):  # NumPy's own for the ragged one.
        open_weights(content, 3)


def test_a_location_that_holds_none(tmp_path) -> None:
    (tmp_path / "w.txt").write_text("1\n2\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY")
    for name in ("nope.npy", "w.txt", "folder", "torn.npy"):
        with pytest.raises(SourceError, match=name):
            open_weights(tmp_path / name, 2)


# Breaks when the heaviest rows of one part of the scan push out those of another, or when of
# equal rows some are taken and others not.
@pytest.mark.parametrize("seed", range(3))
def test_heavy_rows(seed) -> None:
    rng = np.random.default_rng(seed)
    drawn = np.ceil(rng.exponential(10, size=2 * SCAN_ROWS + 77))
    weights = open_weights(drawn, len(drawn))
    assert weights.total == drawn.sum()
    for share, n_most in ((5e-5, 10**6), (1e-5, 50), (1e-9, 10**6), (1e-9, MAX_HEAVY), (0.5, 9)):
        bound, rows = weights.heavy(share, n_most)
        assert bound >= share * drawn.sum()
        assert rows.tolist() == np.flatnonzero(drawn > bound).tolist()
        assert len(rows) <= min(n_most, MAX_HEAVY)
        # No lower bound would do, among the weights that there are.
        lower = drawn[drawn <= bound].max()
        too_many = np.count_nonzero(drawn >= lower) > min(n_most, MAX_HEAVY)
        assert too_many or lower <= share * drawn.sum()
    assert open_weights(np.ones(5), 5).heavy(0.1, 5)[1].tolist() == [0, 1, 2, 3, 4]
    assert open_weights(np.ones(5), 5).heavy(0.1, 4)[1].tolist() == []
