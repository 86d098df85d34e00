"""Zarr arrays of both versions."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodecIndexLocation,
    TransposeCodec,
    ZstdCodec,
)
from zarr.storage import MemoryStore, WrapperStore

from streamkm.errors import ReadError, SourceError
from streamkm.sources import RowRange, open_source
from streamkm.sources import zarr as package
from streamkm.sources.base import DTYPES
from streamkm.sources.zarr import source as zarr_module
from tests.sources.contract import Case, SourceContract, numbers, read, same_bytes


def v2_codec(name: str, **options):
    import numcodecs

    return numcodecs.get_codec({"id": name, **options})


#: shape, dtype, options of zarr.create_array
LAYOUTS: dict[str, tuple[tuple[int, ...], str, dict[str, Any]]] = {
    "v3, uncompressed": ((211, 5), "f4", {"chunks": (50, 5), "compressors": None}),
    "v3, blosc": ((211, 5), "f4", {"chunks": (50, 5), "compressors": BloscCodec(cname="lz4")}),
    "v3, zstd": ((211, 5), "f4", {"chunks": (50, 5), "compressors": ZstdCodec()}),
    "v3, gzip": ((211, 5), "f4", {"chunks": (50, 5), "compressors": GzipCodec()}),
    "v3, features chunked": ((211, 5), "f4", {"chunks": (50, 2)}),
    "v3, rows chunked to the end": ((200, 5), "f4", {"chunks": (50, 5)}),
    "v3, one chunk": ((11, 5), "f4", {"chunks": (64, 8)}),
    "v3, sharded": ((211, 5), "f4", {"chunks": (10, 5), "shards": (50, 5)}),
    "v3, sharded, features chunked": ((211, 5), "f4", {"chunks": (10, 2), "shards": (50, 4)}),
    "v3, 3-D": ((7, 29, 5), "f4", {"chunks": (2, 10, 5)}),
    "v3, 4-D, sharded": (
        (3, 5, 11, 4),
        "f4",
        {"chunks": (1, 2, 3, 4), "shards": (2, 2, 6, 4)},
    ),
    "v3, big-endian": (
        (211, 5),
        "f4",
        {"chunks": (50, 5), "serializer": BytesCodec(endian="big")},
    ),
    "v3, transposed": (
        (211, 5),
        "f4",
        {"chunks": (50, 5), "filters": TransposeCodec(order=(1, 0))},
    ),
    "v3, sharded with checksums": (
        (211, 5),
        "f4",
        {"chunks": (10, 5), "shards": (50, 5), "compressors": [ZstdCodec(), Crc32cCodec()]},
    ),
    **{
        f"v3, {dtype}": ((60, 3), dtype, {"chunks": (25, 3)})
        for dtype in DTYPES
        if dtype not in ("bfloat16", "float32")
    },
    "v2, uncompressed": ((211, 5), "f4", {"chunks": (50, 5), "compressors": None}),
    "v2, blosc": (
        (211, 5),
        "f4",
        {"chunks": (50, 5), "compressors": v2_codec("blosc", cname="lz4")},
    ),
    "v2, zstd": ((211, 5), "f4", {"chunks": (50, 5), "compressors": v2_codec("zstd")}),
    "v2, gzip": ((211, 5), "f4", {"chunks": (50, 5), "compressors": v2_codec("gzip")}),
    "v2, features chunked": ((211, 5), "f4", {"chunks": (50, 2)}),
    "v2, 3-D": ((7, 29, 5), "f4", {"chunks": (2, 10, 5)}),
    "v2, big-endian": ((211, 5), ">f4", {"chunks": (50, 5)}),
    "v2, F order": ((211, 5), "f4", {"chunks": (50, 5), "order": "F"}),
    "v2, F order, 3-D, big-endian": ((7, 29, 5), ">i2", {"chunks": (2, 10, 3), "order": "F"}),
    "v2, nested keys": (
        (211, 5),
        "f4",
        {"chunks": (50, 5), "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    ),
}


#: Parts of the names of layouts that only zarr reads.
THROUGH_ZARR = ("checksums", "big-endian", "transposed", "F order")
DIRECT = [name for name in LAYOUTS if not any(part in name for part in THROUGH_ZARR)]


def through_zarr(monkeypatch) -> None:
    """Have all arrays read by zarr that are opened from now on."""
    monkeypatch.setattr(zarr_module, "direct_reader", lambda array, axes: None)


@pytest.fixture(params=["direct", "general"])
def way(request, monkeypatch) -> str:
    """Both ways of reading, where there are both."""
    if request.param == "general":
        through_zarr(monkeypatch)
    return str(request.param)


def create(store, name: str, shape: tuple[int, ...], dtype: str, **options) -> zarr.Array[Any]:
    """An array of one of `LAYOUTS`, over what is there."""
    version: Literal[2, 3] = 2 if name.startswith("v2") else 3
    return zarr.create_array(
        store, shape=shape, dtype=dtype, zarr_format=version, overwrite=True, **options
    )


class TestZarr(SourceContract):
    @pytest.fixture(
        params=[*((name, "direct") for name in DIRECT), *((name, "general") for name in LAYOUTS)],
        ids="-".join,
    )
    def case(self, request, tmp_path: Path, monkeypatch) -> Case:
        layout, way = request.param
        shape, dtype, options = LAYOUTS[layout]
        path = tmp_path / "x.zarr"
        array = numbers(shape, dtype)
        if layout in DIRECT and way == "general":
            through_zarr(monkeypatch)

        def store(changed: np.ndarray) -> None:
            create(path, layout, shape, dtype, **options)[...] = changed

        store(array)
        ending = "decoded in place" if way == "direct" else "through zarr"
        assert open_source(path).spec.layout.endswith(f", {ending}")
        name = array.dtype.newbyteorder("=").name
        return Case(array, name, store, lambda: open_source(path), tmp_path)


class TestZarrNestedInGroups(SourceContract):
    @pytest.fixture(params=[2, 3])
    def case(self, request, tmp_path: Path) -> Case:
        array = numbers((211, 5))
        root = zarr.open_group(tmp_path / "store.zarr", mode="w", zarr_format=request.param)
        root.create_array("other", shape=(3,), dtype="i4")
        nested = root.create_group("a").create_array(
            "b", shape=(211, 5), dtype="f4", chunks=(50, 5)
        )

        def store(changed: np.ndarray) -> None:
            nested[...] = changed

        store(array)
        return Case(
            array, "float32", store, lambda: open_source(tmp_path / "store.zarr/a/b"), tmp_path
        )


class TestZarrObjectInMemory(SourceContract):
    @pytest.fixture(params=["", "nested/x"])
    def case(self, request) -> Case:
        array = numbers((211, 5))
        stored = zarr.create_array(
            MemoryStore(), name=request.param or None, shape=(211, 5), dtype="f4", chunks=(50, 5)
        )

        def store(changed: np.ndarray) -> None:
            stored[...] = changed

        store(array)
        return Case(array, "float32", store, lambda: open_source(stored))


class TestZarrWithChunksNeverWritten(SourceContract):
    @pytest.fixture(params=[False, True], ids=["chunks", "shards"])
    def case(self, request, tmp_path: Path, way: str) -> Case:
        array = np.full((211, 5), 1.5, np.float32)
        array[60:90] = numbers((30, 5))
        options: dict[str, Any] = {"shards": (50, 5)} if request.param else {}
        chunks = (10, 5) if request.param else (50, 5)

        def store(changed: np.ndarray) -> None:
            stored = zarr.create_array(
                tmp_path / "x.zarr",
                shape=(211, 5),
                dtype="f4",
                chunks=chunks,
                fill_value=1.5,
                overwrite=True,
                **options,
            )
            stored[...] = changed

        store(array)
        return Case(array, "float32", store, lambda: open_source(tmp_path / "x.zarr"), tmp_path)

    # Breaks when half an upload passes for an array of zeros.
    def test_says_so(self, source) -> None:
        (note,) = source.notes()
        assert "4 of 5" in note
        assert "fill value 1.5" in note


# ---------------------------------------------------------------- layout


@pytest.mark.parametrize(
    ("name", "block_rows", "layout"),
    [
        ("v3, zstd", 50, "zarr v3, chunks of 50 x 5, zstd"),
        ("v2, gzip", 50, "zarr v2, chunks of 50 x 5, gzip"),
        ("v3, uncompressed", 50, "zarr v3, chunks of 50 x 5, uncompressed"),
        ("v3, sharded", 50, "zarr v3, chunks of 10 x 5, shards of 50 x 5, zstd"),
        ("v3, 3-D", 2 * 29, "zarr v3, chunks of 2 x 10 x 5, zstd"),
        ("v3, 4-D, sharded", 2 * 5 * 11, "zarr v3, chunks of 1 x 2 x 3 x 4"),
        ("v3, one chunk", 11, "zarr v3, chunks of 64 x 8"),
    ],
)
def test_block_is_what_decodes_together(
    tmp_path: Path, name: str, block_rows: int, layout: str
) -> None:
    shape, dtype, options = LAYOUTS[name]
    create(tmp_path, name, shape, dtype, **options)
    spec = open_source(tmp_path).spec
    assert spec.block_rows == block_rows
    assert layout in spec.layout


# Breaks when one block of an image stack would take all the memory.
def test_large_slabs_are_cut_along_the_next_axis(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(zarr_module, "SLAB_BYTES", 2 * 29 * 5 * 4 - 1)
    name = "v3, 3-D"
    shape, dtype, options = LAYOUTS[name]
    create(tmp_path, name, shape, dtype, **options)
    assert open_source(tmp_path).spec.block_rows == 10


# Breaks when a shard of gigabytes is one block.
def test_large_shards_are_read_by_inner_chunks(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(zarr_module, "SHARD_BYTES", 35 * 5 * 4)
    name = "v3, sharded"
    shape, dtype, options = LAYOUTS[name]
    create(tmp_path, name, shape, dtype, **options)
    assert open_source(tmp_path).spec.block_rows == 30


# Breaks when a range is cut into single rows: each selection costs a coroutine a chunk.
def test_read_of_a_slab_is_one_selection(tmp_path: Path, monkeypatch) -> None:
    through_zarr(monkeypatch)
    name = "v3, 3-D"
    shape, dtype, options = LAYOUTS[name]
    create(tmp_path, name, shape, dtype, **options)[...] = numbers(shape)
    source = open_source(tmp_path)
    selections = []
    whole = zarr.Array.get_basic_selection

    def counted(self, selection, **more):
        selections.append(selection)
        return whole(self, selection, **more)

    monkeypatch.setattr(zarr.Array, "get_basic_selection", counted)
    read(source, 0, source.spec.block_rows)
    assert len(selections) == 1


# Breaks when a block is decoded beside `out` as a whole, uncounted.
@pytest.mark.parametrize("shards", [None, (32_768, 32)])
def test_scratch_is_what_the_spec_says(tmp_path: Path, way: str, shards) -> None:
    array = numbers((65_536, 32))
    zarr.create_array(tmp_path, data=array, chunks=(8192, 32), shards=shards)
    source = open_source(tmp_path)
    rows = RowRange(0, source.spec.block_rows)
    out = np.empty((len(rows), 32), np.float32)
    source.read(rows, out)
    tracemalloc.start()
    source.read(rows, out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert same_bytes(out, array[: len(rows)])
    assert peak < source.spec.scratch_bytes + 200_000


# Breaks when attributes, which people add to later, or a copy's place keep a run from resuming.
def test_fingerprint_ignores_attributes(tmp_path: Path) -> None:
    stored = zarr.create_array(tmp_path, data=numbers((20, 3)))
    before = open_source(tmp_path).fingerprint()
    stored.attrs["note"] = "seen"
    assert open_source(tmp_path).fingerprint() == before
    assert open_source(stored).fingerprint() == before


# Breaks when a notebook, which has an event loop running, cannot fingerprint an array.
def test_fingerprint_within_an_event_loop() -> None:
    source = open_source(zarr.create_array(MemoryStore(), data=numbers((20, 3))))

    async def fingerprint() -> str:
        return source.fingerprint()

    assert asyncio.run(fingerprint()) == source.fingerprint()


# Breaks when a user of a remote store is not told how little is watched there.
def test_other_stores_are_watched_by_size() -> None:
    array = numbers((20, 3))
    stored = zarr.create_array(WrapperStore(MemoryStore()), shape=(20, 3), dtype="f4")
    source = open_source(stored)
    empty = source.fingerprint()
    assert "never written" in source.notes()[0]
    stored[...] = array
    assert source.fingerprint() != empty
    assert "total size" in source.notes()[0]
    assert same_bytes(read(source, 3, 9), array[3:9])


# ---------------------------------------------------------------- damage


def chunk_file(folder: Path) -> Path:
    """The largest file: a chunk or a shard."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "zarr.json"]
    return max(sorted(files), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    "name",
    [
        "v3, uncompressed", "v3, blosc", "v3, zstd", "v3, gzip", "v3, sharded",
        "v2, uncompressed", "v2, blosc", "v2, zstd", "v2, gzip",
    ],
)  # fmt: skip
@pytest.mark.parametrize("left", [0, 0.5])
def test_truncated_chunk(tmp_path: Path, way: str, name: str, left: float) -> None:
    shape, dtype, options = LAYOUTS[name]
    create(tmp_path / "x.zarr", name, shape, dtype, **options)[...] = numbers(shape, dtype)
    path = chunk_file(tmp_path / "x.zarr")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    source = open_source(tmp_path / "x.zarr")
    with pytest.raises(ReadError, match=r"x\.zarr: rows 0:211 cannot be read") as caught:
        read(source, 0, 211)
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)


