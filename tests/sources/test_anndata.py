"""X and layers of AnnData have the names of ``var``, and are matched by them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import scipy.sparse
import zarr

from streamkm import KMeans, load_run
from streamkm.cli import main
from streamkm.errors import SourceError
from streamkm.sources import open_source
from tests.sources.contract import Case, SourceContract, numbers, read

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

GENES = ("Actb", "Cd4", "Gapdh", "Xist")


def fill(root: Any, array: np.ndarray, genes: Sequence[str], *, sparse: bool) -> None:
    """Write X, a layer and ``var`` into a group of h5py or zarr, as anndata does."""
    is_zarr = isinstance(root, zarr.Group)
    root.attrs["encoding-type"] = "anndata"

    def put(group: Any, name: str, data: np.ndarray) -> None:
        (group.create_array if is_zarr else group.create_dataset)(name, data=data)

    for member in ("X", "layers/counts"):
        if sparse:
            matrix, node = scipy.sparse.csr_array(array), root.create_group(member)
            node.attrs.update({"encoding-type": "csr_matrix", "shape": list(array.shape)})
            for part in ("data", "indices", "indptr"):
                put(node, part, getattr(matrix, part))
        else:
            put(root, member, array)
    var = root.create_group("var")
    var.attrs["_index"] = "gene"
    if is_zarr:
        var.create_array("gene", shape=(len(genes),), dtype=str)[:] = np.array(genes, object)
    else:
        var.create_dataset("gene", data=list(genes), dtype=h5py.string_dtype())


def write(path: Path, array: np.ndarray, genes: Sequence[str], *, sparse: bool = False) -> Path:
    if path.suffix == ".zarr":
        fill(zarr.open_group(path, mode="w", zarr_format=2), array, genes, sparse=sparse)
    else:
        with h5py.File(path, "w") as file:
            fill(file, array, genes, sparse=sparse)
    return path


class TestVarSource(SourceContract):
    @pytest.fixture
    def case(self, tmp_path: Path) -> Case:
        rows, path = numbers((203, 4)), tmp_path / "x.h5ad"

        def store(array: np.ndarray) -> None:
            write(path, array, GENES)

        store(rows)
        return Case(rows, "float32", store, lambda: open_source(path), tmp_path)


# Breaks when genes in another order are read by position.
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_genes_are_matched_by_name(suffix: str, sparse: bool, tmp_path: Path) -> None:
    x = np.random.default_rng(0).poisson(2, (60, 4)) * np.array([1.0, 9, 1, 5])
    order = [2, 0, 3, 1]
    turned = [GENES[i] for i in order]
    one = write(tmp_path / f"one{suffix}", x, GENES, sparse=sparse)
    two = write(tmp_path / f"two{suffix}", x[:, order], turned, sparse=sparse)
    for dataset in ("X", "layers/counts"):
        assert open_source(one, dataset=dataset).spec.feature_names == GENES
    np.testing.assert_array_equal(read(open_source([one, two]), 0, 120), np.tile(x, (2, 1)))
    fitted = KMeans(3, random_state=0, compute_labels=True, run_dir=tmp_path / "run").fit(one)
    assert fitted.feature_names_in_.tolist() == list(GENES)
    for estimator in (fitted, load_run(tmp_path / "run")):
        np.testing.assert_array_equal(estimator.predict(two), fitted.labels_)
    other = write(tmp_path / f"other{suffix}", x, (*GENES[:3], "Sry"), sparse=sparse)
    with pytest.raises(SourceError, match=r"only one of them has Xist, Sry|has Actb, .* Sry"):
        open_source([one, other])


# Breaks when the path of a matrix in a store, or an open array, loses the names beside it.
@pytest.mark.parametrize("sparse", [False, True])
def test_a_matrix_named_by_its_own_path_has_the_names(
    sparse: bool, tmp_path: Path, monkeypatch
) -> None:
    path = write(tmp_path / "x.zarr", numbers((20, 4)), GENES, sparse=sparse)
    fill(
        zarr.open_group(path / "raw", mode="w", zarr_format=2),
        numbers((20, 4)),
        GENES,
        sparse=sparse,
    )
    group = zarr.open_group(path, mode="r")
    for member in ("X", "layers/counts", "raw/X"):
        places = (path / member, group[member], zarr.open(path / member, mode="r"))
        for place in places:
            assert open_source(place).spec.feature_names == GENES, place
        named = open_source(path, dataset=member)
        assert open_source(path / member).fingerprint() == named.fingerprint()
        folder, _, last = member.rpartition("/")
        assert open_source(path / folder, dataset=last).spec.feature_names == GENES
        monkeypatch.chdir(path / folder)
        assert open_source(last).spec.feature_names == GENES


def test_an_array_called_x_without_anndata_has_no_names(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "X", data=numbers((20, 4)))
    assert open_source(tmp_path / "X").spec.feature_names == ()
    inner = zarr.create_group({}).create_array("layers/X", data=numbers((20, 4)))
    assert open_source(inner).spec.feature_names == ()


def test_a_name_that_is_there_twice_names_nothing(tmp_path: Path) -> None:
    for name in ("x.h5ad", "x.zarr"):
        path = write(tmp_path / name, numbers((20, 4)), ("a", "b", "a", "c"))
        for location in (path, path / "X") if name == "x.zarr" else (path,):
            source = open_source(location)
            assert source.spec.feature_names == ()
            noted = [note for note in source.notes() if "index of var has a more than" in note]
            assert len(noted) == 1


# Breaks when genes go by position where one side says which is which.
def test_a_name_that_is_there_twice_meets_no_names(tmp_path: Path, capsys) -> None:
    run, folder = str(tmp_path / "run"), tmp_path / "shards"
    folder.mkdir()
    named = write(tmp_path / "named.h5ad", numbers((20, 4)), ("a", "b", "d", "c"))
    assert main(["fit", str(named), "--k", "2", "--out", run]) == 0
    for name in ("x", "y"):
        write(folder / f"{name}.h5ad", numbers((20, 4)), ("a", "b", "a", "c"))
    for location in (folder / "x.h5ad", folder):
        assert main(["predict", run, str(location), "--labels", str(tmp_path / "x.npy")]) == 2
        assert "has a more than once; make them unique" in capsys.readouterr().err
    with pytest.raises(SourceError, match="must be unique where they are matched"):
        open_source([named, folder / "x.h5ad"])
    # Without names on either side features are matched by position, as a note says.
    assert open_source(folder).spec.n_rows == 40


@pytest.mark.parametrize("index", [None, "absent"])
def test_var_without_an_index_names_nothing(index: str | None, tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5ad", numbers((20, 4)), GENES)
    with h5py.File(path, "r+") as file:
        del file["var"].attrs["_index"]
        if index is not None:
            file["var"].attrs["_index"] = index
    assert open_source(path).spec.feature_names == ()


def test_an_embedding_has_no_genes(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5ad", numbers((20, 4)), GENES)
    with h5py.File(path, "r+") as file:
        file["obsm/X_pca"] = numbers((20, 4))
    assert open_source(path, dataset="obsm/X_pca").spec.feature_names == ()
