"""Coordinates of HDF5 and netCDF files, for maps of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr

from streamkm.sinks.hdf5_coordinates import hdf5_coordinates
from tests.runs.helpers import cli

NY, NX = 6, 10
LAT = np.random.default_rng(1).normal(size=(NY, NX))
LAT[0, 0] = np.nan
SITES = [f"line {y}" for y in range(NY)]


def cube(path: Path) -> Path:
    """A cube of bands with coordinates of every kind; ``a`` and ``b`` are two of its bands."""
    values = np.random.default_rng(0).normal(size=(NY, NX, 3)).astype("f4")
    values += 20.0 * (np.arange(NX) // 5)[:, None]
    with h5py.File(path, "w") as file:
        file["y"], file["x"], file["band"] = np.linspace(50, 49, NY), np.arange(NX), [1, 2, 3]
        file["lat"] = np.where(np.isnan(LAT), -999, LAT)
        file["lat"].attrs["_FillValue"] = [-999.0]
        file.create_dataset("site", data=SITES, dtype=h5py.string_dtype())
        file["time"] = 19844
        file["time"].attrs["units"] = "days since 1970-01-01"
        file["spatial_ref"] = 0
        file["spatial_ref"].attrs["crs_wkt"] = np.bytes_("a projection")
        file["data"], file["a"], file["b"] = values, values[:, :, 0], values[:, :, 1]
        for name in ("y", "x", "band"):
            file[name].make_scale(name)
        for name in ("data", "a", "b", "lat", "site"):
            for dim, scale in zip(file[name].dims, ("y", "x", "band"), strict=False):
                dim.attach_scale(file[scale])
        for name in ("data", "a", "b"):
            file[name].attrs["coordinates"] = "lat site time"
            file[name].attrs["grid_mapping"] = "spatial_ref"
    return path


# Breaks when labels of a netCDF file are drawn without coordinates.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("chosen", [["--dataset", "data"], ["--variable", "a", "--variable", "b"]])
def test_labels_are_a_map_with_the_coordinates_of_the_file(
    chosen: list[str], version: Literal[2, 3], tmp_path: Path
) -> None:
    source, run = cube(tmp_path / "cube.nc"), tmp_path / "run"
    assert cli("fit", source, *chosen, "--k", 2, "--out", run) == 0
    if version == 2:
        zarr.create_group(tmp_path / "map.zarr", zarr_format=2)
    for name in ("first", "second"):  # The second is compared with what the first has brought.
        labels = tmp_path / "map.zarr" / name
        assert cli("predict", run, source, *chosen, "--labels", labels) == 0
        assert zarr.open_array(labels).metadata.zarr_format == version
    with xr.open_zarr(tmp_path / "map.zarr", chunks=None, consolidated=False) as found:
        assert found["first"].dims == ("y", "x")
        assert {*found["first"].coords} == {"y", "x", "lat", "site", "time"}
        np.testing.assert_array_equal(found["lat"].values, LAT)
        assert found["y"].values.tolist() == np.linspace(50, 49, NY).tolist()
        # 0 is no missing value, in version 2 either.
        assert found["x"].values.tolist() == list(range(NX))
        assert found["site"].values.tolist() == SITES
        assert found["time"].values == np.datetime64("2024-05-01")
        assert found["second"].attrs["grid_mapping"] == "spatial_ref"
        assert found["spatial_ref"].attrs["crs_wkt"] == "a projection"


# Breaks when labels go to the pixels of another place.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("version", [2, 3])
def test_a_store_with_other_coordinates_is_refused(version: int, tmp_path: Path, capsys) -> None:
    source, run = cube(tmp_path / "cube.nc"), tmp_path / "run"
    chosen = ("--dataset", "data")
    assert cli("fit", source, *chosen, "--k", 2, "--out", run) == 0
    for name, shift in (("same", 0), ("other", 100)):
        y = np.linspace(50, 49, NY) + shift
        there = xr.Dataset({"there": (("y", "x"), np.zeros((NY, NX)))}, {"y": y})
        there.to_zarr(tmp_path / f"{name}.zarr", zarr_format=version)
    predict = ("predict", run, source, *chosen, "--labels")
    assert cli(*predict, tmp_path / "same.zarr" / "c") == 0
    assert cli(*predict, tmp_path / "other.zarr" / "c") == 2
    assert "other.zarr differs from the coordinate y of the source" in capsys.readouterr().err
    assert not (tmp_path / "other.zarr" / "c").exists()


def test_a_dataset_without_scales_has_none(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["group/data"] = np.zeros((3, 4))
        file["y"] = np.arange(3)
        file["group/data"].dims[0].label = "y"
    assert hdf5_coordinates(tmp_path / "x.h5" / "group" / "data") is None
    assert hdf5_coordinates(tmp_path / "absent" / "data") is None


# A dimension of netCDF may have no values, and lie in a group above.
def test_dimensions_of_a_group_above(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["group/data"] = np.zeros((3, 4))
        for name, size, about in (
            ("y", 3, "y"),
            ("x", 4, "This is a netCDF dimension but not a netCDF variable.         4"),
        ):
            file[name] = np.arange(size, dtype=">i4")
            file[name].make_scale(about)
        file["y"].attrs.update({"units": "m", "valid": np.array([1, 2])})
        for axis, name in enumerate("yx"):
            file["group/data"].dims[axis].attach_scale(file[name])
    found = hdf5_coordinates(tmp_path / "x.h5" / "group" / "data")
    assert found is not None
    arrays = {name: array for name, array in found.arrays() if array.ndim}
    assert [*arrays] == ["y"]
    assert np.asarray(arrays["y"][...]).tolist() == [0, 1, 2]
    assert arrays["y"].attrs.asdict() == {"units": "m", "valid": [1, 2]}
