"""CSR matrices that scipy saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.sparse

from streamkm import MiniBatchKMeans
from streamkm.errors import MemoryBudgetError, ReadError, SourceError
from streamkm.sources import open_source
from tests.sources.contract import Case, SourceContract, read
from tests.sources.test_sparse import holed

if TYPE_CHECKING:
    from pathlib import Path


class TestNpz(SourceContract):
    @pytest.fixture(params=[(True, "f4"), (False, "f8"), (False, "i2")], ids=str)
    def case(self, request, tmp_path: Path) -> Case:
        compressed, dtype = request.param
        array = holed((203, 17), dtype)

        def store(changed: np.ndarray) -> None:
            matrix = scipy.sparse.csr_array(changed)
            scipy.sparse.save_npz(tmp_path / "x.npz", matrix, compressed=compressed)

        store(array)
        return Case(
            array, array.dtype.name, store, lambda: open_source(tmp_path / "x.npz"), tmp_path
        )


# Breaks when a compressed matrix is loaded beyond the budget, or before it is known.
def test_a_compressed_matrix_counts_in_the_memory_plan(tmp_path: Path) -> None:
    matrix = scipy.sparse.csr_array(np.ones((2000, 4000), np.float32))
    scipy.sparse.save_npz(tmp_path / "x.npz", matrix)
    with pytest.raises(MemoryBudgetError, match="of one reader"):
        MiniBatchKMeans(2, max_host_memory="64MiB").fit(tmp_path / "x.npz")
    source = open_source(tmp_path / "x.npz")
    assert source.spec.scratch_bytes > matrix.data.nbytes + matrix.indices.nbytes
    assert "compressed=False" in source.notes()[0]


def test_other_files_are_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    scipy.sparse.save_npz(path, scipy.sparse.csc_array(holed((20, 6))))
    with pytest.raises(SourceError, match=r"stored as csc.*tocsr\(\)"):
        open_source(path)
    np.savez(path, format=np.ones(2), shape=np.ones(2), data=np.ones(2))
    with pytest.raises(SourceError, match=r"holds format.npy, .*, but no CSR matrix"):
        open_source(path)
    path.write_bytes(b"no zip")
    with pytest.raises(SourceError, match=r"cannot be opened as \.npz"):
        open_source(path)


def test_a_damaged_file_is_a_read_error(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    scipy.sparse.save_npz(path, scipy.sparse.csr_array(holed((2000, 60))))
    source = open_source(path)
    raw = bytearray(path.read_bytes())
    at = raw.find(b"data.npy")
    raw[at + 200 : at + 3000] = bytes(2800)
    with path.open("r+b") as file:
        file.write(raw)
    with pytest.raises(ReadError):
        read(source, 0, 2000)
