"""Files read by position: npy, raw, bin and vecs."""

from __future__ import annotations

import os
import resource
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamkm.errors import ReadError, SourceError
from streamkm.sources import DTYPES, RowRange, open_source
from streamkm.sources import npy as npy_module
from streamkm.sources import vecs as vecs_module
from streamkm.sources.base import ReadsTogether
from tests.sources.contract import Case, SourceContract, numbers, read, same_bytes

NPY: dict[str, tuple[tuple[int, ...], str, Any, tuple[int, int] | None]] = {
    "C": ((203, 5), "f4", "C", None),
    "F": ((203, 5), "f4", "F", None),
    "C, big-endian": ((203, 5), ">f4", "C", None),
    "F, big-endian": ((203, 5), ">f8", "F", None),
    "3-D": ((7, 29, 5), "f4", "C", None),
    "one feature": ((50, 1), "f4", "C", None),
    "one row": ((1, 50), "f4", "C", None),
    "version 2": ((203, 5), "f4", "C", (2, 0)),
    "version 3": ((203, 5), "f4", "C", (3, 0)),
    **{dtype: ((50, 3), dtype, "C", None) for dtype in DTYPES if dtype != "bfloat16"},
}


class TestNpy(SourceContract):
    @pytest.fixture(params=NPY)
    def case(self, request, tmp_path: Path) -> Case:
        shape, dtype, order, version = NPY[request.param]
        path = tmp_path / "x.npy"
        array = numbers(shape, dtype)

        def store(changed: np.ndarray) -> None:
            with path.open("wb") as stream:
                np.lib.format.write_array(stream, np.asarray(changed, order=order), version=version)

        store(array)
        name = array.dtype.newbyteorder("=").name
        return Case(array, name, store, lambda: open_source(path), tmp_path)


class TestNpyFortranInManyPieces(SourceContract):
    @pytest.fixture
    def case(self, tmp_path: Path, monkeypatch) -> Case:
        monkeypatch.setattr(npy_module, "FORTRAN_BLOCK_BYTES", 400)
        path = tmp_path / "x.npy"
        array = numbers((203, 5))

        def store(changed: np.ndarray) -> None:
            np.save(path, np.asfortranarray(changed))

        store(array)
        return Case(array, "float32", store, lambda: open_source(path), tmp_path)


class TestRaw(SourceContract):
    @pytest.fixture(params=[*DTYPES, ">f4", "offset"])
    def case(self, request, tmp_path: Path) -> Case:
        path = tmp_path / "x.bin"
        offset = 13 if request.param == "offset" else 0
        dtype = "float32" if request.param == "offset" else request.param
        array = numbers((101, 6), DTYPES.get(dtype, dtype))

        def store(changed: np.ndarray) -> None:
            path.write_bytes(b"x" * offset + changed.tobytes())

        store(array)
        return Case(
            array,
            "float32" if dtype == ">f4" else dtype,
            store,
            lambda: open_source(path, dtype=dtype, n_features=6, offset=offset),
            tmp_path,
        )


def write_bin(path: Path, array: np.ndarray) -> None:
    path.write_bytes(np.array(array.shape, "<u4").tobytes() + array.tobytes())


def write_vecs(path: Path, array: np.ndarray) -> None:
    length = np.array([array.shape[1]], "<i4").tobytes()
    path.write_bytes(b"".join(length + row.tobytes() for row in array))


class TestBin(SourceContract):
    @pytest.fixture(params=[(".fbin", "float32"), (".u8bin", "uint8"), (".i8bin", "int8")])
    def case(self, request, tmp_path: Path) -> Case:
        suffix, dtype = request.param
        path = tmp_path / f"x{suffix}"
        array = numbers((101, 6), dtype)
        write_bin(path, array)
        return Case(array, dtype, lambda a: write_bin(path, a), lambda: open_source(path), tmp_path)


class TestVecs(SourceContract):
    @pytest.fixture(params=[(".fvecs", "float32", 1 << 20), (".bvecs", "uint8", 100)])
    def case(self, request, tmp_path: Path, monkeypatch) -> Case:
        suffix, dtype, block_bytes = request.param
        monkeypatch.setattr(vecs_module, "BLOCK_BYTES", block_bytes)
        path = tmp_path / f"x{suffix}"
        array = numbers((101, 6), dtype)
        write_vecs(path, array)
        return Case(
            array, dtype, lambda a: write_vecs(path, a), lambda: open_source(path), tmp_path
        )


