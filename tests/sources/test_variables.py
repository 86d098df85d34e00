"""Several arrays of a group as features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
import zarr

from streamkm.cli import main
from streamkm.errors import SourceError
from streamkm.sources import open_source
from streamkm.sources.base import Grid
from tests.sources.contract import Case, SourceContract, numbers, read, same_bytes

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("red", "green", "nir")


class TestZarrVariables(SourceContract):
    @pytest.fixture
    def case(self, tmp_path: Path) -> Case:
        rows = numbers((11 * 13, 3), "i2")
        path = tmp_path / "x.zarr"

        def store(changed: np.ndarray) -> None:
            group = zarr.create_group(path, overwrite=True)
            for name, column in zip(NAMES, changed.T, strict=True):
                group.create_array(
                    name, data=column.reshape(11, 13), chunks=(4, 5), dimension_names=("y", "x")
                )

        store(rows)
        return Case(rows, "int16", store, lambda: open_source(path, variable=NAMES), path)


class TestHdf5Variables(SourceContract):
    @pytest.fixture(params=["in one piece", "chunks"])
    def case(self, request, tmp_path: Path) -> Case:
        rows = numbers((11 * 13, 3))
        path = tmp_path / "x.nc"
        options = {"chunks": (4, 5)} if request.param == "chunks" else {}

        def store(changed: np.ndarray) -> None:
            with h5py.File(path, "w") as file:
                for name, column in zip(NAMES, changed.T, strict=True):
                    file.create_dataset(f"sea/{name}", data=column.reshape(11, 13), **options)

        def opened():
            return open_source(path, dataset="sea", variable=NAMES)

        store(rows)
        return Case(rows, "float32", store, opened, path)


def test_types_are_promoted_exactly(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "x.zarr")
    columns = {"a": numbers((20,), "u1"), "b": numbers((20,), "i4"), "c": numbers((20,))}
    for name, column in columns.items():
        group.create_array(name, data=column)
    source = open_source(tmp_path / "x.zarr", variable=["a", "b", "c"])
    assert source.spec.dtype == "float64"
    assert source.spec.feature_names == ("a", "b", "c")
    wanted = np.stack([column.astype("f8") for column in columns.values()], axis=1)
    assert same_bytes(read(source, 0, 20), wanted)
    assert open_source(tmp_path / "x.zarr", variable=["a"]).spec.dtype == "uint8"


# Breaks when one variable's mark for no data is looked for in another.
def test_marks_and_scale_are_those_of_each_variable(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "x.zarr")
    values = np.arange(20, dtype="i2")
    group.create_array("a", data=values, attributes={"_FillValue": 3})
    group.create_array("b", data=values, attributes={"_FillValue": 5, "scale_factor": 2.0})
    source = open_source(
        tmp_path / "x.zarr", variable=["a", "b"], fill_is_nan=True, apply_scale=True
    )
    wanted = np.stack([values, 2 * values], axis=1).astype("f4")
    wanted[3, 0] = wanted[5, 1] = np.nan
    assert same_bytes(read(source, 0, 20), wanted)


def test_variables_of_several_features(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "x.zarr")
    a, b = numbers((4, 5, 6)), numbers((2, 5, 6))
    for name, values in (("a", a), ("b", b)):
        group.create_array(name, data=values, dimension_names=("band", "y", "x"))
    source = open_source(tmp_path / "x.zarr", variable=["a", "b"], feature_dim="band")
    wanted = np.concatenate((a.reshape(4, 30), b.reshape(2, 30))).T.copy()
    assert same_bytes(read(source, 0, 30), wanted)
    assert source.spec.feature_names == ("a[0]", "a[1]", "a[2]", "a[3]", "b[0]", "b[1]")
    assert source.spec.grid == Grid((5, 6), ("y", "x"), str(tmp_path / "x.zarr"))


@pytest.fixture
def group(tmp_path: Path) -> Path:
    made = zarr.create_group(tmp_path / "d.zarr")
    made.create_array("lat", data=np.arange(4.0))
    made.create_array("flags", data=np.zeros((4, 5), bool))
    made.create_array("red", data=np.zeros((4, 5), "f4"), dimension_names=("lat", "lon"))
    made.create_array("nir", data=np.zeros((4, 5), "f4"), dimension_names=("lon", "lat"))
    made.create_array("far/cube", data=np.zeros((4, 6), "i2"))
    return tmp_path / "d.zarr"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["red", "red"], "variable='red' is given twice"),
        (["red", "lat"], r"red and lat have the shape \(4, 5\) and \(4,\)"),
        (["red", "nir"], "red and nir have the axes lat, lon and lon, lat"),
        (["red", "flags"], "real numbers"),
        (["red", "far"], "is a Zarr group"),
    ],
)
def test_variables_that_do_not_go_together(group: Path, names: list[str], said: str) -> None:
    with pytest.raises(SourceError, match=said):
        open_source(group, variable=names)


# Breaks when a run takes the first variable of another order for its own first.
def test_features_are_matched_by_name(tmp_path: Path) -> None:
    made = zarr.create_group(tmp_path / "x.zarr")
    columns = {"a": numbers((20,)), "b": 9 + numbers((20, 1))[:, 0]}
    for name, column in columns.items():
        made.create_array(name, data=column)
    run, labels = tmp_path / "run", [tmp_path / "one.npy", tmp_path / "other.npy"]
    store = str(tmp_path / "x.zarr")
    fit = ["fit", store, "--variable", "a", "--variable", "b", "--k", "3", "--out", str(run)]
    assert main(fit) == 0
    for names, path in zip((("a", "b"), ("b", "a")), labels, strict=True):
        flags = [word for name in names for word in ("--variable", name)]
        assert main(["predict", str(run), store, *flags, "--labels", str(path)]) == 0
    assert same_bytes(*(np.load(path) for path in labels))