# Breaks when a truncated shard passes for one whose chunks were never written: zarr's own answer.
@pytest.mark.parametrize("index", ["start", "end"])
@pytest.mark.parametrize("rows", [(0, 50), (0, 10), (40, 50)], ids=str)
@pytest.mark.parametrize("left", [0, 100, 200, 400])
@pytest.mark.parametrize("codec", [None, BloscCodec()], ids=["uncompressed", "blosc"])
def test_truncated_shard(
    tmp_path: Path, index: str, rows: tuple[int, int], left: int, codec: BloscCodec | None
) -> None:
    stored = zarr.create_array(
        tmp_path,
        shape=(50, 5),
        dtype="f4",
        chunks=(10, 5),
        shards={"shape": (50, 5), "index_location": ShardingCodecIndexLocation(index)},
        compressors=codec,
    )
    stored[...] = array = numbers((50, 5))
    path = chunk_file(tmp_path)
    path.write_bytes(path.read_bytes()[:left])
    for location in (tmp_path, stored):
        try:
            found = read(open_source(location), *rows)
        except ReadError:
            continue
        # Chunks before the cut are whole, where the index still is.
        assert same_bytes(found, array[slice(*rows)])


@pytest.mark.parametrize("sharded", [False, True])
def test_corrupt_chunk_with_a_checksum(tmp_path: Path, sharded: bool) -> None:
    array = numbers((100, 5))
    zarr.create_array(
        tmp_path / "x.zarr",
        data=array,
        chunks=(10, 5),
        shards=(50, 5) if sharded else None,
        compressors=Crc32cCodec(),
    )
    path = tmp_path / "x.zarr" / "c" / "1" / "0"
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(data)
    source = open_source(tmp_path / "x.zarr")
    first, after = (50, 60) if sharded else (10, 20)
    assert same_bytes(read(source, 0, first), array[:first])
    assert same_bytes(read(source, after, 100), array[after:])
    with pytest.raises(ReadError, match=f"rows {first}:{after} .*checksum"):
        read(source, first, after)