# ---------------------------------------------------------------- how it is read


# Breaks when a read makes a copy of its rows: the memory plan counts none.
@pytest.mark.parametrize("dtype", ["f4", ">f4"])
def test_npy_is_read_in_place(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "x.npy", numbers((40_000, 32), dtype))
    source = open_source(tmp_path / "x.npy")
    out = np.empty((40_000, 32), np.float32)
    tracemalloc.start()
    source.read(RowRange(0, 40_000), out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    source.close()
    assert peak < 100_000 < out.nbytes


# Breaks when a long read of a layout with scratch takes more than the spec says.
@pytest.mark.parametrize("kind", ["npy, F", "fvecs"])
def test_scratch_is_bounded(tmp_path: Path, kind: str) -> None:
    array = numbers((90_000, 32))
    if kind == "fvecs":
        path = tmp_path / "x.fvecs"
        write_vecs(path, array)
    else:
        path = tmp_path / "x.npy"
        np.save(path, np.asfortranarray(array))
    source = open_source(path)
    out = np.empty_like(array)
    tracemalloc.start()
    source.read(RowRange(0, 90_000), out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    source.close()
    assert same_bytes(out, array)
    assert peak < source.spec.scratch_bytes + 100_000 < out.nbytes


# Breaks when one preadv that returns less than asked is taken for the whole.
def test_short_reads_go_on(tmp_path: Path, monkeypatch) -> None:
    array = numbers((100, 4))
    np.save(tmp_path / "x.npy", array)
    source = open_source(tmp_path / "x.npy")
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, *at: whole(fd, [views[0][:7]], *at))
    assert same_bytes(read(source, 3, 90), array[3:90])
    out = np.empty_like(array[:30])
    assert isinstance(source, ReadsTogether)
    assert source.read_together([RowRange(50, 60), RowRange(0, 20)], out)
    assert same_bytes(out, np.concatenate([array[50:60], array[:20]]))
    source.close()


# Breaks when a file that shrank under a run reads as old memory or hangs.
def test_file_truncated_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, numbers((100, 4)))
    source = open_source(path)
    os.truncate(path, path.stat().st_size - 8)
    assert read(source, 0, 99).shape == (99, 4)
    with pytest.raises(ReadError, match=r"x\.npy.*rows 90:100.*truncated"):
        read(source, 90, 100)
    assert isinstance(source, ReadsTogether)
    with pytest.raises(ReadError, match=r"x\.npy.*rows 90:100.*truncated"):
        source.read_together([RowRange(0, 10), RowRange(90, 100)], np.empty((20, 4), np.float32))
    source.close()


# Breaks when a disk's error ends in a traceback of the operating system's.
def test_error_of_the_disk(tmp_path: Path, monkeypatch) -> None:
    np.save(tmp_path / "x.npy", numbers((100, 4)))
    source = open_source(tmp_path / "x.npy")

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(ReadError, match=r"x\.npy: rows 2:5 .*Input/output error"):
        read(source, 2, 5)
    source.close()


# Breaks when thousands of shards would pass the limit of descriptors.
def test_many_shards_hold_no_descriptor(tmp_path: Path) -> None:
    array = numbers((600, 3))
    for index, row in enumerate(array):
        np.save(tmp_path / f"{index}.npy", row[None])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = sum(1 for _ in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 50, hard))
    try:
        source = open_source(tmp_path)
        assert same_bytes(read(source, 0, 600), array)
        source.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Breaks when a shard that was replaced between two reads is mixed with the others.
def test_shard_replaced_under_a_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("streamkm.sources.registry.MAX_OPEN_SHARDS", 1)
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", numbers((10, 3)))
    source = open_source(tmp_path)
    path = tmp_path / "1.npy"
    np.save(tmp_path / "new", numbers((10, 3)))
    (tmp_path / "new.npy").rename(path)
    with pytest.raises(ReadError, match=r"1\.npy: has been replaced"):
        read(source, 0, 30)
    path.unlink()
    with pytest.raises(ReadError, match=r"1\.npy.*No such file"):
        read(source, 0, 30)
    with pytest.raises(ReadError, match=r"1\.npy"):
        source.fingerprint()
    source.close()


