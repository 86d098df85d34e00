"""From a location to a source, and several files as one array."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from streamkm.errors import NoRowsError, ReadError, SourceError
from streamkm.sources import ArraySpec, Grid, RowRange, open_source
from streamkm.sources.concat import ConcatSource, parts_of
from tests.sources.contract import Case, SourceContract, numbers, read, same_bytes
from tests.sources.test_flat import write_bin

if TYPE_CHECKING:
    from pathlib import Path

#: Rows of each shard; the names are in natural order only: s2 before s10.
EVEN = (50, 50, 50, 50)
UNEVEN = (50, 1, 70, 33, 50)


class ConcatContract(SourceContract):
    """Shards of `sizes` rows in a folder."""

    suffix = ".npy"
    sizes: tuple[int, ...] = UNEVEN

    def save(self, path: Path, rows: np.ndarray) -> None:
        np.save(path, rows)

    def location(self, folder: Path) -> object:
        return folder

    @pytest.fixture
    def case(self, tmp_path: Path) -> Case:
        array = numbers((sum(self.sizes), 4))

        def store(changed: np.ndarray) -> None:
            bounds = np.cumsum(self.sizes)[:-1]
            for index, rows in enumerate(np.split(changed, bounds)):
                self.save(tmp_path / f"s{index * 2 + 4}{self.suffix}", rows)

        store(array)
        return Case(array, "float32", store, lambda: open_source(self.location(tmp_path)), tmp_path)


class TestFolderOfNpy(ConcatContract):
    pass


class TestFolderOfEvenNpy(ConcatContract):
    sizes = EVEN


class TestFolderWithNoneHeldOpen(ConcatContract):
    @pytest.fixture(autouse=True)
    def _few(self, monkeypatch) -> None:
        monkeypatch.setattr("streamkm.sources.registry.MAX_OPEN_SHARDS", 2)


class TestGlobOfNpy(ConcatContract):
    def location(self, folder: Path) -> object:
        return str(folder / "s*.npy")


class TestGlobOfOne(ConcatContract):
    sizes = (50,)

    def location(self, folder: Path) -> object:
        return folder / "*"


class TestFolderOfFbin(ConcatContract):
    suffix = ".fbin"

    def save(self, path: Path, rows: np.ndarray) -> None:
        write_bin(path, rows)


class TestFolderOfZarr(ConcatContract):
    suffix = ".zarr"

    def save(self, path: Path, rows: np.ndarray) -> None:
        zarr.create_array(path, data=rows, chunks=(20, 4), overwrite=True)


class TestGlobOfZarrWithoutSuffix(ConcatContract):
    suffix = ""

    def save(self, path: Path, rows: np.ndarray) -> None:
        zarr.create_array(path, data=rows, chunks=(25, 3), overwrite=True, zarr_format=2)

    def location(self, folder: Path) -> object:
        return str(folder / "*")


class TestFolderOfRaw(ConcatContract):
    suffix = ".part"

    def save(self, path: Path, rows: np.ndarray) -> None:
        path.write_bytes(rows.tobytes())

    @pytest.fixture
    def case(self, tmp_path: Path) -> Case:
        array = numbers((101, 4))

        def store(changed: np.ndarray) -> None:
            self.save(tmp_path / "a.part", changed[:40])
            self.save(tmp_path / "b.part", changed[40:])

        store(array)
        return Case(
            array,
            "float32",
            store,
            lambda: open_source(tmp_path, dtype="float32", n_features=4),
            tmp_path,
        )


# ---------------------------------------------------------------- shards


# Breaks when shards are joined in lexicographic order, in which 10 comes before 9.
def test_shards_are_in_natural_order(tmp_path: Path) -> None:
    for index in (10, 9, 100):
        np.save(tmp_path / f"part-{index}.npy", np.full((1, 2), index, np.int32))
    source = open_source(tmp_path)
    assert read(source, 0, 3)[:, 0].tolist() == [9, 10, 100]
    source.close()


# Breaks when a shard that is gone is skipped, or shows as something else than a read error.
def test_shard_that_goes_missing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("streamkm.sources.registry.MAX_OPEN_SHARDS", 0)
    array = numbers((30, 2))
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", array[index * 10 : index * 10 + 10])
    source = open_source(tmp_path)
    (tmp_path / "1.npy").unlink()
    assert same_bytes(read(source, 0, 10), array[:10])
    assert same_bytes(read(source, 20, 30), array[20:])
    with pytest.raises(ReadError, match=r"1\.npy: rows 0:2"):
        read(source, 5, 12)
    source.close()
    # It changes what the folder holds, and so the fingerprint, when opened again.
    assert open_source(tmp_path).spec.n_rows == 20


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (np.zeros((5, 4), "f4"), ["features", "3", "4"]),
        (np.zeros((5, 3), "f8"), ["dtype", "float32", "float64"]),
    ],
)
def test_shards_that_disagree(tmp_path: Path, other: np.ndarray, says: list[str]) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 3), "f4"))
    np.save(tmp_path / "b.npy", np.zeros((5, 3), "f4"))
    np.save(tmp_path / "c.npy", other)
    refused(tmp_path, str(tmp_path / "a.npy"), str(tmp_path / "c.npy"), *says)


def test_shard_that_is_wrong_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", numbers((5, 3)))
    (tmp_path / "b.npy").write_bytes(b"")
    refused(tmp_path, str(tmp_path / "b.npy"))


def test_folder_of_mixed_kinds(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", numbers((5, 3)))
    write_bin(tmp_path / "b.fbin", numbers((5, 3)))
    refused(tmp_path, str(tmp_path), "a.npy", "b.fbin", "*.npy")


# Breaks when files beside the shards stop a run, or are left out without a word.
def test_other_files_of_a_folder_are_told(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", numbers((5, 3)))
    for name in ("README.md", ".hidden.npy", "_SUCCESS"):
        (tmp_path / name).write_text("")
    source = open_source(tmp_path)
    assert source.notes() == [f"{tmp_path}: 1 other entry is not read: README.md"]
    source.close()


def shards_of(folder: Path, *counts: int) -> None:
    """A folder of shards; `counts` are their rows."""
    for number, n_rows in enumerate(counts):
        np.save(folder / f"part-{number}.npy", numbers((n_rows, 3), "uint16"))


# Breaks when nobody can tell which rows are of which shard: label 20 is of part-2, not of part-10.
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_parts_tell_which_rows_are_of_which_file(tmp_path: Path, dtype: str | None) -> None:
    shards_of(tmp_path, 4, 3, *[1] * 9)
    source = open_source(tmp_path, dtype=dtype)
    parts = parts_of(source)
    assert [part.name for part in parts] == [str(tmp_path / f"part-{i}.npy") for i in range(11)]
    assert [part.first_row for part in parts] == [0, 4, *range(7, 16)]
    assert [part.n_rows for part in parts] == [4, 3, *[1] * 9]
    source.close()
    single = open_source(tmp_path / "part-3.npy", dtype=dtype)
    assert parts_of(single) == []
    single.close()


# Breaks when labels are joined to ids that a tool has read in another order, without a warning.
def test_another_order_than_that_of_text_is_told(tmp_path: Path) -> None:
    shards_of(tmp_path, *[1] * 11)
    source = open_source(tmp_path)
    two, ten = tmp_path / "part-2.npy", tmp_path / "part-10.npy"
    assert f"rows of {two} come before those of {ten}" in source.notes()[0]
    source.close()
    # The order of a list is the user's own.
    (tmp_path / "list.txt").write_text(f"{two}\n{ten}\n")
    for location in ([ten, two], [two, ten], f"@{tmp_path}/list.txt"):
        source = open_source(location)
        assert source.notes() == []
        source.close()
    (tmp_path / "list.txt").unlink()
    ten.unlink()
    source = open_source(tmp_path)
    assert source.notes() == []
    source.close()


# ---------------------------------------------------------------- blocks of several parts


class Part:
    """A source that is only a spec, with its row numbers as content."""

    def __init__(self, first: int, n_rows: int, block_rows: int, scratch: int = 7) -> None:
        self.first = first
        self.name = f"part at {first}"
        self.spec = ArraySpec(n_rows, 1, "int64", min(block_rows, n_rows), "test", scratch)
        self.reads: list[RowRange] = []

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        self.reads.append(rows)
        out[:, 0] = np.arange(self.first + rows.start, self.first + rows.stop)

    def fingerprint(self) -> str:
        return str(self.first)

    def notes(self) -> list[str]:
        return [self.name]

    def close(self) -> None:
        pass


def parts(sizes: tuple[int, ...], block_rows: int) -> list[Part]:
    starts = np.cumsum([0, *sizes])
    return [Part(int(start), size, block_rows) for start, size in zip(starts, sizes, strict=False)]


@pytest.mark.parametrize(
    ("sizes", "block_rows", "expected"),
    [
        ((100, 100, 100), 20, 20),  # lines up
        ((100, 100, 33), 20, 20),  # only the last is short
        ((100, 60, 100), 20, 20),  # uneven, but lines up
        ((90, 90, 90), 20, 90),  # a block a shard, rather than chunks read twice
        ((90, 90, 5), 20, 90),
        ((90, 70, 90), 20, 20),  # nothing lines up
        ((90, 1, 90), 20, 20),  # one tiny part does not cut all into crumbs
    ],
)
def test_block_rows_of_parts(sizes: tuple[int, ...], block_rows: int, expected: int) -> None:
    assert ConcatSource(parts(sizes, block_rows), "x").spec.block_rows == expected


# Breaks when shards of gigabytes whose blocks do not line up become one block each.
def test_large_shards_are_no_block(monkeypatch) -> None:
    monkeypatch.setattr("streamkm.sources.concat.SHARD_BLOCK_BYTES", 8 * 89)
    assert ConcatSource(parts((90, 90), 20), "x").spec.block_rows == 20


# Breaks when scratch is counted for one chunk where a block reads several.
def test_scratch_grows_with_the_block() -> None:
    assert ConcatSource(parts((100, 100), 20), "x").spec.scratch_bytes == 7
    assert ConcatSource(parts((90, 90), 20), "x").spec.scratch_bytes == 5 * 7


# Breaks when a border is off by one, or a part of one row is passed over.
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_reads_across_borders(sizes: list[int], data) -> None:
    shards = parts(tuple(sizes), 4)
    source = ConcatSource(shards, "x")
    n = sum(sizes)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
    assert read(source, start, stop)[:, 0].tolist() == list(range(start, stop))
    assert all(len(rows) for part in shards for rows in part.reads)


# Breaks when two shards that were swapped pass for the same data.
def test_fingerprint_depends_on_the_order() -> None:
    one, other = parts((10, 10), 5)
    assert (
        ConcatSource([one, other], "x").fingerprint()
        != ConcatSource([other, one], "x").fingerprint()
    )


# Breaks when shards of a map have no axes, or other axes than they have together.
@pytest.mark.parametrize(
    ("grids", "joined"),
    [
        ([Grid((2, 5), ("y", "x"), "a")], Grid((2, 5), ("y", "x"), "a")),
        ([Grid((2, 5), ("y", "x"), "a"), Grid((1, 5), ("y", "x"), "b")], Grid((3, 5), ("y", "x"))),
        ([Grid((3,), ("t",)), Grid((3,), ("t",))], Grid((6,), ("t",))),
        ([Grid((2, 5), ("y", "x")), Grid((5, 2), ("y", "x"))], None),
        ([Grid((2, 5), ("y", "x")), Grid((2, 5), ("t", "x"))], None),
        ([Grid((2, 5), ("y", "x")), None], None),
        ([Grid((3,), ("t",)), Grid((3,), ("s",))], None),
        ([None, None], None),
    ],
)
def test_axes_of_parts(grids: list[Grid | None], joined: Grid | None) -> None:
    shards = [Part(0, 10, 5) for _ in grids]
    for shard, grid in zip(shards, grids, strict=True):
        shard.spec = replace(shard.spec, grid=grid)
    source = ConcatSource(shards, "tiles")
    assert source.spec.grid == joined
    is_map = any(grid is not None and len(grid.shape) > 1 for grid in grids)
    notes = [note for note in source.notes() if "one by one for maps" in note]
    assert len(notes) == (is_map and joined is None)
    if grids[-1] == Grid((5, 2), ("y", "x")):
        assert "y 2, x 5 of" in notes[0]
        assert "y 5, x 2 of" in notes[0]


def test_no_parts() -> None:
    with pytest.raises(SourceError, match="no part"):
        ConcatSource([], "x")


# ---------------------------------------------------------------- what a location may be


def refused(location: object, *says: str, **options) -> None:
    """Opening says, in one line, all of `says`."""
    with pytest.raises(SourceError) as caught:
        open_source(location, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in says:
        assert part in message


def test_source_is_returned_as_it_is() -> None:
    source = open_source(numbers((5, 2)))
    assert open_source(source) is source


def test_strings_and_paths_are_alike(tmp_path: Path, monkeypatch) -> None:
    np.save(tmp_path / "x.NPY.npy", numbers((5, 2)))
    monkeypatch.setenv("HOME", str(tmp_path))
    for location in (tmp_path / "x.NPY.npy", str(tmp_path / "x.NPY.npy"), "~/x.NPY.npy"):
        source = open_source(location)
        assert source.spec.n_rows == 5
        source.close()


# Breaks when a file whose name has brackets can only be opened as a pattern.
def test_existing_name_is_no_pattern(tmp_path: Path) -> None:
    np.save(tmp_path / "x[1].npy", numbers((5, 2)))
    np.save(tmp_path / "x1.npy", numbers((7, 2)))
    source = open_source(tmp_path / "x[1].npy")
    assert source.spec.n_rows == 5
    source.close()


def test_what_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "x.npy", str(tmp_path / "x.npy"), "does not exist")
    refused(tmp_path / "a" / "x.npy", "does not exist", f"{tmp_path} does")
    refused(tmp_path / "*.npy", str(tmp_path / "*.npy"), "no file matches")
    refused(tmp_path, str(tmp_path), "without an array", ".npy")


def test_file_of_unknown_kind(tmp_path: Path) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(bytes(24))
    refused(path, str(path), "'.dat'", ".npy", "dtype and n_features")
    refused(path, "dtype and n_features", dtype="float32")
    refused(path, "dtype and n_features", n_features=3)
    source = open_source(path, dtype=np.float32, n_features=3)
    assert source.spec.n_rows == 2
    source.close()


def test_what_is_no_location() -> None:
    refused([[1.0, 2.0]], "path", "builtins.list")
    refused(None, "NoneType")


@pytest.mark.parametrize("dtype", ["float31", "bool", "complex64", "object"])
def test_dtype_that_is_none(tmp_path: Path, dtype: str) -> None:
    (tmp_path / "x.dat").write_bytes(bytes(24))
    refused(tmp_path / "x.dat", dtype, "float32", dtype=dtype, n_features=3)


def test_numbers_out_of_range(tmp_path: Path) -> None:
    (tmp_path / "x.dat").write_bytes(bytes(24))
    refused(tmp_path / "x.dat", "n_features", "0", dtype="float32", n_features=0)
    refused(tmp_path / "x.dat", "offset", "-1", dtype="float32", n_features=3, offset=-1)


# Breaks when an option that contradicts the file is ignored.
def test_options_that_contradict_the_array(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, numbers((5, 2)))
    refused(path, str(path), "float64", "float32", dtype="float64")
    refused(path, str(path), "3", "2", n_features=3)
    refused(path, str(path), "offset", offset=8)
    source = open_source(path, dtype=">f4", n_features=2)
    assert source.spec.dtype == "float32"
    source.close()


# Breaks when bfloat16, which NumPy's formats cannot name, cannot be read from them.
def test_bfloat16_stored_as_uint16(tmp_path: Path) -> None:
    array = numbers((5, 2), "uint16")
    np.save(tmp_path / "x.npy", array)
    source = open_source(tmp_path / "x.npy", dtype="bfloat16")
    plain = open_source(tmp_path / "x.npy")
    assert source.spec.dtype == "bfloat16"
    assert same_bytes(read(source, 0, 5), array)
    assert source.fingerprint() != plain.fingerprint()
    source.close()
    plain.close()


def test_folder_that_is_no_array_in_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    refused(tmp_path / "*", str(tmp_path / "a"), "no Zarr array")


# Breaks when one file without rows, as Spark writes them, makes a whole folder unreadable.
@pytest.mark.parametrize("suffix", ["npy", "parquet", "h5", "zarr", "fbin"])
def test_shards_without_rows_are_left_out(tmp_path: Path, suffix: str) -> None:
    def store(name: str, part: np.ndarray) -> None:
        path = tmp_path / f"{name}.{suffix}"
        match suffix:
            case "npy":
                np.save(path, part)
            case "parquet":
                pq.write_table(pa.table({"a": part[:, 0], "b": part[:, 1]}), path)
            case "h5":
                with h5py.File(path, "w") as file:
                    file["x"] = part
            case "zarr":
                zarr.create_array(path, data=part, chunks=(5, 2))
            case "fbin":
                write_bin(path, part)

    x = numbers((10, 2))
    empty = x[:0]
    for name, part in (("0", empty), ("1", x[:5]), ("2", empty), ("3", x[5:])):
        store(name, part)
    source = open_source(tmp_path)
    assert same_bytes(read(source, 0, 10), x)
    empty_ones = f"{tmp_path}/0.{suffix}, {tmp_path}/2.{suffix}"
    left_out = f"{tmp_path}: 2 shards hold no rows: {empty_ones}"
    assert left_out in source.notes()
    for name in "13":
        store(name, empty) if suffix != "zarr" else shutil.rmtree(tmp_path / f"{name}.zarr")
    with pytest.raises(NoRowsError, match=r"all [24] shards hold no rows"):
        open_source(tmp_path)
    with pytest.raises(SourceError, match=r"is empty, its shape is|has no rows"):
        open_source(tmp_path / f"0.{suffix}")
