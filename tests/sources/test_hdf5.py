"""HDF5 datasets, chunked or in one piece."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from streamkm.errors import ReadError, SourceError
from streamkm.sources import open_source
from tests.sources.contract import Case, SourceContract, numbers, read, same_bytes

LAYOUTS: dict[str, tuple[tuple[int, ...], str, dict[str, Any]]] = {
    "in one piece": ((203, 5), "f4", {}),
    "in one piece, 3-D, big-endian": ((7, 29, 5), ">i2", {}),
    "chunks": ((203, 5), "f4", {"chunks": (50, 5)}),
    "chunks, gzip, shuffled": (
        (203, 5), "f8", {"chunks": (50, 2), "compression": "gzip", "shuffle": True}
    ),
    "chunks, 3-D, lzf, big-endian": (
        (7, 29, 5), ">f4", {"chunks": (2, 10, 5), "compression": "lzf"}
    ),
    "chunks, float16, checksums": ((203, 5), "f2", {"chunks": (64, 5), "fletcher32": True}),
    "compact, uint8": ((20, 5), "u1", {"compact": True}),
}  # fmt: skip


def write(path: Path, array: np.ndarray, name: str = "x", **options: Any) -> None:
    with h5py.File(path, "w") as file:
        if options.pop("compact", False):
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_layout(h5py.h5d.COMPACT)
            space = h5py.h5s.create_simple(array.shape)
            kind = h5py.h5t.py_create(array.dtype)
            made = h5py.h5d.create(file.id, name.encode(), kind, space, plist)
            h5py.Dataset(made)[...] = array
        else:
            file.create_dataset(name, data=array, **options)


class TestHdf5(SourceContract):
    @pytest.fixture(params=LAYOUTS)
    def case(self, request, tmp_path: Path) -> Case:
        shape, dtype, options = LAYOUTS[request.param]
        path = tmp_path / "x.h5"
        array = numbers(shape, dtype)

        def store(changed: np.ndarray) -> None:
            write(path, changed, **options)

        store(array)
        name = array.dtype.newbyteorder("=").name
        return Case(array, name, store, lambda: open_source(path), tmp_path)


def refused(path: Path, match: str, **options: Any) -> None:
    with pytest.raises(SourceError, match=match) as caught:
        open_source(path, **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# Breaks when a dataset behind a block of the user's own is read from where it is not.
def test_user_block(tmp_path: Path) -> None:
    array = numbers((203, 5))
    with h5py.File(tmp_path / "x.h5", "w", userblock_size=1024) as file:
        file.create_dataset("x", data=array)
    source = open_source(tmp_path / "x.h5")
    assert source.spec.layout == "hdf5 /x, C order"
    assert same_bytes(read(source, 0, 203), array)


def n_descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def test_many_files_are_not_held_open(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("streamkm.sources.registry.MAX_OPEN_SHARDS", 2)
    array = numbers((40, 3))
    for index, part in enumerate(np.split(array, 4)):
        write(tmp_path / f"{index}.h5", part, chunks=(5, 3))
    before = n_descriptors()
    source = open_source(tmp_path)
    assert same_bytes(read(source, 0, 40), array)
    assert n_descriptors() == before


def test_chosen_dataset(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5"
    x, pca = numbers((30, 7)), numbers((30, 2), "f8")
    with h5py.File(path, "w") as file:
        file["X"] = x
        file["obsm/X_pca"] = pca
        file["obs/names"] = np.array([b"a", b"b"])
        file["obs/n"] = np.arange(30)
        file["obs/pairs"] = np.zeros((3, 2), [("a", "f4")])
        file["obs/flags"] = np.zeros((3, 2), bool)
        file["lost"] = h5py.SoftLink("/nowhere")
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/x")
        file.create_dataset("nothing", data=h5py.Empty("f4"))
        file.create_dataset("no rows", shape=(0, 3), dtype="f4")
    assert same_bytes(read(open_source(path, dataset="X"), 0, 30), x)
    assert same_bytes(read(open_source(path, dataset="/obsm/X_pca"), 3, 9), pca[3:9])
    one, other = (open_source(path, dataset=name) for name in ("X", "obsm/X_pca"))
    assert one.fingerprint() != other.fingerprint()
    refused(path, r"choose it by dataset; it holds X \(30, 7\), no rows \(0, 3\), obsm/X_pca")
    refused(path, "'Y' does not exist; it holds X", dataset="Y")
    refused(path, "'obsm' is no dataset", dataset="obsm")
    refused(path, "at least two dimensions", dataset="obs/n")
    refused(path, "real numbers", dataset="obs/names")
    refused(path, "are records of a", dataset="obs/pairs")
    refused(path, "real numbers", dataset="obs/flags")
    refused(path, "'nothing' is no dataset", dataset="nothing")
    refused(path, "empty", dataset="no rows")
    for name in ("lost", "elsewhere", "../X", "\0"):
        refused(path, "does not exist|cannot be opened", dataset=name)
    refused(path, "columns is for .parquet", columns=["X"])


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(900)])
def test_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.h5").write_bytes(content)
    refused(tmp_path / "x.h5", "cannot be opened as HDF5")


@pytest.mark.parametrize("chunks", [None, (1000, 8)])
def test_truncated_file(tmp_path: Path, chunks) -> None:
    path = tmp_path / "x.h5"
    write(path, numbers((4000, 8)), chunks=chunks)
    os.truncate(path, path.stat().st_size - 50_000)
    refused(path, "truncated|cannot be opened")


# Breaks when damage gives rows of zeros, or an error that does not say where.
def test_damaged_chunk(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    array = numbers((4000, 8))
    write(path, array, chunks=(1000, 8), compression="gzip")
    with h5py.File(path, "r") as file:
        place = file["x"].id.get_chunk_info_by_coord((2000, 0)).byte_offset
    stored = bytearray(path.read_bytes())
    stored[place + 100 : place + 200] = bytes(100)
    path.write_bytes(stored)
    source = open_source(path)
    assert same_bytes(read(source, 0, 2000), array[:2000])
    with pytest.raises(ReadError, match=r"x\.h5: rows 1999:2001 of /x cannot be read"):
        read(source, 1999, 2001)
    path.write_bytes(stored[:-9])
    with pytest.raises(ReadError, match=r"x\.h5: has been replaced or changed"):
        read(source, 0, 1)


def test_without_h5py(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "x.h5").write_bytes(b"")
    monkeypatch.delitem(sys.modules, "streamkm.sources.hdf5", raising=False)
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(tmp_path / "x.h5", r"needs h5py.*install streamkm\[hdf5\]")


def stored_as(path: Path, kind: Any, values: np.ndarray, memory: Any, *, more: bool) -> None:
    """Write `values` in one piece as elements of the HDF5 type `kind`."""
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple(values.shape)
        made = h5py.h5d.create(file.id, b"x", kind, space)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, values, memory)
        if more:
            file["more"] = np.zeros(100_000)


def bits(base: Any, precision: int, offset: int = 0) -> Any:
    kind = base.copy()
    kind.set_precision(precision)
    kind.set_offset(offset)
    return kind


def bfloat16() -> Any:
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    return kind


# Breaks when the bytes of a type that NumPy lacks are taken for those of one that it has.
@pytest.mark.parametrize("more", [False, True], ids=["alone", "something behind it"])
@pytest.mark.parametrize(
    ("kind", "low", "high", "dtype", "memory"),
    [
        (bits(h5py.h5t.STD_U16LE, 12, 4), 0, 4096, "u2", h5py.h5t.NATIVE_UINT16),
        (bits(h5py.h5t.STD_I16LE, 12), -2048, 2048, "i2", h5py.h5t.NATIVE_INT16),
        (bits(h5py.h5t.STD_U32LE, 24, 8), 0, 2**24, "u4", h5py.h5t.NATIVE_UINT32),
        (bfloat16(), -64, 64, "f4", h5py.h5t.NATIVE_FLOAT),
    ],
    ids=["12 bits at 4", "signed 12 bits", "24 bits at 8", "bfloat16"],
)
def test_types_that_the_library_converts(
    tmp_path: Path, kind, low, high, dtype, memory, more: bool
) -> None:
    values = np.random.default_rng(0).integers(low, high, (400, 4)).astype(dtype)
    stored_as(tmp_path / "x.h5", kind, values, memory, more=more)
    source = open_source(tmp_path / "x.h5")
    assert same_bytes(read(source, 0, 400), values)


# Breaks when one dataset of a type that NumPy lacks makes the file unreadable.
def test_a_type_that_numpy_lacks(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    rows = numbers((20, 3))
    kind = bits(h5py.h5t.STD_I32LE, 24)
    kind.set_size(3)
    with h5py.File(path, "w") as file:
        h5py.h5d.create(file.id, b"audio", kind, h5py.h5s.create_simple((10, 2)))
        file["x"] = rows
    assert same_bytes(read(open_source(path), 0, 20), rows)
    assert same_bytes(read(open_source(path, dataset="x"), 0, 20), rows)
    refused(path, "/audio: NumPy has no type for its elements", dataset="audio")


# Breaks when rows that nobody wrote are clustered without a word.
@pytest.mark.parametrize(
    ("chunks", "written", "said"),
    [
        ((10, 3), 25, "2 of 5 chunks were never written, their rows read as the fill value 7"),
        ((10, 3), 50, ""),
        (None, 0, "the dataset was never written, their rows read as the fill value 7"),
        (None, 50, ""),
    ],
)
def test_what_was_never_written_is_noted(tmp_path: Path, chunks, written: int, said: str) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        made = file.create_dataset("x", (50, 3), "i2", chunks=chunks, fillvalue=7)
        if written:
            made[:written] = 1
    source = open_source(tmp_path / "x.h5")
    assert bool(said) == any("never written" in note for note in source.notes())
    assert any(said in note for note in source.notes()) or not said
    assert (read(source, 49, 50) == (1 if written == 50 else 7)).all()


def test_netcdf_of_the_classic_format(tmp_path: Path) -> None:
    (tmp_path / "x.nc").write_bytes(b"CDF\x01" + bytes(100))
    refused(tmp_path / "x.nc", "classic format: nccopy -k nc4 converts it")


def test_several_datasets_suggest_variables(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.nc", "w") as file:
        file["red"], file["nir"], file["lat"] = numbers((4, 5)), numbers((4, 5)), numbers((4,))
    refused(tmp_path / "x.nc", r"nir \(4, 5\), red \(4, 5\), or several of one shape as features")


# Breaks when a table of records passes for no array at all, and the user looks for one.
def test_records_are_refused_as_such(tmp_path):
    records = np.zeros((5, 1), [("mass", "f4"), ("charge", "f4")])
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["table"] = records[:, 0]
        file["wide"] = records
    message = r"it holds none, and records \(compound types\), which are no rows, in table, wide"
    with pytest.raises(SourceError, match=message):
        open_source(tmp_path / "x.h5")
    np.save(tmp_path / "x.npy", records)
    for location, dataset in (
        (tmp_path / "x.h5", "table"),
        (tmp_path / "x.h5", "wide"),
        (tmp_path / "x.npy", None),
        (records, None),
    ):
        with pytest.raises(
            SourceError, match="elements are records of mass, charge; store them as"
        ):
            open_source(location, dataset=dataset)