def test_corrupt_index_of_a_shard(tmp_path: Path) -> None:
    name = "v3, sharded"
    shape, dtype, options = LAYOUTS[name]
    create(tmp_path, name, shape, dtype, **options)[...] = numbers(shape, dtype)
    path = chunk_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    with pytest.raises(ReadError, match="cannot be read"):
        read(open_source(tmp_path), 0, 211)


# ---------------------------------------------------------------- what cannot be opened


def refused(location, *parts: str) -> None:
    with pytest.raises(SourceError) as caught:
        open_source(location)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("version", [2, 3])
def test_group_lists_its_arrays(tmp_path: Path, version: Literal[2, 3]) -> None:
    root = zarr.open_group(tmp_path / "g.zarr", mode="w", zarr_format=version)
    refused(tmp_path / "g.zarr", "g.zarr", "holds none")
    root.create_group("a").create_array("b", shape=(10, 2), dtype="f4")
    refused(tmp_path / "g.zarr", "is a Zarr group", "a/b (10, 2)", "open ", "g.zarr/a/b")
    refused(tmp_path / "g.zarr/a", "b (10, 2)")
    refused(tmp_path / "g.zarr/a/c", "a/c", "does not exist", "b (10, 2)")
    refused(tmp_path / "g.zarr/a/b/c", "does not exist", "is an array itself")
    refused(root, "is a Zarr group", "a/b")
    for index in range(7):
        root.create_array(f"n{index}", shape=(10, 2), dtype="f4")
    refused(tmp_path / "g.zarr", "...")


