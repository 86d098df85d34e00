"""Zarr stores in zip files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from zarr.storage import ZipStore

from streamkm.errors import SourceError
from streamkm.sources import open_source
from tests.sources.contract import Case, SourceContract, numbers, read, same_bytes


def write(path: Path, **arrays: np.ndarray) -> None:
    """A group of `arrays` in a zip file; of one without a name, an array."""
    path.unlink(missing_ok=True)
    store = ZipStore(path, mode="w")
    group = zarr.create_group(store)
    for name, array in arrays.items():
        group.create_array(name, data=array, chunks=(50, *array.shape[1:]))
    store.close()


class TestZipped(SourceContract):
    @pytest.fixture(params=["v3", "v2", "sharded", "in a group"])
    def case(self, request, tmp_path: Path) -> Case:
        path = tmp_path / "x.zarr.zip"
        array = numbers((203, 5))
        layouts: dict[str, dict[str, Any]] = {
            "v2": {"zarr_format": 2}, "sharded": {"shards": (100, 5)},
        }  # fmt: skip

        def store(changed: np.ndarray) -> None:
            if request.param == "in a group":
                write(path, rows=changed, times=np.arange(203))
                return
            path.unlink(missing_ok=True)
            zipped = ZipStore(path, mode="w")
            zarr.create_array(
                zipped, data=changed, chunks=(50, 5), **layouts.get(request.param, {})
            )
            zipped.close()

        store(array)
        return Case(array, "float32", store, lambda: open_source(path), tmp_path)


def test_which_array(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    write(path, a=numbers((60, 2)), b=numbers((70, 3)), c=np.arange(4))
    with pytest.raises(SourceError, match=r"choose it by dataset; it holds a \(60, 2\), b \(70"):
        open_source(path)
    with pytest.raises(SourceError, match="no array 'z'"):
        open_source(path, dataset="z")
    source = open_source(path, dataset="/b")
    assert same_bytes(read(source, 0, 70), numbers((70, 3)))
    assert source.notes() == []


# Breaks when a chunk that the zip lacks passes for data without a word.
def test_chunks_that_are_not_there_are_told(tmp_path: Path) -> None:
    store = ZipStore(tmp_path / "x.zip", mode="w")
    array = zarr.create_array(store, shape=(100, 2), chunks=(25, 2), dtype="f4")
    array[:50] = 1
    store.close()
    (note,) = open_source(tmp_path / "x.zip").notes()
    assert "2 of 4 chunks were never written" in note


def test_zip_of_other_things(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "text")
    with pytest.raises(SourceError, match="holds no Zarr array; unpack it"):
        open_source(tmp_path / "x.zip")
    (tmp_path / "x.zip").write_bytes(b"no zip")
    with pytest.raises(SourceError, match="cannot be opened as a zip file"):
        open_source(tmp_path / "x.zip")


# Breaks when a zip's attributes are noted but not honoured: its fill values were clustered.
@pytest.mark.parametrize("version", [2, 3])
def test_marks_and_scale(tmp_path: Path, version: Literal[2, 3]) -> None:
    stored = np.array([[1, -9], [3, 4]], "i2")
    marks: dict[str, Any] = {"_FillValue": -9, "scale_factor": 0.5, "add_offset": 1.0}
    store = ZipStore(tmp_path / "x.zip", mode="w")
    zarr.create_array(store, data=stored, attributes=marks, zarr_format=version)
    store.close()
    source = open_source(tmp_path / "x.zip", fill_is_nan=True, apply_scale=True)
    assert same_bytes(read(source, 0, 2), np.array([[1.5, np.nan], [2.5, 3]], "f4"))
    source = open_source(tmp_path / "x.zip", nodata=3)
    assert same_bytes(read(source, 0, 2), np.array([[1, -9], [np.nan, 4]], "f4"))


def test_axes_and_variables(tmp_path: Path) -> None:
    cube = numbers((3, 4, 5))
    store = ZipStore(tmp_path / "x.zip", mode="w")
    group = zarr.create_group(store)
    names = ("band", "y", "x")
    group.create_array("cube", data=cube, chunks=(3, 2, 5), dimension_names=names)
    for name, band in zip("rgb", cube, strict=True):
        group.create_array(f"bands/{name}", data=band, chunks=(2, 5))
    store.close()
    rows = cube.reshape(3, 20).T.copy()
    source = open_source(tmp_path / "x.zip", dataset="cube", feature_dim="band")
    assert same_bytes(read(source, 0, 20), rows)
    for given in (
        {"dataset": "bands", "variable": ["b", "r"]},
        {"variable": ["bands/b", "bands/r"]},
    ):
        assert same_bytes(read(open_source(tmp_path / "x.zip", **given), 0, 20), rows[:, [2, 0]])
    with pytest.raises(SourceError, match="no array 'bands/z'"):
        open_source(tmp_path / "x.zip", dataset="bands", variable="z")
