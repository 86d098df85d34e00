"""Stored values that mean no data, and scaled ones."""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import zarr

from streamkm import KMeans, load_run
from streamkm.cli import main
from streamkm.errors import NonFiniteError, SourceError
from streamkm.sources import DTYPES, open_source
from streamkm.sources.decoded import PIECE_ELEMENTS, DecodedSource, read_marks
from streamkm.sources.memory import MemorySource
from tests.sources.contract import Case, SourceContract, numbers, read, same_bytes

if TYPE_CHECKING:
    from pathlib import Path

#: Stored type, the type that it is read as, and the value that means no data.
KINDS = {
    "int8": ("float32", -128),
    "uint16": ("float32", 65535),
    "int32": ("float64", -9999),
    "int64": ("float64", -(2**63)),
    "float16": ("float16", -9999.0),
    "float32": ("float32", -3.4e38),
    "float64": ("float64", 1e20),
}


def read_as(dtype: str, value: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of whole numbers as stored, with `value` in some, and as they must be read."""
    wide = np.dtype(KINDS[dtype][0])
    stored = np.random.default_rng(5).integers(0, 100, (211, 5)).astype(dtype)
    stored[::7, 2] = value
    rows = stored.astype(wide)
    rows[::7, 2] = np.nan
    return stored, rows


class TestDecoded(SourceContract):
    @pytest.fixture(params=KINDS)
    def case(self, request, tmp_path: Path) -> Case:
        dtype, (wide, value) = request.param, KINDS[request.param]
        path = tmp_path / "x.npy"

        def store(changed: np.ndarray) -> None:
            kept = np.where(np.isnan(changed), 0, changed).astype(dtype)
            kept[np.isnan(changed)] = value
            np.save(path, kept)

        _, rows = read_as(dtype, value)
        store(rows)
        return Case(rows, wide, store, lambda: open_source(path, nodata=[value]), tmp_path)


# Breaks when widening in place overwrites numbers that are not yet read.
@pytest.mark.parametrize("dtype", [name for name in DTYPES if name not in ("bfloat16", "float16")])
def test_every_type_over_several_pieces(dtype: str) -> None:
    rows = np.random.default_rng(6).integers(0, 120, (PIECE_ELEMENTS, 3)).astype(dtype)
    found = read(DecodedSource(MemorySource(rows), [7, 300]), 0, len(rows))
    wanted = rows.astype(found.dtype)
    wanted[(rows == 7) | (rows == 300)] = np.nan
    assert same_bytes(found, wanted)


def test_bfloat16_keeps_its_type() -> None:
    values = np.array([[1.5, -9999], [2.5, 3]], "f4")
    bits = (values.view(np.uint32) + 0x8000 >> 16).astype(np.uint16)
    source = DecodedSource(open_source(bits, dtype="bfloat16"), [-9999])
    assert source.spec.dtype == "bfloat16"
    found = (read(source, 0, 2).astype(np.uint32) << 16).view(np.float32)
    assert np.isnan(found).tolist() == [[False, True], [False, False]]
    assert found[0, 0] == 1.5


# Breaks when no data is looked for among bits, or --dtype is to be left out, which clusters bits.
def test_bfloat16_that_is_stored_as_uint16(tmp_path: Path) -> None:
    values = np.array([[1, 2], [-9, 4], [5, -9]], "f4")
    bits = (values.view("u4") >> 16).astype("u2")
    (tmp_path / "shards").mkdir()
    for path in ("x.npy", "shards/a.npy", "shards/b.npy"):
        np.save(tmp_path / path, bits)
    np.savez(tmp_path / "x.npz", bits)
    for path, times in (("x.npy", 1), ("x.npz", 1), ("shards", 2)):
        source = open_source(tmp_path / path, dtype="bfloat16", nodata=-9)
        found = read(source, 0, 3 * times).astype("u4") << 16
        wanted = np.where(values == -9, np.nan, values)
        assert source.spec.dtype == "bfloat16"
        np.testing.assert_array_equal(found.view("f4"), np.concatenate([wanted] * times))
    zarr.create_array(tmp_path / "x.zarr", data=bits, attributes={"_FillValue": 7})
    with pytest.raises(SourceError, match="write the array as float32"):
        open_source(tmp_path / "x.zarr", dtype="bfloat16", fill_is_nan=True)


@pytest.fixture
def marked(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A Zarr array of int16 in which every tenth row is no data, by its attribute."""
    rows = np.random.default_rng(0).integers(0, 100, (1000, 2)).astype("i2")
    rows[::10, 1] = -9999
    attributes: dict[str, Any] = {"_FillValue": -9999, "scale_factor": 0.01, "add_offset": 5}
    path = tmp_path / "x.zarr"
    zarr.create_array(path, data=rows, chunks=(100, 2), attributes=attributes)
    return path, rows


# Breaks when a run clusters values that the file marks as missing, or does not say so.
def test_attributes_are_noted_and_dropped(marked, tmp_path: Path, capsys) -> None:
    path, _ = marked
    notes = open_source(path).notes()
    assert any("_FillValue marks -9999 as no data" in n and "--nan drop" in n for n in notes)
    assert any("scale_factor 0.01 and add_offset 5" in n and "--apply-scale" in n for n in notes)
    model = KMeans(2, nan="drop", random_state=0).fit(path)
    assert model.counts_.sum() == 900
    assert model.cluster_centers_.min() >= 0
    run = tmp_path / "run"
    fit = ["fit", str(path), "--k", "2", "--out", str(run)]
    assert main([*fit, "--nan", "drop"]) == 0
    assert "dropped: 100 rows" in capsys.readouterr().err
    labels = tmp_path / "labels.npy"
    assert main(["predict", str(run), str(path), "--labels", str(labels)]) == 0
    assert np.flatnonzero(np.load(labels) == -1).tolist() == list(range(0, 1000, 10))


# Breaks when predict forgets what fit was told.
def test_a_run_keeps_what_no_data_is(tmp_path: Path, capsys) -> None:
    rows = np.random.default_rng(0).integers(0, 100, (1000, 2)).astype("u1")
    rows[3] = 255
    np.save(tmp_path / "x.npy", rows)
    run, labels = tmp_path / "run", tmp_path / "labels.npy"
    fit = ["fit", str(tmp_path / "x.npy"), "--k", "2", "--out", str(run), "--nan", "drop"]
    assert main([*fit, "--nodata", "255"]) == 0
    assert main([*fit, "--nodata", "255", "--resume"]) == 0
    capsys.readouterr()
    assert main([*fit, "--resume"]) == 2
    assert "nodata: [255] -> None" in capsys.readouterr().err
    predict = ["predict", str(run), str(tmp_path / "x.npy"), "--labels", str(labels)]
    assert main(predict) == 0
    assert np.flatnonzero(np.load(labels) == -1).tolist() == [3]
    assert main(["evaluate", str(run), str(tmp_path / "x.npy")]) == 0
    assert "dropped          1" in capsys.readouterr().out
    assert np.array_equal(load_run(run).predict(tmp_path / "x.npy"), np.load(labels))
    model = KMeans(2, nan="drop", random_state=0).fit(open_source(tmp_path / "x.npy", nodata=255))
    assert np.flatnonzero(model.predict(str(tmp_path / "x.npy")) == -1).tolist() == [3]


# Breaks when the error names another row, or says NaN where the file holds none.
@pytest.mark.parametrize("kernel", ["cpu", "reference"])
def test_no_data_is_an_error_that_names_the_row(tmp_path: Path, capsys, kernel: str) -> None:
    rows = np.random.default_rng(0).integers(0, 100, (5000, 2)).astype("i4")
    rows[4321, 1] = -1
    np.save(tmp_path / "x.npy", rows)
    fit = ["fit", str(tmp_path / "x.npy"), "--k", "2", "--nodata=-1", "--kernel", kernel]
    assert main([*fit, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "row 4321 holds no data, -1 (feature 1" in said
    assert "--nan drop" in said
    with pytest.raises(NonFiniteError, match="row 4321 holds no data, -1"):
        KMeans(2).fit(open_source(tmp_path / "x.npy", nodata=-1))


# Breaks when rows that hold no data bypass a path: the result is that of the other rows alone.
@pytest.mark.parametrize("dtype", ["int8", "float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"scale": "zscore"}, {"init": "k-means||"}, {"n_init": 2}])
def test_same_as_with_nan(dtype: str, options: dict[str, Any]) -> None:
    rows = np.random.default_rng(1).integers(0, 100, (3000, 3)).astype(dtype)
    rows[5::9, 0] = -77
    with_nan = rows.astype("f4" if dtype != "float64" else "f8")
    with_nan[rows == -77] = np.nan
    one = KMeans(4, nan="drop", random_state=3, **options).fit(open_source(rows, nodata=-77))
    other = KMeans(4, nan="drop", random_state=3, **options).fit(with_nan)
    assert same_bytes(one.cluster_centers_, other.cluster_centers_)
    assert one.counts_.sum() == (rows[:, 0] != -77).sum()


def test_scale_is_applied(marked) -> None:
    path, stored = marked
    source = open_source(path, apply_scale=True, fill_is_nan=True)
    wanted = stored.astype("f4") * np.float32(0.01) + np.float32(5)
    wanted[stored == -9999] = np.nan
    assert same_bytes(read(source, 0, 1000), wanted)
    assert any("values are stored * 0.01 + 5" in note for note in source.notes())


# Breaks when the first of several numbers, such as one for each band, scales all features.
@pytest.mark.parametrize("name", ["scale_factor", "add_offset"])
def test_a_scale_of_several_numbers_is_refused(tmp_path: Path, name: str) -> None:
    for path, several in (("three", [0.1, 0.2, 0.3]), ("same", [0.5, 0.5]), ("none", [])):
        zarr.create_array(
            tmp_path / f"{path}.zarr", data=np.ones((4, 3), "i2"), attributes={name: several}
        )
    (note,) = open_source(tmp_path / "three.zarr").notes()
    assert "no single finite number, and not applied" in note
    with pytest.raises(SourceError, match="cannot be applied; leave out apply_scale"):
        open_source(tmp_path / "three.zarr", apply_scale=True)
    source = open_source(tmp_path / "same.zarr", apply_scale=True)
    assert read(source, 0, 1)[0, 0] == (0.5 if name == "scale_factor" else 1.5)
    source = open_source(tmp_path / "none.zarr", apply_scale=True)
    assert source.spec.dtype == "int16"
    (note,) = source.notes()
    assert "none.zarr: --apply-scale scales nothing" in note


def test_a_run_keeps_the_scale(marked, tmp_path: Path) -> None:
    path, stored = marked
    run, labels = tmp_path / "run", tmp_path / "labels.npy"
    fit = ["fit", str(path), "--k", "2", "--out", str(run), "--nan", "drop", "--apply-scale"]
    assert main(fit) == 0
    centroids = np.load(run / "centroids.npy")
    assert 5 < centroids.min() < centroids.max() < 6
    assert main(["predict", str(run), str(path), "--labels", str(labels)]) == 0
    values = stored * 0.01 + 5
    nearest = ((values[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
    nearest[::10] = -1
    assert np.array_equal(np.load(labels), nearest)


def as_base64(value: float) -> str:
    return base64.standard_b64encode(struct.pack("<d", value)).decode()


@pytest.mark.parametrize(
    ("attributes", "dtype", "nodata"),
    [
        ({"_FillValue": -9999, "missing_value": -1}, "int16", (-9999, -1)),
        ({"_FillValue": as_base64(-9999.5)}, "float32", (-9999.5,)),
        ({"_FillValue": as_base64(1e20)}, "float32", (float(np.float32(1e20)),)),
        ({"_FillValue": as_base64(float("nan"))}, "float32", ()),
        ({"_FillValue": "NaN", "missing_value": "-5"}, "float64", (-5.0,)),
        ({"missing_value": np.array([1, 2], "i2")}, "int16", (1, 2)),
        ({"_FillValue": -9999}, "uint8", ()),
        ({"_FillValue": 0.5}, "uint8", ()),
        ({"_FillValue": 1e20}, "float16", ()),
        ({"_FillValue": [], "missing_value": {"a": 1}}, "float32", ()),
        ({"_FillValue": "no number"}, "float32", ()),
        ({"_FillValue": True}, "uint8", ()),
    ],
)
def test_marks_as_programs_write_them(attributes, dtype: str, nodata) -> None:
    assert read_marks(attributes, dtype).nodata == nodata


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_marks_as_xarray_writes_them(tmp_path: Path, version: int, dtype: str) -> None:
    xarray = pytest.importorskip("xarray")
    values = numbers((40, 3), "u1").astype(dtype)
    values[5] = -99
    data = xarray.DataArray(values, dims=("n", "feature"), name="v").to_dataset()
    encoding = {"v": {"_FillValue": np.dtype(dtype).type(-99)}}
    path = tmp_path / "d.zarr"
    data.to_zarr(path, zarr_format=version, encoding=encoding, consolidated=False)
    assert any("marks -99 as no data" in note for note in open_source(path / "v").notes())
    found = read(open_source(path / "v", fill_is_nan=True), 0, 40)
    assert np.flatnonzero(np.isnan(found[:, 0])).tolist() == [5]


# Breaks when the fill value of chunks, 0 unless one is given, makes every 0 no data.
@pytest.mark.parametrize("version", [2, 3])
def test_a_plain_fill_value_is_no_mark(tmp_path: Path, version: Any) -> None:
    rows = np.eye(20, 2, dtype="i2")
    zarr.create_array(tmp_path / "x.zarr", data=rows, fill_value=0, zarr_format=version)
    source = open_source(tmp_path / "x.zarr", fill_is_nan=True)
    assert source.notes() == []
    assert source.spec.dtype == "int16"


def test_marks_of_netcdf(tmp_path: Path) -> None:
    values = numbers((40, 3), "u1").astype("i2")
    values[4] = -99
    with h5py.File(tmp_path / "x.nc", "w") as file:
        file["v"] = values
        file["v"].attrs["_FillValue"] = np.array([-99], "i2")
    source = open_source(tmp_path / "x.nc", fill_is_nan=True)
    assert np.isnan(read(source, 4, 5)).all()
    assert not np.isnan(read(source, 5, 40)).any()


def test_a_value_that_the_type_cannot_hold_is_said(tmp_path: Path, capsys) -> None:
    np.save(tmp_path / "x.npy", numbers((40, 3), "u1"))
    source = open_source(tmp_path / "x.npy", nodata=[-9999])
    assert any("no row holds -9999 as no data, uint8" in note for note in source.notes())
    with pytest.raises(SystemExit, match="2"):
        main(["info", str(tmp_path / "x.npy"), "--nodata", "none"])
    assert "argument --nodata: a number is needed, not 'none'" in capsys.readouterr().err
    with pytest.raises(SourceError, match="nodata must be a number, not 'none'"):
        open_source(tmp_path / "x.npy", nodata="none")  # type: ignore[arg-type]


@pytest.fixture
def differing(tmp_path: Path) -> Path:
    """A folder of two shards, of which one marks -1 and one 0; 0 also stands for 10, stored."""
    rows = np.array([[0, 0], [10, 11], [-1, -1], [50, 50]], "i2")
    for index, fill in enumerate((-1, 0)):
        array = zarr.create_array(tmp_path / "shards" / f"{index}.zarr", data=rows)
        array.attrs.update({"_FillValue": fill, "add_offset": -10.0})
    return tmp_path / "shards"


# Breaks when what one shard marks is left out of another, or looked for among scaled values.
def test_shards_that_mark_different_values(differing: Path, tmp_path: Path) -> None:
    dropped = [2, 4]
    source = open_source(differing, fill_is_nan=True, apply_scale=True)
    wanted = np.tile(np.array([[-10, -10], [0, 1], [-11, -11], [40, 40]], "f4"), (2, 1))
    wanted[dropped] = np.nan
    np.testing.assert_array_equal(read(source, 0, 8), wanted)
    np.testing.assert_array_equal(read(open_source(source), 0, 8), wanted)
    fitted = KMeans(2, nan="drop", random_state=0, compute_labels=True, run_dir=tmp_path / "run")
    labels = fitted.fit(source).labels_
    assert np.flatnonzero(labels == -1).tolist() == dropped
    for rows in (source, differing):
        for estimator in (fitted, load_run(tmp_path / "run")):
            assert np.array_equal(estimator.predict(rows), labels)


# Breaks when the manual is wrong on what a fitted model does with numbers in memory.
def test_numbers_in_memory_are_taken_as_they_are(tmp_path: Path) -> None:
    stored = np.array([[0, 0], [10, 10], [0, 1], [10, 11], [-9, -9]], "i2")
    path = tmp_path / "x.zarr"
    zarr.create_array(path, data=stored).attrs.update({"scale_factor": 10.0, "_FillValue": -9})
    source = open_source(path, apply_scale=True, fill_is_nan=True)
    fitted = KMeans(2, nan="drop", random_state=0).fit(source)
    seen = np.where(stored == -9, np.nan, stored * 10.0)
    assert np.array_equal(fitted.predict(seen), fitted.predict(path))
    assert fitted.predict(path)[-1] == -1
    # Stored ones are near 0 as they are, and -9 is a number.
    assert len(set(fitted.predict(stored).tolist())) == 1


# Breaks when a shard in which no pixel is missing, and which marks none, is another array.
@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
@pytest.mark.parametrize("marked_one", [0, 1])
def test_shards_of_which_one_marks_none(dtype: str, marked_one: int, tmp_path: Path) -> None:
    rows = np.array([[0, 0], [7, 8], [90, 91]], dtype)
    for index in range(2):
        array = zarr.create_array(tmp_path / f"{index}.zarr", data=rows)
        if index == marked_one:
            array.attrs["_FillValue"] = 7
    source = open_source(str(tmp_path / "*.zarr"), fill_is_nan=True)
    wanted = np.tile(rows.astype(KINDS[dtype][0]), (2, 1))
    wanted[3 * marked_one + 1, 0] = np.nan
    np.testing.assert_array_equal(read(source, 0, 6), wanted)
    assert source.spec.dtype == KINDS[dtype][0]


# Breaks when numbers of one shard are scaled and those of the next are taken as they are.
def test_shards_of_which_one_is_scaled_stay_apart(tmp_path: Path) -> None:
    rows = np.ones((3, 2), "i2")
    zarr.create_array(tmp_path / "0.zarr", data=rows, attributes={"scale_factor": 0.1})
    zarr.create_array(tmp_path / "1.zarr", data=rows)
    with pytest.raises(SourceError, match=r"agree in dtype: .*0\.zarr has float32, .*has int16"):
        open_source(str(tmp_path / "*.zarr"), apply_scale=True, fill_is_nan=True)


# Breaks when what one variable marks is left out of another.
def test_variables_that_mark_different_values(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "x.zarr")
    for name, fill in (("red", 0), ("green", 255)):
        values = np.array([[0, 1, 2, 255, 200, 201]], "u1")
        group.create_array(name, data=values).attrs["_FillValue"] = fill
    source = open_source(tmp_path / "x.zarr", variable=("red", "green"), fill_is_nan=True)
    fitted = KMeans(2, nan="drop", random_state=0, compute_labels=True, run_dir=tmp_path / "run")
    assert np.flatnonzero(fitted.fit(source).labels_ == -1).tolist() == [0, 3]
    green = zarr.open_array(tmp_path / "x.zarr" / "green")
    green[:] = np.array([[1, 0, 2, 200, 255, 201]], "u1")
    labels, run = tmp_path / "labels.npy", str(tmp_path / "run")
    predict = ["predict", run, str(tmp_path / "x.zarr"), "--labels", str(labels)]
    assert main([*predict, "--variable", "red", "--variable", "green"]) == 0
    assert np.flatnonzero(np.load(labels) == -1).tolist() == [0, 4]


# Breaks when what one file's attributes mark is looked for in a file with marks of its own.
def test_marks_of_the_fitted_file_are_not_those_of_another(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(1, 255, (60, 2)).astype("u1")
    x[0], x[1], x[2] = 0, 255, 7
    for name, fill in (("a", 0), ("b", 255), ("c", None)):
        array = zarr.create_array(tmp_path / name, data=x)
        array.attrs.update({} if fill is None else {"_FillValue": fill})
    np.save(tmp_path / "d.npy", x)
    fitted = KMeans(3, nan="drop", random_state=0, run_dir=tmp_path / "run").fit(tmp_path / "a")
    run, labels = str(tmp_path / "run"), tmp_path / "labels.npy"
    # A file without marks is read as the fitted one was.
    for name, dropped in (("a", 0), ("b", 1), ("c", 0), ("d.npy", 0)):
        place = str(tmp_path / name)
        assert main(["predict", run, place, "--labels", str(labels)]) == 0
        assert np.flatnonzero(np.load(labels) == -1).tolist() == [dropped], name
        labels.unlink()
        for estimator in (fitted, load_run(run)):
            assert np.flatnonzero(estimator.predict(place) == -1).tolist() == [dropped], name


# Breaks when a thousand tiles say the same a thousand times.
def test_a_note_of_several_tiles_is_said_once(tmp_path: Path) -> None:
    for number in range(4):
        group = zarr.create_group(tmp_path / f"{number}.zarr")
        for name, fill in (("red", -9999), ("nir", -1 if number == 2 else -9999)):
            array = group.create_array(name, data=np.ones((3, 2), "i2"))
            array.attrs.update({"_FillValue": fill, "scale_factor": 0.5})
    first, third = tmp_path / "0.zarr", tmp_path / "2.zarr"
    is_no_data = "is no data: a row that holds it counts as NaN"
    scaled = "values are stored * 0.5 + 0, as its attributes say"
    source = open_source(
        f"{tmp_path}/*.zarr", variable=["red", "nir"], fill_is_nan=True, apply_scale=True
    )
    assert source.notes() == [
        f"{first}/red and 3 more: -9999 {is_no_data}",
        f"{first}/red and 3 more: {scaled}",
        f"{first}/nir and 2 more: -9999 {is_no_data}",
        f"{first}/nir and 3 more: {scaled}",
        f"{third}/nir: -1 {is_no_data}",
    ]


# What the user names is no data in every file, beside the marks of each.
def test_given_values_join_the_marks_of_every_file(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(1, 255, (60, 2)).astype("u1")
    x[0], x[1], x[2] = 0, 255, 7
    for name, fill in (("a", 0), ("b", 255)):
        zarr.create_array(tmp_path / name, data=x).attrs["_FillValue"] = fill
    run, labels = str(tmp_path / "run"), tmp_path / "labels.npy"
    options = ["--nodata", "7", "--nan", "drop", "--k", "3", "--out", run]
    assert main(["fit", str(tmp_path / "a"), *options]) == 0
    n_given = int((x == 7).any(axis=1).sum())
    for name, dropped in (("a", 0), ("b", 1)):
        assert main(["predict", run, str(tmp_path / name), "--labels", str(labels)]) == 0
        found = np.flatnonzero(np.load(labels) == -1)
        assert {dropped, 2} <= set(found.tolist())
        assert len(found) == n_given + 1
        labels.unlink()


# Breaks when a value that one variable cannot hold is forgotten for the others.
def test_a_value_that_one_variable_cannot_hold_is_kept(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "x.zarr")
    group.create_array("one", data=np.zeros((1, 4), "u1"))
    group.create_array("two", data=np.array([[0, -9999, 1, 2]], "i2"))
    source = open_source(tmp_path / "x.zarr", variable=("one", "two"), nodata=-9999)
    assert source.spec.nodata == (-9999,)
    assert np.isnan(read(source, 0, 4)[:, 1]).tolist() == [False, True, False, False]


# Breaks when bits of an unsigned integer are taken for a negative number.
@pytest.mark.parametrize("fill", [-1, 65535])
def test_unsigned_numbers_in_signed_types(fill: int, tmp_path: Path) -> None:
    stored = np.array([[0, 1], [40000, 65534], [65535, 3]], "u2")
    array = zarr.create_array(tmp_path / "x.zarr", data=stored.view("i2"))
    array.attrs.update({"_Unsigned": "true", "scale_factor": 0.5, "_FillValue": fill})
    source = open_source(tmp_path / "x.zarr")
    assert any("_Unsigned, scale_factor 0.5 and add_offset 0 " in note for note in source.notes())
    source = open_source(tmp_path / "x.zarr", apply_scale=True, fill_is_nan=True)
    wanted = stored * 0.5
    wanted[2, 0] = np.nan
    np.testing.assert_array_equal(read(source, 0, 3), wanted)
    assert any("stored as unsigned * 0.5 + 0" in note for note in source.notes())
