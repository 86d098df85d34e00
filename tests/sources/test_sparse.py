"""CSR matrices in memory."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from streamkm.errors import ReadError, SourceError
from streamkm.sources import open_source
from streamkm.sources import sparse as module
from tests.sources.contract import Case, SourceContract, numbers, read, same_bytes


def holed(shape: tuple[int, int], dtype: str = "float32") -> np.ndarray:
    """Numbers of which four of five are 0, and the rows 3 to 6 entirely."""
    array = numbers(shape, dtype)
    array[np.random.default_rng(7).random(shape) < 0.8] = 0
    array[3:7] = 0
    return array


class TestCsr(SourceContract):
    @pytest.fixture(params=["float32", "float64", "int8", "uint16", "int64"])
    def case(self, request) -> Case:
        array = holed((203, 17), request.param)
        held = [array]
        return Case(
            array=array,
            dtype=request.param,
            store=lambda changed: held.__setitem__(0, changed),
            open=lambda: open_source(scipy.sparse.csr_array(held[0])),
        )


class TestCsrInSmallPieces(SourceContract):
    """Pieces that end in the middle of rows."""

    @pytest.fixture
    def case(self, monkeypatch) -> Case:
        monkeypatch.setattr(module, "PIECE_ENTRIES", 3)
        monkeypatch.setattr(module, "BLOCK_BYTES", 700)
        array = holed((103, 17))
        held = [array]
        return Case(
            array=array,
            dtype="float32",
            store=lambda changed: held.__setitem__(0, changed),
            open=lambda: open_source(scipy.sparse.csr_matrix(held[0])),
        )


# Breaks when another format of scipy is read as if its arrays were CSR's.
@pytest.mark.parametrize("kind", ["csc", "coo", "lil", "dok", "bsr", "dia"])
def test_other_formats_of_scipy_become_csr(kind: str) -> None:
    array = holed((20, 6))
    source = open_source(scipy.sparse.coo_array(array).asformat(kind))
    assert same_bytes(read(source, 0, 20), array)


# Breaks when the last of two entries of one place wins, or order within a row is trusted.
@pytest.mark.parametrize("piece", [2, 1 << 18])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_repeated_and_unsorted_entries_are_summed_as_scipy_does(
    monkeypatch, piece: int, dtype: str
) -> None:
    monkeypatch.setattr(module, "PIECE_ENTRIES", piece)
    data = np.array([1e8, 1, -1e8, 4, 5] if dtype == "float32" else [100, 100, 3, 4, 5], dtype)
    matrix = scipy.sparse.csr_matrix((data, [2, 2, 2, 1, 0], [0, 3, 3, 5]), shape=(3, 4))
    assert same_bytes(read(open_source(matrix), 0, 3), matrix.toarray())
    assert matrix.nnz == 5  # the caller's matrix is not changed


@pytest.mark.parametrize(
    ("what", "place", "value", "says"),
    [
        ("indices", 3, 4, "row 2 has an entry in column 4, columns are 0 to 3"),
        ("indices", 0, -1, "row 0 has an entry in column -1"),
        ("indptr", 2, 2, r"row 1 has the entries 3:2 of 5; indptr must.*never fall"),
        ("indptr", 3, 6, r"row 2 has the entries 3:6 of 5"),
        ("indptr", 0, 1, r"row 0 has the entries 1:3.*begin at 0"),
        ("indptr", 0, -1, r"row 0 has the entries -1:3.*begin at 0"),
    ],
)
def test_broken_entries_are_refused_with_their_row(
    what: str, place: int, value: int, says: str
) -> None:
    matrix = scipy.sparse.csr_matrix(
        (np.ones(5, np.float32), [2, 1, 0, 1, 0], [0, 3, 3, 5]), shape=(3, 4)
    )
    getattr(matrix, what)[place] = value
    with pytest.raises(ReadError, match=says):
        read(open_source(matrix), 0, 3)


@pytest.mark.parametrize(
    ("matrix", "says"),
    [
        (scipy.sparse.csr_array(np.ones((2, 2), bool)), "real numbers.*bool"),
        (scipy.sparse.csr_array((0, 3)), "empty"),
        (scipy.sparse.csr_array((3, 0)), "empty"),
    ],
    ids=["bool", "no rows", "no features"],
)
def test_matrices_that_cannot_be_clustered_are_refused(matrix, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        open_source(matrix)


def test_a_matrix_without_entries_is_zeros() -> None:
    source = open_source(scipy.sparse.csr_array((5, 3), dtype=np.float32))
    assert same_bytes(read(source, 0, 5), np.zeros((5, 3), np.float32))
