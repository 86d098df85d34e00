"""Outputs that are arrays of a Zarr group, in the shape of the source's rows."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pytest
import scipy.sparse
import xarray as xr
import zarr

from streamkm.cli import main
from streamkm.errors import ConfigError, OutputExistsError
from streamkm.sinks import open_sink, zarr_map
from streamkm.sinks.base import commit_together
from streamkm.sinks.zarr_map import ZarrMapSink
from streamkm.sources import Grid, open_source
from tests.runs.helpers import cli
from tests.sinks.contract import PartedSinkContract, around, labels


class TestZarrMapSink(PartedSinkContract):
    sink = ZarrMapSink
    suffix = ""
    durable_of_130 = 128
    synced = ("0", "store.zarr.out.partial", "c")

    def place(self, folder: Path) -> Path:
        zarr.create_group(folder / "store.zarr")
        return folder / "store.zarr"

    def load(self, path: Path) -> np.ndarray:
        return np.asarray(zarr.open_array(path, mode="r")[...])

    def leave_a_beginning(self, partial: Path) -> None:
        partial.mkdir()

    def lose_rows(self, partial: Path) -> None:
        (partial / "c" / "1").unlink()


NY, NX = 6, 10


def cube(path: Path, *, version: int, consolidated: bool = False) -> Path:
    """A cube of bands as xarray writes one, with coordinates of every kind."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(NY, NX, 3)) + 20.0 * (np.arange(NX) // 5)[:, None]
    values[0, 0] = np.nan
    data = xr.DataArray(
        values.astype("f4"),
        dims=("y", "x", "band"),
        coords={
            "y": np.linspace(50, 49, NY),
            "x": np.linspace(7, 8, NX),
            "band": [1, 2, 3],
            "lat": (("y", "x"), rng.normal(size=(NY, NX))),
            "time": np.datetime64("2024-05-01", "ns"),
            "spatial_ref": np.int64(0),
        },
    )
    data.coords["spatial_ref"].attrs["crs_wkt"] = "a projection"
    data.encoding["grid_mapping"] = "spatial_ref"
    data.to_dataset(name="data").to_zarr(path, zarr_format=version, consolidated=consolidated)
    return path


