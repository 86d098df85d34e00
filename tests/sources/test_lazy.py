"""Arrays that are not in memory, as objects of other libraries."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import dask
import dask.array
import h5py
import numpy as np
import pytest
import scipy.sparse
import xarray

from streamkm.errors import ReadError, SourceError
from streamkm.sources import is_lazy, open_source
from tests.sources.contract import Case, SourceContract, numbers, read, same_bytes
from tests.sources.test_hdf5_csr import write_csr
from tests.sources.test_sparse import holed

if TYPE_CHECKING:
    from pathlib import Path

FORMS: dict[str, tuple[tuple[int, ...], str, Any]] = {
    "one dask block": ((203, 5), "f4", lambda x: dask.array.from_array(x, chunks=(203, 5))),
    "dask blocks along both axes": (
        (203, 5), "f8", lambda x: dask.array.from_array(x, chunks=(50, 2))
    ),
    "dask, 3-D": ((7, 29, 5), "i2", lambda x: dask.array.from_array(x, chunks=(2, 10, 5))),
    "dask, irregular blocks": (
        (203, 5), "f4", lambda x: dask.array.from_array(x, chunks=((3, 100, 100), 5))
    ),
    "xarray on dask": (
        (203, 5), "f4", lambda x: xarray.DataArray(dask.array.from_array(x, chunks=(50, 5)))
    ),
}  # fmt: skip


class TestDask(SourceContract):
    @pytest.fixture(params=FORMS)
    def case(self, request) -> Case:
        shape, dtype, make = FORMS[request.param]
        array = numbers(shape, dtype)
        held = [array]
        return Case(
            array=array,
            dtype=array.dtype.name,
            store=lambda changed: held.__setitem__(0, changed),
            open=lambda: open_source(make(held[0])),
        )


class TestH5pyInWriting(SourceContract):
    """A dataset of a file that is open for writing: only the object has all of it."""

    @pytest.fixture
    def case(self, tmp_path: Path) -> Any:
        array = numbers((7, 29, 5), "f4")
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_dataset("x", data=array, chunks=(2, 10, 5))
            yield Case(
                array=array,
                dtype="float32",
                store=lambda changed: file["x"].__setitem__(..., changed),
                open=lambda: open_source(file["x"]),
            )


class TestXarrayFile(SourceContract):
    @pytest.fixture
    def case(self, tmp_path: Path) -> Case:
        path = tmp_path / "x.nc"
        array = numbers((103, 5), "f4")

        def store(changed: np.ndarray) -> None:
            path.unlink(missing_ok=True)
            xarray.Dataset({"x": (("time", "band"), changed)}).to_netcdf(path, engine="scipy")

        store(array)
        return Case(
            array=array,
            dtype="float32",
            store=store,
            open=lambda: open_source(xarray.open_dataset(path, engine="scipy", cache=False)["x"]),
        )


# Breaks when the object is read by slices where its file can be read past the library.
def test_a_dataset_of_a_file_is_that_file(tmp_path: Path) -> None:
    array = numbers((203, 5))
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["a/x"] = array
    with h5py.File(path) as file:
        source = open_source(file["a/x"])
        assert same_bytes(read(source, 0, 203), array)
        by_path = open_source(path, dataset="a/x")
        assert (source.spec, source.fingerprint()) == (by_path.spec, by_path.fingerprint())


# Breaks when marks of no data are known of files, but not of the objects that lie in them.
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_marks_of_no_data_are_heeded(tmp_path: Path, mode: str) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.array([[1, 2], [-9, 3]], "f4")
        file["x"].attrs["_FillValue"] = -9
    with h5py.File(tmp_path / "x.h5", mode) as file:
        assert "marks -9 as no data" in " ".join(open_source(file["x"]).notes())
        for options in ({"fill_is_nan": True}, {"nodata": (-9,)}):
            assert np.isnan(read(open_source(file["x"], **options), 0, 2)).sum() == 1


def test_a_dataset_in_memory_is_read_by_slices() -> None:
    array = numbers((20, 5))
    with h5py.File("nowhere.h5", "w", driver="core", backing_store=False) as file:
        file["x"] = array
        assert same_bytes(read(open_source(file["x"]), 0, 20), array)


def test_a_sparse_group_of_h5py_is_a_matrix(tmp_path: Path) -> None:
    array = holed((20, 6))
    write_csr(tmp_path / "x.h5ad", array)
    with h5py.File(tmp_path / "x.h5ad") as file:
        backed = type("CSRDataset", (), {"__module__": "anndata.abc", "group": file["X"]})()
        assert same_bytes(read(open_source(file["X"]), 0, 20), array)
        assert same_bytes(read(open_source(backed), 0, 20), array)
    with h5py.File(tmp_path / "x.h5ad", "r+") as file, pytest.raises(SourceError, match="mode 'r'"):
        open_source(file["X"])


def _stranger(module: str, name: str, **attributes: Any) -> Any:
    return type(name, (), {"__module__": module, **attributes})()


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (_stranger("polars.lazyframe.frame", "LazyFrame"), r"collect\(\).*sink_parquet"),
        (_stranger("dask.dataframe", "DataFrame"), "to_parquet"),
        (_stranger("anndata._core.anndata", "AnnData"), r"adata\.X"),
        (_stranger("netCDF4._netCDF4", "Variable"), "path of its file"),
        (_stranger("tables.group", "Group"), "no array"),
        (xarray.Dataset({"x": ("t", [1.0])}), r"transpose\(\.\.\., 'band'\)"),
        (xarray.DataArray(dask.array.ones((2, 3, 4))), r"two dimensions.*dim_2.*stack"),
        (dask.array.ones((5,)), "two dimensions"),
        (dask.array.ones((5, 2), dtype=bool), "real numbers"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_read_by_rows_is_refused_with_another_way(array: Any, says: str) -> None:
    assert is_lazy(array)
    with pytest.raises(SourceError, match=says):
        open_source(array)


def test_unknown_extents_are_refused() -> None:
    array = dask.array.ones((50, 2), chunks=(10, 2))
    with pytest.raises(SourceError, match=r"compute_chunk_sizes\(\)"):
        open_source(array[array[:, 0] > 0])


def test_an_object_of_a_closed_file_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = file.create_dataset("x", (3, 2), "f4")
    with pytest.raises(SourceError, match="closed file"):
        open_source(dataset)


def test_a_graph_that_fails_is_a_read_error_of_its_rows() -> None:
    def fail(block: np.ndarray) -> np.ndarray:
        raise RuntimeError("the disk is on fire")

    array = dask.array.ones((50, 2), chunks=(10, 2)).map_blocks(fail, dtype="f8")
    with pytest.raises(ReadError, match="rows 10:20 cannot be read: RuntimeError: the disk is on"):
        read(open_source(array), 10, 20)


def test_frames_and_arrays_in_memory_are_not_lazy() -> None:
    assert not is_lazy(xarray.DataArray(np.ones((3, 2))))
    assert not is_lazy(_stranger("polars.dataframe.frame", "DataFrame"))
    assert not is_lazy(np.ones((3, 2)))


GROWTH = """
import sys
from pathlib import Path
import h5py, dask.array
from streamkm import MiniBatchKMeans
file = h5py.File(sys.argv[1])
MiniBatchKMeans(4, random_state=0).fit(file["x"][:5000])
def largest():
    # Not of getrusage: there a process begins with the largest of the one that started it.
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
before = largest()
for x in file["x"], dask.array.from_array(file["x"], chunks=(10_000, 64)):
    MiniBatchKMeans(2, init="random", random_state=0, max_host_memory="180MiB").fit(x)
    print((largest() - before) >> 10)
