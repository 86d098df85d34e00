"""Axes by name: cubes whose features are not the last axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, ZstdCodec

from streamkm.cli import main
from streamkm.errors import SourceError
from streamkm.sources import open_source
from streamkm.sources.axes import choose_axes
from streamkm.sources.base import Grid
from tests.sources.contract import Case, SourceContract, numbers, read, same_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Names of the stored axes in order, feature axes, and options of zarr.create_array.
CUBES: dict[str, tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]]] = {
    "bands first, zstd": (("band", "y", "x"), ("band",), {"chunks": (6, 4, 5)}),
    "bands first, uncompressed": (
        ("band", "y", "x"), ("band",), {"chunks": (6, 4, 13), "compressors": None},
    ),
    "bands first, blosc": (
        ("band", "y", "x"), ("band",), {"chunks": (6, 9, 5), "compressors": BloscCodec()},
    ),
    "bands chunked": (("band", "y", "x"), ("band",), {"chunks": (4, 4, 5)}),
    "bands in the middle": (("y", "band", "x"), ("band",), {"chunks": (4, 6, 5)}),
    "bands first, sharded": (
        ("band", "y", "x"), ("band",), {"chunks": (6, 2, 5), "shards": (6, 4, 10)},
    ),
    "bands first, big-endian, through zarr": (
        ("band", "y", "x"), ("band",),
        {"chunks": (6, 4, 5), "serializer": BytesCodec(endian="big"), "compressors": ZstdCodec()},
    ),
    "two axes, not in stored order": (
        ("band", "y", "time", "x"), ("time", "band"), {"chunks": (6, 4, 2, 5)},
    ),
    "one feature": (("y", "x"), (), {"chunks": (4, 5)}),
}  # fmt: skip
SIZES = {"band": 6, "y": 11, "x": 13, "time": 3}


def swapped(dims: tuple[str, ...], features: tuple[str, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """From rows to the stored axes."""
    order = [*(dim for dim in dims if dim not in features), *features]
    sizes = [SIZES[dim] for dim in order]
    return lambda rows: rows.reshape(sizes).transpose([order.index(dim) for dim in dims])


def rows_of(dims: tuple[str, ...], features: tuple[str, ...], dtype: str) -> np.ndarray:
    n_features = int(np.prod([SIZES[dim] for dim in features]))
    return numbers((int(np.prod([SIZES[d] for d in dims])) // n_features, n_features), dtype)


class TestZarrCubes(SourceContract):
    @pytest.fixture(params=CUBES)
    def case(self, request, tmp_path: Path) -> Case:
        dims, features, options = CUBES[request.param]
        path, cube = tmp_path / "x.zarr", swapped(dims, features)
        rows = rows_of(dims, features, "i2")

        def store(changed: np.ndarray) -> None:
            zarr.create_array(
                path, data=cube(changed), dimension_names=dims, overwrite=True, **options
            )

        def opened():
            if not features:
                return open_source(tmp_path, variable="x.zarr")
            return open_source(path, feature_dim=features)

        if not features:
            zarr.create_group(tmp_path)
        store(rows)
        return Case(rows, "int16", store, opened, path)


#: As above, with options of h5py.
DATASETS: dict[str, tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]]] = {
    "in one piece": (("band", "y", "x"), ("band",), {}),
    "chunks": (("band", "y", "x"), ("band",), {"chunks": (6, 4, 5), "compression": "gzip"}),
    "two axes": (("band", "y", "time", "x"), ("time", "band"), {"chunks": (6, 4, 2, 5)}),
}


class TestHdf5Cubes(SourceContract):
    @pytest.fixture(params=DATASETS)
    def case(self, request, tmp_path: Path) -> Case:
        dims, features, options = DATASETS[request.param]
        path, cube = tmp_path / "x.nc", swapped(dims, features)
        rows = rows_of(dims, features, "f4")

        def store(changed: np.ndarray) -> None:
            with h5py.File(path, "w") as file:
                made = file.create_dataset("x", data=cube(changed), **options)
                for axis, dim in zip(made.dims, dims, strict=True):
                    axis.label = dim

        store(rows)
        return Case(rows, "float32", store, lambda: open_source(path, feature_dim=features), path)


# Breaks when a cube with its bands first is read in another order than one with them last.
@pytest.mark.parametrize("options", [{}, {"compressors": None}, {"compressors": BloscCodec()}])
@pytest.mark.parametrize("columns", [30, 120], ids=["x chunked", "x whole"])
def test_same_centroids_as_bands_last(tmp_path: Path, options, columns: int) -> None:
    cube = np.random.default_rng(3).normal(size=(5, 90, 120)).astype("f4")
    zarr.create_array(
        tmp_path / "first.zarr", data=cube, chunks=(5, 16, columns),
        dimension_names=("band", "y", "x"), **options,
    )  # fmt: skip
    last = np.ascontiguousarray(cube.transpose(1, 2, 0))
    zarr.create_array(tmp_path / "last.zarr", data=last, chunks=(16, columns, 5), **options)
    common = ["--k", "4", "--seed", "7"]
    one, other = tmp_path / "one", tmp_path / "other"
    first = ["fit", str(tmp_path / "first.zarr"), "--feature-dim", "band", *common]
    assert main([*first, "--out", str(one)]) == 0
    assert main(["fit", str(tmp_path / "last.zarr"), *common, "--out", str(other)]) == 0
    centroids = [np.load(run / "centroids.npy") for run in (one, other)]
    assert same_bytes(*centroids)


@pytest.mark.parametrize("version", [2, 3])
def test_names_as_xarray_writes_them(tmp_path: Path, version: int, capsys) -> None:
    xarray = pytest.importorskip("xarray")
    values = numbers((4, 5, 6))
    data = xarray.DataArray(values, dims=("band", "y", "x"), name="emb")
    data.to_dataset().to_zarr(tmp_path / "d.zarr", zarr_format=version, consolidated=False)
    path = tmp_path / "d.zarr" / "emb"
    source = open_source(path)
    assert "axes band y [x], features in brackets" in source.spec.layout
    assert source.spec.grid == Grid((4, 5), ("band", "y"), str(tmp_path / "d.zarr"))
    (note,) = (note for note in source.notes() if "axes" in note)
    assert "its axes are band, y, x, and the last, x, is taken as features" in note
    assert "--feature-dim band makes band the features" in note
    assert main(["info", str(path)]) == 0
    assert "--feature-dim band" in capsys.readouterr().out
    source = open_source(path, feature_dim="band")
    assert same_bytes(read(source, 0, 30), values.reshape(4, 30).T.copy())
    assert not any("axes" in note for note in source.notes())
    assert source.spec.grid == Grid((5, 6), ("y", "x"), str(tmp_path / "d.zarr"))


def test_names_as_netcdf_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "x.nc"
    values = numbers((4, 5, 6))
    with h5py.File(path, "w") as file:
        made = file.create_dataset("v", data=values)
        for axis, name in enumerate(("band", "lat", "lon")):
            file[name] = np.arange(values.shape[axis], dtype="f8")
            file[name].make_scale(name)
            made.dims[axis].attach_scale(file[name])
    source = open_source(path)
    assert source.spec.grid == Grid((4, 5), ("band", "lat"), str(path / "v"))
    assert any("the last, lon, is taken" in note for note in source.notes())
    rows = read(open_source(path, feature_dim="band"), 0, 30)
    assert same_bytes(rows, values.reshape(4, 30).T.copy())


def test_fingerprints_of_other_features_differ(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "x.zarr", data=numbers((4, 5, 6)))
    found = {
        open_source(tmp_path / "x.zarr", feature_dim=dims).fingerprint()
        for dims in (None, 0, 1, (0, 1), (1, 0))
    }
    assert len(found) == 5


@pytest.mark.parametrize(
    ("dims", "feature_dim", "said"),
    [
        (("band", "y"), "bands", "feature_dim='bands' is none of its axes; there are band, y"),
        ((), "band", "they have no names, only the numbers 0 to 1"),
        ((), 2, "feature_dim=2 is none of its axes"),
        (("a", None), "b", "there are a, 1"),
        (("a", "b"), ("a", "a"), "feature_dim='a' is given twice"),
        (("a", "b"), ("a", -2), "is given twice"),
        (("a", "b"), ("a", "b"), "names all axes, no row is left"),
    ],
)
def test_axes_that_cannot_be(dims, feature_dim, said: str) -> None:
    with pytest.raises(SourceError) as caught:
        choose_axes((3, 4), dims, feature_dim, "x")
    assert said in str(caught.value)


def test_numbers_choose_axes_without_names(tmp_path: Path) -> None:
    values = numbers((4, 30))
    zarr.create_array(tmp_path / "x.zarr", data=values)
    source = open_source(tmp_path / "x.zarr", feature_dim=0)
    assert same_bytes(read(source, 0, 30), values.T.copy())
    assert main(["info", str(tmp_path / "x.zarr"), "--feature-dim", "5"]) == 2


def test_a_format_without_axes_refuses(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbers((4, 3)))
    with pytest.raises(SourceError, match=r"feature_dim is for \.zarr .* not for \.npy"):
        open_source(tmp_path / "x.npy", feature_dim="band")
