"""Arrays in ``.npz`` files, read in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from streamkm.errors import SourceError
from streamkm.sources import open_source
from tests.sources.contract import Case, SourceContract, numbers, read, same_bytes


class TestNpz(SourceContract):
    @pytest.fixture(params=["C", "Fortran", "big-endian", "of several"])
    def case(self, request, tmp_path: Path) -> Case:
        path = tmp_path / "x.npz"
        array = numbers((203, 5), ">f8" if request.param == "big-endian" else "f4")
        if request.param == "Fortran":
            array = np.asfortranarray(array)
        others: dict[str, Any] = {}
        options: dict[str, Any] = {}
        if request.param == "of several":
            others = {"names": np.array(["a"] * 7), "other": numbers((9, 2)), "y": np.arange(203)}
            options = {"dataset": "x"}

        def store(changed: np.ndarray) -> None:
            np.savez(path, **others, x=changed)

        store(array)
        return Case(array, array.dtype.name, store, lambda: open_source(path, **options), tmp_path)


def refused(path: Path, *says: str, **options: Any) -> None:
    with pytest.raises(SourceError) as caught:
        open_source(path, **options)
    assert "\n" not in str(caught.value)
    for part in (str(path), *says):
        assert part in str(caught.value)


def test_which_array(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, a=numbers((5, 2)), b=numbers((6, 3)), c=np.arange(4), d=np.array(["text"]))
    refused(path, "choose it by dataset; it holds a (5, 2), b (6, 3)")
    refused(path, "no array 'z'; it holds a (5, 2)", dataset="z")
    refused(path, "no array 'd'", dataset="d")
    refused(path, "at least two dimensions", dataset="c")
    assert same_bytes(read(open_source(path, dataset="b"), 0, 6), numbers((6, 3)))
    np.savez(path, c=np.arange(4))
    refused(path, "it holds c (4,)")


def test_an_array_without_others_needs_no_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", numbers((5, 2)), np.arange(5))
    assert open_source(tmp_path / "x.npz").spec.layout == "npz arr_0, C order"


def test_compressed(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=numbers((50, 2)))
    refused(tmp_path / "x.npz", "x is compressed", "numpy.savez instead of", ".npy")


# Breaks when three arrays of a sparse matrix are taken for rows.
def test_sparse(tmp_path: Path) -> None:
    scipy.sparse.save_npz(tmp_path / "x.npz", scipy.sparse.eye(5, format="csr"), compressed=False)
    assert np.array_equal(read(open_source(tmp_path / "x.npz"), 0, 5), np.eye(5))


def test_pickled_objects_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([[{}]], object))
    refused(tmp_path / "x.npz", "it holds none")


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=numbers((20, 3)), y=numbers((10,)))
    whole = path.read_bytes()
    for size in range(0, len(whole), 11):
        path.write_bytes(whole[:size])
        refused(path)