@pytest.mark.parametrize(
    ("shape", "dtype", "part"),
    [
        ((5,), "f4", "(5,)"),
        ((0, 3), "f4", "(0, 3)"),
        ((3, 2), "bool", "bool"),
        ((3, 2), "c8", "complex64"),
        ((3, 2), "S3", "S3"),
    ],
)
@pytest.mark.parametrize("version", [2, 3])
def test_arrays_of_no_numbers(tmp_path: Path, shape, dtype, part, version) -> None:
    kwargs: dict[str, Any] = {"chunks": tuple(max(1, extent) for extent in shape)}
    if dtype == "S3" and version == 3:
        pytest.skip("has no stable form in Zarr v3")
    zarr.create_array(tmp_path / "x.zarr", shape=shape, dtype=dtype, zarr_format=version, **kwargs)
    refused(tmp_path / "x.zarr", "x.zarr", part)


def test_folder_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "x.zarr").mkdir()
    refused(tmp_path / "x.zarr", "x.zarr", "zarr.json")
    (tmp_path / "x.zarr" / "zarr.json").write_text("{")
    refused(tmp_path / "x.zarr", "x.zarr", "cannot be opened as Zarr")
    (tmp_path / "y.zarr").write_text("")
    refused(tmp_path / "y.zarr", "y.zarr", "is a file")


# Breaks when every command, also those that read no Zarr array, waits for zarr's import.
def test_zarr_and_torch_are_not_imported(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbers((5, 2)))
    code = (
        "import sys, streamkm.sources as s; "
        f"s.open_source({str(tmp_path / 'x.npy')!r}).close(); "
        "sys.exit('zarr' in sys.modules or 'torch' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


# Breaks when a name that other packages use is not to be had from the package itself.
def test_the_package_gives_its_names_when_they_are_used() -> None:
    assert {getattr(package, name).__name__ for name in package.__all__} == set(package.__all__)
    with pytest.raises(AttributeError, match=r"streamkm\.sources\.zarr.*'ZarrSource'"):
        _ = package.ZarrSource