# ---------------------------------------------------------------- files that are wrong


def refused(path: Path, *parts: str, **options) -> None:
    """Opening says, in one line, the path and all `parts`."""
    with pytest.raises(SourceError) as caught:
        open_source(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message


def test_npy_truncated(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, numbers((100, 4)))
    os.truncate(path, 1000)
    refused(path, "truncated", "1728", "1000")


def test_npy_with_more_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    with path.open("wb") as stream:
        np.save(stream, numbers((10, 4)))
        stream.write(b"tail")
    source = open_source(path)
    assert source.notes() == [f"{path}: 4 bytes after the array are ignored"]
    source.close()


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUM", b"no array" * 9, b"\x93NUMPY\x09\x00" + b" " * 99]
)
def test_npy_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    refused(path, "no readable .npy file")


def test_npy_of_a_negative_shape(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    with path.open("wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": (-2, -3)}
        np.lib.format.write_array_header_1_0(stream, header)
    refused(path, "(-2, -3)")


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (np.zeros(5), "(5,)"),
        (np.zeros((0, 3)), "(0, 3)"),
        (np.zeros((3, 2), bool), "bool"),
        (np.zeros((3, 2), "c8"), "complex64"),
        (np.zeros((3, 2), "S4"), "S4"),
        (np.zeros((3, 2), [("a", "f4")]), "records of a"),
    ],
)
def test_npy_of_no_numbers(tmp_path: Path, array: np.ndarray, part: str) -> None:
    path = tmp_path / "x.npy"
    np.save(path, array)
    refused(path, part)


# Breaks when objects in a file are unpickled, which runs code of its author.
def test_npy_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.full((3, 2), None), allow_pickle=True)
    refused(path, "object")


def test_npy_fortran_order_of_three_dimensions(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.asfortranarray(numbers((3, 4, 5))))
    refused(path, "Fortran", "(3, 4, 5)", "ascontiguousarray")


def test_raw_of_a_wrong_size(tmp_path: Path) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(bytes(100))
    refused(path, "100 bytes", "24 bytes", "6 features", dtype="float32", n_features=6)
    refused(path, "0 bytes", "200", dtype="float32", n_features=6, offset=200)
    path.write_bytes(b"")
    refused(path, "0 bytes", dtype="float32", n_features=6)


def test_bin_whose_header_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "x.fbin"
    write_bin(path, numbers((10, 4)))
    os.truncate(path, 100)
    refused(path, "10 rows", "4 features", "168", "100")
    path.write_bytes(b"abc")
    refused(path, "3 bytes", "header")
    path.write_bytes(np.array([0, 4], "<u4").tobytes())
    refused(path, "empty", "(0, 4)")


def test_vecs_whose_lengths_disagree(tmp_path: Path) -> None:
    path = tmp_path / "x.fvecs"
    write_vecs(path, numbers((100, 4)))
    data = bytearray(path.read_bytes())

    path.write_bytes(data[:-3])
    refused(path, "1997 bytes", "20 bytes", "4 features")

    wrong = data.copy()
    wrong[-20:-16] = np.array([7], "<i4").tobytes()
    path.write_bytes(wrong)
    refused(path, "last row", "7 features", "4")

    wrong = data.copy()
    wrong[:4] = np.array([-1], "<i4").tobytes()
    path.write_bytes(wrong)
    refused(path, "row 0", "-1 features")

    path.write_bytes(b"\0")
    refused(path, "1 bytes")


# Breaks when lengths between the first and the last are skipped unseen.
def test_vecs_with_a_wrong_length_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "x.fvecs"
    array = numbers((100, 4))
    write_vecs(path, array)
    data = bytearray(path.read_bytes())
    data[57 * 20 : 57 * 20 + 4] = np.array([3], "<i4").tobytes()
    path.write_bytes(data)
    source = open_source(path)
    assert same_bytes(read(source, 0, 57), array[:57])
    assert same_bytes(read(source, 58, 100), array[58:])
    with pytest.raises(ReadError, match=r"x\.fvecs: row 57 says it has 3 features, row 0 has 4"):
        read(source, 40, 60)
    source.close()


def test_file_without_permission(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "x.fbin"
    write_bin(path, numbers((10, 4)))

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    # The tests may run as root, to whom every file is open.
    monkeypatch.setattr(os, "open", denied)
    refused(path, "Permission denied")