"""


# Breaks when a lazy array is loaded as a whole, of h5py first and then of dask: 305 MiB.
def test_fits_of_lazy_arrays_stay_within_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        x = file.create_dataset("x", (1_250_000, 64), "f4", chunks=(10_000, 64))
        for start in range(0, len(x), 50_000):
            x[start : start + 50_000] = np.arange(64, dtype="f4") + np.float32(start)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GROWTH, str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert max(map(int, done.stdout.split())) < 230, done.stdout


# Breaks when what a block masks is clustered as the number behind the mask.
def test_masked_blocks_are_nan_or_refused() -> None:
    array = numbers((40, 3))
    masked = np.ma.masked_greater(array, 1)
    source = open_source(dask.array.from_array(masked, chunks=(10, 3)))
    np.testing.assert_array_equal(read(source, 0, 40), masked.filled(np.nan))
    whole = np.ma.masked_equal(np.arange(12).reshape(4, 3), 5)
    source = open_source(dask.array.from_array(whole, chunks=(2, 3)))
    with pytest.raises(ReadError, match=r"int64 has no NaN.*astype\(float\)"):
        read(source, 0, 4)
    wide = open_source(dask.array.from_array(whole, chunks=(2, 3)).astype(float))
    wanted = np.ma.filled(whole.astype(float), np.nan)
    np.testing.assert_array_equal(read(wide, 0, 4), wanted)


def test_blocks_of_sparse_matrices_are_made_dense() -> None:
    array = holed((40, 3))
    blocks = dask.array.from_array(array, chunks=(10, 3)).map_blocks(scipy.sparse.csr_matrix)
    assert same_bytes(read(open_source(blocks), 0, 40), array)