@pytest.fixture(params=[2, 3], ids=["v2", "v3"])
def version(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


def opened(store: Path) -> xr.Dataset:
    with xr.open_zarr(store, chunks=None) as found:
        loaded: xr.Dataset = found.load()
        return loaded


def expected(run: Path, source: Path, tmp_path: Path) -> np.ndarray:
    plain = tmp_path / "plain.npy"
    assert cli("predict", run, source, "--labels", plain) == 0
    found: np.ndarray = np.load(plain).reshape(-1, NX)
    return found


# Breaks when labels lie at other places than their pixels, or are drawn without coordinates; when
# pixels without data are drawn as a cluster.
@pytest.mark.filterwarnings("ignore")
def test_labels_are_a_map_with_the_coordinates_of_the_source(version: int, tmp_path: Path) -> None:
    source = cube(tmp_path / "cube.zarr", version=version) / "data"
    run, store = tmp_path / "run", tmp_path / "map.zarr"
    assert cli("fit", source, "--k", 2, "--nan", "drop", "--out", run) == 0
    outputs = ("--labels", store / "cluster", "--distances", store / "distance")
    assert cli("predict", run, source, *outputs) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cube.zarr", "map.zarr", "run"]
    plain = expected(run, source, tmp_path)
    found = opened(store)
    assert found["cluster"].dims == ("y", "x")
    assert np.isnan(found["cluster"].values[0, 0])
    np.testing.assert_array_equal(found["cluster"].fillna(-1), plain)
    assert np.isnan(found["distance"].values[0, 0])
    assert zarr.open_array(store / "cluster").dtype == "int32"
    with_bands = opened(tmp_path / "cube.zarr")
    # As xarray reads the source too, the projection is a variable that `grid_mapping` names.
    assert {*found["cluster"].coords} == {"y", "x", "lat", "time"}
    for name in ("y", "x", "lat", "time", "spatial_ref"):
        assert found[name].variable.identical(with_bands[name].variable)
    assert found["cluster"].attrs["grid_mapping"] == "spatial_ref"
    assert found["spatial_ref"].attrs["crs_wkt"] == "a projection"
    # It is finished, and known to be.
    assert cli("predict", run, source, *outputs, "--resume") == 0
    assert cli("predict", run, source, *outputs) == 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("consolidated", [False, True])
def test_labels_are_added_to_the_group_of_the_source(
    version: int, consolidated: bool, tmp_path: Path
) -> None:
    store = cube(tmp_path / "cube.zarr", version=version, consolidated=consolidated)
    run, before = tmp_path / "run", opened(store)
    assert cli("fit", store / "data", "--k", 2, "--nan", "drop", "--out", run) == 0
    assert cli("predict", run, store / "data", "--labels", store / "cluster") == 0
    found = opened(store)
    plain = expected(run, store / "data", tmp_path)
    np.testing.assert_array_equal(found["cluster"].fillna(-1), plain)
    assert found.drop_vars("cluster").equals(before)


# Breaks when a map is joined to coordinates, or to a grid, that are not its own.
@pytest.mark.filterwarnings("ignore")
def test_a_group_of_another_grid_is_refused(version: int, tmp_path: Path) -> None:
    source = open_source(cube(tmp_path / "cube.zarr", version=version) / "data")
    grid = source.spec.grid
    store = tmp_path / "map.zarr"
    shifted = xr.Dataset({"a": (("y", "x"), np.zeros((NY, NX)))}, {"y": np.arange(NY)})
    shifted.to_zarr(store, zarr_format=version)
    with pytest.raises(ConfigError, match=r"y in .*map\.zarr differs from the coordinate y"):
        open_sink(store / "cluster", n_rows=NY * NX, dtype="int32", grid=grid)
    longer = xr.Dataset({"a": (("y", "x"), np.zeros((NY + 1, NX)))})
    longer.to_zarr(tmp_path / "longer.zarr", zarr_format=version)
    with pytest.raises(ConfigError, match=r"a in .* has 7 along y, this output 6"):
        open_sink(tmp_path / "longer.zarr" / "c", n_rows=NY * NX, dtype="int32", grid=grid)
    source.close()
    assert {path.name for path in tmp_path.iterdir()} == {"cube.zarr", "map.zarr", "longer.zarr"}


# Breaks when rows whose place is not known, as those of a zipped store, are joined to coordinates
# without a word.
def test_coordinates_that_cannot_be_compared_are_told(version, tmp_path, caplog) -> None:
    store = tmp_path / "map.zarr"
    there = xr.Dataset({"a": (("y", "x"), np.zeros((NY, NX)))}, {"y": np.arange(NY)})
    there.to_zarr(store, zarr_format=version, consolidated=False)
    for grid, is_told in ((Grid((NY, NX), ("y", "x")), True), (Grid((NY, NX), ("u", "v")), False)):
        caplog.clear()
        with closing(open_sink(store / "c", n_rows=NY * NX, dtype="int32", grid=grid)):
            assert ("whether y in" in caplog.text) is is_told


@pytest.mark.parametrize("shape", [(7, 30), (3, 5, 14), (2, 105), (1, 210), (210, 1), (5, 1, 42)])
@pytest.mark.parametrize("chunk_rows", [1, 16, 40, 100, 1000])
def test_maps_of_every_shape_are_resumed(
    shape: tuple[int, ...], chunk_rows: int, tmp_path: Path
) -> None:
    """Breaks when rows and elements of the array part at the end of an axis."""
    n_rows, target = 210, tmp_path / "s.zarr" / "cluster"
    options: dict[str, Any] = {
        "n_rows": n_rows, "dtype": "int32", "grid": Grid(shape), "chunk_rows": chunk_rows,
    }  # fmt: skip
    for stop in (50, 120, n_rows):
        with open_sink(target, resume=True, **options) as sink:
            start = sink.next_row
            assert start == sink.durable_rows
            sink.write(start, labels(n_rows)[start:stop])
            sink.write_cursor({})
            if stop == n_rows:
                sink.commit()
    np.testing.assert_array_equal(zarr.open_array(target)[...], labels(n_rows).reshape(shape))
    assert around(target) == [target]


def test_a_source_without_axes_is_one_axis(tmp_path: Path) -> None:
    target = tmp_path / "new.zarr" / "deep" / "cluster"
    with open_sink(target, n_rows=10, dtype="int32") as sink:
        assert not (tmp_path / "new.zarr").exists()
        sink.write(0, labels(10))
        sink.commit()
    found = xr.open_zarr(tmp_path / "new.zarr", group="deep", consolidated=False)
    assert found["cluster"].dims == ("row",)
    assert "deep/cluster" in zarr.open_group(tmp_path / "new.zarr", mode="r")


# Breaks when what is there is overwritten, or an array is put into something that is no group.
# Breaks when the shards of a map have no map as labels, or one with the first shard's coordinates.
@pytest.mark.filterwarnings("ignore")
def test_shards_along_the_first_axis_are_one_map(tmp_path: Path) -> None:
    shards = tmp_path / "years"
    for year in (2023, 2024):
        shards.mkdir(exist_ok=True)
        whole = cube(tmp_path / f"{year}.zarr", version=3)
        (whole / "data").rename(shards / f"{year}.zarr")
    assert cli("fit", shards, "--k", 2, "--out", tmp_path / "run", "--nan", "drop") == 0
    assert cli("predict", tmp_path / "run", shards, "--labels", tmp_path / "map.zarr/labels") == 0
    found = opened(tmp_path / "map.zarr")
    assert found["labels"].dims == ("y", "x")
    assert found["labels"].shape == (2 * NY, NX)
    assert not found["labels"].coords
    plain = expected(tmp_path / "run", shards, tmp_path)
    np.testing.assert_array_equal(found["labels"].fillna(-1), plain)


# Breaks where a group, or a coordinate, that appears between a look and the write is an error.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("step", ["create_group", "_copy"])
def test_two_outputs_make_one_group_at_once(step: str, tmp_path: Path, monkeypatch) -> None:
    with closing(open_source(cube(tmp_path / "cube.zarr", version=3) / "data")) as source:
        grid = source.spec.grid
    sinks = [
        open_sink(tmp_path / "map.zarr" / name, n_rows=NY * NX, dtype="int32", grid=grid)
        for name in ("one", "other")
    ]
    for sink in sinks:
        sink.write(0, labels(NY * NX))
    home = zarr if step == "create_group" else zarr_map
    real = getattr(home, step)

    def late(*arguments: Any, **options: Any) -> Any:
        if step == "create_group":
            monkeypatch.undo()
            commit_together([sinks[1]])
            return real(*arguments, **options)
        real(*arguments, **options)
        monkeypatch.undo()
        return commit_together([sinks[1]])

    monkeypatch.setattr(home, step, late)
    commit_together([sinks[0]])
    found = opened(tmp_path / "map.zarr")
    assert {"one", "other"} <= set(found.data_vars)
    assert {"y", "x"} <= set(found.coords)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cube.zarr", "map.zarr"]


def test_places_that_are_refused(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "g.zarr")
    group.create_array("there", shape=(3,), dtype="i4")
    options: dict[str, Any] = {"n_rows": 10, "dtype": "int32"}
    with pytest.raises(OutputExistsError, match="exists already"):
        open_sink(tmp_path / "g.zarr" / "there", **options)
    with pytest.raises(ConfigError, match=r"there is no Zarr group"):
        open_sink(tmp_path / "g.zarr" / "there" / "cluster", **options)
    (tmp_path / "f.zarr").write_text("mine")
    (tmp_path / "d.zarr").mkdir()
    (tmp_path / "d.zarr" / "notes.txt").write_text("mine")
    for name in ("f.zarr", "d.zarr"):
        with pytest.raises(ConfigError, match=rf"{name} is no Zarr group"):
            open_sink(tmp_path / name / "cluster", **options)
    with pytest.raises(ConfigError, match=r"none does not exist"):
        open_sink(tmp_path / "none" / "x.zarr" / "cluster", **options)


# Breaks when a crash after the array has its name keeps it out of the group's list of members.
@pytest.mark.filterwarnings("ignore")
def test_an_interrupted_commit_is_announced_when_it_is_resumed(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = cube(tmp_path / "cube.zarr", version=version, consolidated=True)
    source = open_source(store / "data")
    options: dict[str, Any] = {"n_rows": NY * NX, "dtype": "int32", "grid": source.spec.grid}
    source.close()

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    sink = open_sink(store / "cluster", **options)
    sink.write(0, labels(NY * NX))
    with monkeypatch.context() as patch:
        patch.setattr(ZarrMapSink, "announce", crash)
        with pytest.raises(KeyboardInterrupt):
            commit_together([sink])
    sink.close()
    assert "cluster" not in xr.open_zarr(store, consolidated=True)
    with open_sink(store / "cluster", resume=True, **options) as sink:
        sink.commit()
    assert "cluster" in xr.open_zarr(store, consolidated=True)


def obs_store(path: Path, *, version: Literal[2, 3], consolidated: bool) -> Path:
    """A store of AnnData with 10 cells, as far as obs goes."""
    root = zarr.create_group(path, zarr_format=version)
    obs = root.create_group("obs")
    obs.attrs.update(
        {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "cell"}
        | {"column-order": ["n"]}
    )
    for name in ("cell", "n"):
        array = obs.create_array(name, shape=(10,), dtype="i8")
        array[...] = np.arange(10)
    if consolidated:
        zarr.consolidate_metadata(root.store)
    return path


# Breaks when anndata would not find the column; when it is listed before it is there, or twice, or
# never after a crash.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("consolidated", [False, True])
def test_labels_are_a_column_of_a_table_of_anndata(
    version: Literal[2, 3], consolidated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    def obs() -> Any:
        return zarr.open_group(store, mode="r", use_consolidated=consolidated)["obs"]

    store = obs_store(tmp_path / "c.zarr", version=version, consolidated=consolidated)
    # Its rows lie along two axes: a table has one.
    options: dict[str, Any] = {"n_rows": 10, "dtype": "int32", "grid": Grid((2, 5), ("y", "x"))}
    sink = open_sink(store / "obs" / "cluster", **options)
    sink.write(0, labels(10))
    with monkeypatch.context() as patch:
        patch.setattr("streamkm.sinks.zarr_map.write_atomically", crash)
        with pytest.raises(KeyboardInterrupt):
            commit_together([sink])
    sink.close()
    assert obs().attrs["column-order"] == ["n"]
    with open_sink(store / "obs" / "cluster", resume=True, **options) as sink:
        sink.commit()
    ZarrMapSink.announce(store / "obs" / "cluster")
    assert dict(obs().attrs) == {
        "encoding-type": "dataframe",
        "encoding-version": "0.2.0",
        "_index": "cell",
        "column-order": ["n", "cluster"],
    }
    column = obs()["cluster"]
    assert dict(column.attrs) == {"encoding-type": "array", "encoding-version": "0.2.0"}
    assert column[...].tolist() == labels(10).tolist()
    assert obs()["n"][...].tolist() == list(range(10))
    with pytest.raises(ConfigError, match="obs has 10 rows, this output 7; choose another group"):
        open_sink(store / "obs" / "other", n_rows=7, dtype="int32")


# Breaks when labels go to the cells of another store, by their place alone.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["h5ad", "dense", "sparse"])
def test_a_column_of_obs_is_of_the_same_cells(kind: str, tmp_path: Path) -> None:
    names = [f"cell-{number}" for number in range(60)]
    x = np.random.default_rng(0).poisson(1, (60, 4)).astype("f4")

    def store(path: Path, cells: list[str]) -> Path:
        root: Any = h5py.File(path, "w") if kind == "h5ad" else zarr.open_group(path, zarr_format=2)
        put = root.create_dataset if kind == "h5ad" else root.create_array
        put("obsm/X_pca", data=x)
        if kind == "sparse":
            group, matrix = root.create_group("X"), scipy.sparse.csr_array(x)
            group.attrs.update({"encoding-type": "csr_matrix", "shape": list(x.shape)})
            for part in ("data", "indices", "indptr"):
                group.create_array(part, data=getattr(matrix, part))
        else:
            put("X", data=x)
        table(root.create_group("obs"), cells)
        return path

    def table(obs: Any, cells: list[str]) -> None:
        obs.attrs.update({"encoding-type": "dataframe", "_index": "cell"})
        if isinstance(obs, h5py.Group):
            obs.create_dataset("cell", data=cells, dtype=h5py.string_dtype())
        else:
            obs.create_array("cell", shape=(60,), dtype=str)[:] = np.array(cells, object)

    source = store(tmp_path / ("x.h5ad" if kind == "h5ad" else "x.zarr"), names)
    for name, cells in (("same", names), ("turned", names[::-1])):
        root = zarr.open_group(tmp_path / f"{name}.zarr", zarr_format=2)
        table(root.create_group("obs"), cells)
    run = str(tmp_path / "run")
    for dataset in ("X", "obsm/X_pca"):
        assert main(["fit", str(source), "--dataset", dataset, "--k", "3", "--out", run]) == 0
        predict = ["predict", run, str(source), "--dataset", dataset, "--labels"]
        assert main([*predict, str(tmp_path / "same.zarr" / "obs" / dataset[-1])]) == 0
        assert main([*predict, str(tmp_path / "turned.zarr" / "obs" / "cluster")]) == 2
        run += "-2"
    with pytest.raises(ConfigError, match=r"row 0 is cell-0 there and cell-59 in .*obs; write"):
        open_sink(
            tmp_path / "turned.zarr" / "obs" / "cluster", n_rows=60, dtype="int32",
            origin=source if kind == "h5ad" else source / "X",
        )  # fmt: skip


# Breaks when the axis of the nearest centroids is lost, or two outputs of one store differ in it.
@pytest.mark.filterwarnings("ignore")
def test_several_labels_of_a_pixel_are_one_axis_more(tmp_path: Path, version: int, capsys) -> None:
    source = cube(tmp_path / "cube.zarr", version=version) / "data"
    run, store = tmp_path / "run", tmp_path / "map.zarr"
    assert cli("fit", source, "--nan", "drop", "--k", 4, "--out", run) == 0
    predict = ("predict", run, source, "--labels")
    assert cli(*predict, store / "cluster") == 0
    assert cli(*predict, store / "nearest_clusters", "--nearest", 3) == 0
    found = opened(store)
    assert found.nearest_clusters.dims == ("y", "x", "nearest")
    first = found.nearest_clusters.isel(nearest=0)
    np.testing.assert_array_equal(first, found.cluster)
    assert np.isnan(first[0, 0])
    capsys.readouterr()
    assert cli(*predict, store / "more", "--nearest", 2) == 2
    assert "nearest_clusters in" in (said := capsys.readouterr().err)
    assert "has 3 along nearest, this output 2" in said
