"""CSR matrices in HDF5 files, as AnnData stores them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import scipy.sparse

from streamkm.errors import ReadError, SourceError
from streamkm.sources import open_source
from tests.sources.contract import Case, SourceContract, read, same_bytes
from tests.sources.test_sparse import holed

if TYPE_CHECKING:
    from pathlib import Path

LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "in one piece": ("f4", {}),
    "in one piece, float16": ("f2", {}),
    "chunks, gzip, shuffled": ("f8", {"chunks": (50,), "compression": "gzip", "shuffle": True}),
    "chunks, lzf, big-endian": (">i2", {"chunks": (7,), "compression": "lzf"}),
}


def write_csr(path: Path, array: np.ndarray, group: str = "X", **options: Any) -> None:
    """Write `array` as anndata does; another file is written over."""
    matrix = scipy.sparse.csr_array(array.astype("f8"))
    with h5py.File(path, "w") as file:
        node = file.create_group(group)
        node.attrs["encoding-type"] = "csr_matrix"
        node.attrs["encoding-version"] = "0.1.0"
        node.attrs["shape"] = array.shape
        node.create_dataset("data", data=matrix.data.astype(array.dtype), **options)
        node.create_dataset("indices", data=matrix.indices, **options)
        node.create_dataset("indptr", data=matrix.indptr, **options)


class TestCsrInHdf5(SourceContract):
    @pytest.fixture(params=LAYOUTS)
    def case(self, request, tmp_path: Path) -> Case:
        dtype, options = LAYOUTS[request.param]
        path = tmp_path / "x.h5ad"
        array = holed((203, 17), "f4").astype("f2") if dtype == "f2" else holed((203, 17), dtype)

        def store(changed: np.ndarray) -> None:
            write_csr(path, changed, **options)

        store(array)
        name = array.dtype.newbyteorder("=").name
        return Case(array, name, store, lambda: open_source(path), tmp_path)


class TestCsrInShards(SourceContract):
    """Files that are opened for each read."""

    @pytest.fixture
    def case(self, tmp_path: Path, monkeypatch) -> Case:
        monkeypatch.setattr("streamkm.sources.registry.MAX_OPEN_SHARDS", 1)
        array = holed((90, 7))

        def store(changed: np.ndarray) -> None:
            for i in range(3):
                write_csr(tmp_path / f"{i}.h5ad", changed[30 * i : 30 * i + 30], "layers/counts")

        store(array)
        return Case(
            array,
            "float32",
            store,
            lambda: open_source(tmp_path, dataset="layers/counts"),
            tmp_path,
        )


def change(path: Path, change: Any) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


# Breaks when an embedding is clustered for the X that the file is about.
@pytest.mark.parametrize("is_sparse", [True, False])
def test_x_of_an_h5ad_comes_before_other_datasets(tmp_path: Path, is_sparse: bool) -> None:
    path = tmp_path / "cells.h5ad"
    array = holed((20, 6))
    write_csr(path, array, "X" if is_sparse else "layers/counts")
    with h5py.File(path, "r+") as file:
        if not is_sparse:
            file["X"] = array
        file["obsm/X_umap"] = np.zeros((20, 2), "f4")
        file["obsm/X_pca"] = np.zeros((20, 3), "f4")
    assert same_bytes(read(open_source(path), 0, 20), array)
    assert "/X" in open_source(path).spec.layout
    assert open_source(path, dataset="obsm/X_umap").spec.n_features == 2


def test_one_of_several_must_be_chosen_where_there_is_no_x(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    write_csr(path, holed((20, 6)), "layers/counts")
    change(path, lambda file: file.create_dataset("obsm/X_umap", data=np.zeros((20, 2), "f4")))
    with pytest.raises(
        SourceError, match=r"by dataset; it holds layers/counts \(sparse\), obsm/X_umap"
    ):
        open_source(path)
    assert open_source(path, dataset="/layers/counts").spec.n_features == 6


@pytest.mark.parametrize("name", ["layers/count", "layers", "layers/counts/data"])
def test_a_name_that_is_none_gets_those_that_are(tmp_path: Path, name: str) -> None:
    write_csr(tmp_path / "cells.h5ad", holed((20, 6)), "layers/counts")
    with pytest.raises(SourceError, match=r"layers/counts \(sparse\)|two dimensions"):
        open_source(tmp_path / "cells.h5ad", dataset=name)


def test_the_only_sparse_matrix_of_an_hdf5_file_needs_no_name(tmp_path: Path) -> None:
    write_csr(tmp_path / "x.h5", holed((20, 6)), "counts")
    assert "CSR" in open_source(tmp_path / "x.h5").spec.layout


def test_attributes_of_old_files_are_known(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    array = holed((20, 6))
    array[:, 5] = 0
    write_csr(path, array)

    def age(file: h5py.File) -> None:
        attributes = file["X"].attrs
        del attributes["encoding-type"], attributes["shape"]
        attributes["h5sparse_format"], attributes["h5sparse_shape"] = b"csr", (20, 6)

    change(path, age)
    assert same_bytes(read(open_source(path), 0, 20), array)


# Breaks when features without an entry are left out in silence.
def test_a_missing_shape_is_said(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    array = holed((20, 6))
    array[:, 5], array[0, 4] = 0, 1
    write_csr(path, array)
    change(path, lambda file: [file["X"].attrs.pop(key) for key in ("shape", "encoding-type")])
    source = open_source(path)
    assert same_bytes(read(source, 0, 20), array[:, :5])
    assert "no attribute shape; it is read with 5 features" in source.notes()[0]


@pytest.mark.parametrize("attribute", ["encoding-type", "h5sparse_format"])
def test_csc_is_refused_with_a_remedy(tmp_path: Path, attribute: str) -> None:
    path = tmp_path / "cells.h5ad"
    write_csr(path, holed((20, 6)))

    def turn(file: h5py.File) -> None:
        del file["X"].attrs["encoding-type"]
        file["X"].attrs[attribute] = "csc_matrix" if attribute == "encoding-type" else "csc"

    change(path, turn)
    with pytest.raises(SourceError, match=r"X is stored as csc.*tocsr\(\)"):
        open_source(path)


def _replace(member: str, values: np.ndarray) -> Any:
    def apply(file: h5py.File) -> None:
        del file[f"X/{member}"]
        file[f"X/{member}"] = values

    return apply


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (_replace("indptr", np.arange(7)), "a number more than there are rows, it has 7 for 20"),
        (_replace("data", np.ones(4, "f4")), "indices and data must be of one length"),
        (_replace("indices", np.ones(3, "f4")), "indices of a CSR matrix has one dimension of int"),
        (_replace("data", np.ones((3, 2), "f4")), "data of a CSR matrix has one dimension"),
        (_replace("data", np.ones(3, "c8")), "real numbers"),
        (lambda file: file["X"].attrs.__setitem__("shape", (20, 0)), "empty"),
        (lambda file: file["X"].attrs.__setitem__("shape", "many"), "cannot be read as a CSR"),
        (
            lambda file: file.__setitem__("X/data", h5py.ExternalLink("other.h5", "data")),
            "cannot be read|lie in other files",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, broken: Any, says: str) -> None:
    path = tmp_path / "cells.h5ad"
    array = np.zeros((20, 6), "f4")
    array[0, :3] = 1
    write_csr(path, array)
    if "other" in says:
        change(path, lambda file: file.__delitem__("X/data"))
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["data"] = np.ones(3, "f4")
    change(path, broken)
    with pytest.raises(SourceError, match=says) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


def test_an_entry_beyond_the_columns_is_refused_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    array = np.zeros((20, 6), "f4")
    array[[2, 9], 3] = 1
    write_csr(path, array)
    change(path, lambda file: file["X/indices"].__setitem__(1, 6))
    with pytest.raises(ReadError, match=r"X: row 9 has an entry in column 6, columns are 0 to 5"):
        read(open_source(path), 4, 12)


def test_a_corrupt_chunk_is_an_error_of_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    write_csr(path, holed((203, 17)), chunks=(100,), compression="gzip")
    with h5py.File(path) as file:
        place = file["X/data"].id.get_chunk_info(1)
    with path.open("r+b") as raw:
        raw.seek(place.byte_offset)
        raw.write(bytes(place.size))
    with pytest.raises(ReadError, match=r"rows 0:203 cannot be read.*corrupt"):
        read(open_source(path), 0, 203)


# Breaks when a run goes on in a file that was written anew beneath it.
def test_a_file_that_was_replaced_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    write_csr(path, holed((20, 6)))
    source = open_source(path)
    path.unlink()
    write_csr(path, holed((21, 6)))
    with pytest.raises(ReadError, match="replaced or changed"):
        read(source, 0, 3)
