"""CSR matrices in Zarr groups, as AnnData stores them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.sparse
import zarr
from zarr.storage import MemoryStore

from streamkm.errors import ReadError, SourceError
from streamkm.sources import open_source
from streamkm.sources.within import would_take
from tests.sources.contract import Case, SourceContract, read, same_bytes
from tests.sources.test_sparse import holed

if TYPE_CHECKING:
    from pathlib import Path

LAYOUTS: dict[str, dict[str, Any]] = {
    "v3, chunks": {"zarr_format": 3, "chunks": 50},
    "v2, one chunk": {"zarr_format": 2, "chunks": 10_000},
    "v3, shards": {"zarr_format": 3, "chunks": 50, "shards": 200},
}


def fill_group(
    root: zarr.Group, array: np.ndarray, name: str, chunks: int = 50, shards: int | None = None
) -> zarr.Group:
    """Write `array` into a group as anndata does."""
    matrix = scipy.sparse.csr_array(array)
    group = root.create_group(name)
    group.attrs.update({"encoding-type": "csr_matrix", "shape": list(array.shape)})
    for member in ("data", "indices", "indptr"):
        values = getattr(matrix, member)
        made = group.create_array(
            member,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(chunks,),
            shards=None if shards is None else (shards,),
        )
        made[:] = values
    return group


def write_cells(path: Path, array: np.ndarray, zarr_format: Any = 3, **options: Any) -> None:
    shutil.rmtree(path, ignore_errors=True)
    root = zarr.create_group(path, zarr_format=zarr_format)
    root.attrs["encoding-type"] = "anndata"
    fill_group(root, array, "X", **options)
    root.create_array("obsm/X_umap", data=np.zeros((len(array), 2), "f4"))


class TestCsrInZarr(SourceContract):
    @pytest.fixture(params=LAYOUTS)
    def case(self, request, tmp_path: Path) -> Case:
        path = tmp_path / "cells.zarr"
        array = holed((203, 17))

        def store(changed: np.ndarray) -> None:
            write_cells(path, changed, **LAYOUTS[request.param])

        store(array)
        return Case(array, "float32", store, lambda: open_source(path / "X"), tmp_path)


class TestCsrInMemoryStore(SourceContract):
    @pytest.fixture
    def case(self) -> Case:
        held: list[zarr.Group] = []
        array = holed((103, 17), "int16")

        def store(changed: np.ndarray) -> None:
            held[:] = [fill_group(zarr.create_group(MemoryStore()), changed, "layers/counts")]

        store(array)
        return Case(array, "int16", store, lambda: open_source(held[0]))


# Breaks when the group is refused, or an embedding is taken for the X.
def test_the_x_of_anndata_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cells.zarr"
    array = holed((20, 6))
    write_cells(path, array)
    source = open_source(path)
    assert same_bytes(read(source, 0, 20), array)
    assert source.name == f"{path}/X"
    assert would_take(source, path / "X" / "labels.npy")
    assert not would_take(source, tmp_path / "labels.npy")


def test_csc_is_refused_with_a_remedy(tmp_path: Path) -> None:
    write_cells(tmp_path / "cells.zarr", holed((20, 6)))
    zarr.open_group(tmp_path / "cells.zarr" / "X").attrs["encoding-type"] = "csc_matrix"
    with pytest.raises(SourceError, match=r"X is stored as csc.*tocsr\(\)"):
        open_source(tmp_path / "cells.zarr")


def test_a_missing_shape_is_said(tmp_path: Path) -> None:
    path = tmp_path / "cells.zarr"
    array = holed((20, 6))
    array[:, 5], array[0, 4] = 0, 1
    write_cells(path, array)
    del zarr.open_group(path / "X").attrs["shape"]
    source = open_source(path)
    assert same_bytes(read(source, 0, 20), array[:, :5])
    assert "no attribute shape; it is read with 5 features" in source.notes()[0]


# Breaks when a chunk that lost its end reads as zeros.
def test_a_truncated_chunk_is_an_error_of_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "cells.zarr"
    write_cells(path, holed((203, 17)))
    (path / "X" / "data" / "c" / "1").write_bytes(b"")
    with pytest.raises(ReadError, match=r"rows 0:203 cannot be read.*truncated"):
        read(open_source(path), 0, 203)
