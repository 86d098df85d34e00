"""Zarr chunks decoded in place: right where zarr is right, and safe where it is not."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import os
import subprocess
import sys
import threading
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import google_crc32c
import numcodecs
import numcodecs.blosc
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import (
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)
from zarr.storage import LocalStore, MemoryStore, WrapperStore

from streamkm.errors import ReadError
from streamkm.sources import RowRange, open_source
from streamkm.sources.zarr import shards
from streamkm.sources.zarr.decode import DECODERS
from tests.sources.contract import numbers, read, same_bytes
from tests.sources.zarr.arrays import CODECS, V3, chunk_files, opened, sharding, store_array

# ---------------------------------------------------------------- equal to zarr


@st.composite
def layouts(draw):
    ndim = draw(st.integers(2, 4))
    shape = tuple(draw(st.integers(1, 12 if ndim < 4 else 5)) for _ in range(ndim))
    chunks = tuple(draw(st.integers(1, extent + 3)) for extent in shape)
    if draw(st.booleans()):
        chunks = (*chunks[:-1], shape[-1])
    version, codec = draw(st.sampled_from(CODECS))
    options: dict[str, Any] = {"chunks": chunks}
    if version == 3 and draw(st.booleans()):
        shard = tuple(draw(st.integers(1, 4)) * chunk for chunk in chunks)
        place = draw(st.sampled_from(["start", "end"]))
        index = [BytesCodec(), *([Crc32cCodec()] if draw(st.booleans()) else [])]
        options |= sharding(shard, chunks, codec, index_location=place, index_codecs=index)
    dtype = draw(st.sampled_from(["f4", "f8", "f2", "u1", "i2", "i8"]))
    options["fill_value"] = draw(st.sampled_from([0, 1, 7] + [None] * (version == 2)))
    if draw(st.booleans()):
        separator = draw(st.sampled_from([".", "/"]))
        name = "v2" if version == 2 else draw(st.sampled_from(["v2", "default"]))
        options["chunk_key_encoding"] = {"name": name, "separator": separator}
    n = int(np.prod(shape[:-1]))
    pairs = st.tuples(st.integers(0, n), st.integers(0, n))
    return version, codec, shape, dtype, options, draw(st.lists(pairs, min_size=1, max_size=6))


@settings(max_examples=150, deadline=None)
@given(case=layouts(), absent=st.sets(st.integers(0, 20)))
def test_equals_zarr(case, absent) -> None:
    version, codec, shape, dtype, options, ranges = case
    with TemporaryDirectory() as folder:
        path = Path(folder)
        stored = store_array(path, version, codec, numbers(shape, dtype), **options)
        files = chunk_files(path)
        for index in absent & set(range(len(files))):
            files[index].unlink()
        expected = np.asarray(stored[...]).reshape(-1, shape[-1])
        source = opened(path)
        for one, other in [*ranges, (0, len(expected))]:
            start, stop = min(one, other), max(one, other)
            assert same_bytes(read(source, start, stop), expected[start:stop])
        source.close()


# Breaks when threads share a buffer, or a thread's is kept too short for another array.
def test_threads_that_read_many_arrays(tmp_path: Path) -> None:
    arrays, sources = [], []
    for index, (version, codec) in enumerate(CODECS):
        data = numbers((997, 3 + index))
        store_array(tmp_path / str(index), version, codec, data, chunks=(100 + 20 * index, 4))
        arrays.append(data)
        sources.append(opened(tmp_path / str(index)))

    def right(seed: int) -> bool:
        draws = np.random.default_rng(seed)
        index = int(draws.integers(len(sources)))
        start, stop = (int(row) for row in np.sort(draws.integers(0, 998, 2)))
        return same_bytes(read(sources[index], start, stop), arrays[index][start:stop])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, range(600)))


# Breaks when Blosc's own threads, turned on by somebody, meet several readers.
@pytest.mark.parametrize("use_threads", [None, True, False])
def test_main_thread_beside_others(tmp_path: Path, monkeypatch, use_threads) -> None:
    data = numbers((40_000, 32))
    store_array(tmp_path, 3, "blosc", data, chunks=(10_000, 32))
    source = opened(tmp_path)
    assert numcodecs.blosc.use_threads is False  # as zarr's import leaves it
    monkeypatch.setattr(numcodecs.blosc, "use_threads", use_threads)
    done = threading.Event()

    def read_on() -> bool:
        right = True
        while not done.is_set():
            right &= same_bytes(read(source, 5_000, 30_000), data[5_000:30_000])
        return right

    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(read_on) for _ in range(3)]
        mine = [same_bytes(read(source, 0, 40_000), data) for _ in range(8)]
        done.set()
        assert all(mine)
        assert all(other.result() for other in others)


# ---------------------------------------------------------------- parts of a chunk


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("codec", ["blosc", "uncompressed"])
@pytest.mark.parametrize("features", [32, 48], ids=["whole", "cut along features"])
def test_a_part_costs_a_part(tmp_path: Path, version, codec: str, features: int) -> None:
    data = numbers((50_000, features))
    store_array(tmp_path, version, codec, data, chunks=(40_000, 32))
    source = opened(tmp_path)
    piece = source.spec.piece_rows
    assert 0 < piece <= 4096
    draws = np.random.default_rng(1)
    for start in [0, piece, 39_900, 39_999, 49_990, *draws.integers(0, 50_000, 40).tolist()]:
        for length in (1, piece, int(draws.integers(1, 30_000))):
            stop = min(start + length, 50_000)
            assert same_bytes(read(source, start, stop), data[start:stop])
    # Bytes elsewhere in the chunk are not looked at.
    if codec == "blosc":
        file = chunk_files(tmp_path)[0]
        whole = file.read_bytes()
        file.write_bytes(whole[:-8] + bytes(8))
        assert same_bytes(read(source, piece, 2 * piece), data[piece : 2 * piece])
        table = np.frombuffer(whole, "<i4", 8, 16)
        file.write_bytes(whole[: table[1]] + bytes(64) + whole[table[1] + 64 :])
        with pytest.raises(ReadError, match=r"chunk (c/)?0.0 is corrupt"):
            read(source, 0, 15_000)


# Breaks when blocks are taken to lie in their order, as one thread writes them.
def test_blocks_in_any_order(tmp_path: Path) -> None:
    data = numbers((60_000, 16))
    store_array(tmp_path, 2, "blosc", data, chunks=(60_000, 16))
    (file,) = chunk_files(tmp_path)
    whole = file.read_bytes()
    n_blocks = -(-data.nbytes // int.from_bytes(whole[8:12], "little"))
    starts = np.frombuffer(whole, "<i4", n_blocks, 16)
    bodies = np.split(np.frombuffer(whole, np.uint8), starts)
    order = np.random.default_rng(0).permutation(n_blocks)
    places = np.empty(n_blocks, "<i4")
    places[order] = starts[0] + np.concatenate(
        ([0], np.cumsum([len(bodies[i + 1]) for i in order])[:-1])
    )
    file.write_bytes(
        whole[:16] + places.tobytes() + b"".join(bodies[i + 1].tobytes() for i in order)
    )
    source = opened(tmp_path)
    for start in range(0, 60_000, 7_919):
        assert same_bytes(read(source, start, start + 900), data[start : start + 900])


# Breaks when what Blosc did not compress goes through memory twice.
@pytest.mark.parametrize("version", [2, 3])
def test_what_does_not_compress_is_read_into_place(tmp_path: Path, monkeypatch, version) -> None:
    codec = numcodecs.Blosc("lz4", clevel=0) if version == 2 else V3["blosc, not compressible"]
    data = numbers((4_100, 16))
    store_array(tmp_path, version, "uncompressed", data, chunks=(1_000, 16), compressors=codec)
    source = opened(tmp_path)
    monkeypatch.delattr(numcodecs.blosc, "decompress")
    assert same_bytes(read(source, 0, 4_000), data[:4_000])


# Breaks when a chunk of just that length is taken for one that is stored as it is.
@pytest.mark.parametrize("place", [0, 2, 4, 12], ids=["version", "flag", "decoded", "stored"])
def test_headers_of_what_does_not_compress(tmp_path: Path, place: int) -> None:
    data = numbers((1_000, 16))
    store_array(tmp_path, 3, "blosc, not compressible", data, chunks=(1_000, 16))
    (file,) = chunk_files(tmp_path)
    changed = bytearray(file.read_bytes())
    assert len(changed) == 16 + data.nbytes
    changed[place] ^= 2
    file.write_bytes(changed)
    with pytest.raises(ReadError, match=r"chunk c/0/0 is corrupt"):
        read(opened(tmp_path), 0, 1_000)


# Breaks when a table that lies makes Blosc read or write elsewhere.
def test_tables_that_lie(tmp_path: Path) -> None:
    data = numbers((60_000, 16))
    store_array(tmp_path, 3, "blosc", data, chunks=(60_000, 16))
    (file,) = chunk_files(tmp_path)
    whole = file.read_bytes()
    source = opened(tmp_path)
    memory = np.full((1004, 16), 7, np.float32)
    draws = np.random.default_rng(1)
    refused = 0
    for _ in range(200):
        changed = bytearray(whole)
        place = int(draws.integers(0, 40))
        changed[place : place + 4] = draws.integers(0, 256, 4, np.uint8).tobytes()
        file.write_bytes(changed)
        start = int(draws.integers(0, 59_000))
        try:
            source.read(RowRange(start, start + 1000), memory[2:-2])
        except ReadError:
            refused += 1
        assert (memory[:2] == 7).all()
        assert (memory[-2:] == 7).all()
    assert refused > 50


# ---------------------------------------------------------------- shards


def sharded(path: Path, codec: str, data: np.ndarray, **options: Any) -> Path:
    """Store `data` as one shard with its index at the start, of inner chunks of 10 rows."""
    layout = {"shape": data.shape, "index_location": "start", **options}
    store_array(path, 3, codec, data, chunks=(10, *data.shape[1:]), shards=layout)
    (file,) = chunk_files(path)
    return file


def with_index(stored: bytes, change: Any) -> bytes:
    """A shard of 10 inner chunks whose index is another one, with its checksum."""
    index = np.frombuffer(stored, "<u8", 20).reshape(10, 2).copy()
    change(index)
    raw: bytes = index.tobytes()
    checksum = int(google_crc32c.value(raw))
    return raw + checksum.to_bytes(4, "little") + stored[164:]


# Breaks when inner chunks are read one by one, or more than their neighbours with them.
@pytest.mark.parametrize("codec", ["zstd", "uncompressed"])
def test_neighbours_are_read_together(tmp_path: Path, monkeypatch, codec: str) -> None:
    data = numbers((100, 6))
    file = sharded(tmp_path, codec, data)
    source = opened(tmp_path)
    sizes: list[int] = []
    preadv = os.preadv

    def counted(fd: int, views: Any, offset: int, flags: int = 0) -> int:
        if not flags:  # With them it looks for a page in the cache.
            sizes.append(sum(map(len, views)))
        return preadv(fd, views, offset, flags)

    monkeypatch.setattr(os, "preadv", counted)
    assert same_bytes(read(source, 20, 60), data[20:60])
    index = np.frombuffer(file.read_bytes(), "<u8", 20).reshape(10, 2)
    assert sizes == [164, int(index[2:6, 1].sum())]
    sizes.clear()
    assert same_bytes(read(source, 0, 100), data)
    assert sizes == [int(index[:, 1].sum())]  # the index is known by now
    sizes.clear()
    monkeypatch.setattr(shards, "MERGE_BYTES", int(index[:3, 1].sum()))
    assert same_bytes(read(source, 0, 100), data)
    assert len(sizes) >= 4


# Breaks when a shard that was written anew is read by the index of the old one.
def test_index_of_a_shard_that_changes(tmp_path: Path) -> None:
    data = numbers((100, 6), "i4")
    file = sharded(tmp_path / "x", "gzip", data)
    other = sharded(tmp_path / "y", "gzip", data // 1000)
    source = opened(tmp_path / "x")
    assert same_bytes(read(source, 0, 100), data)
    file.write_bytes(other.read_bytes())
    assert same_bytes(read(source, 0, 100), data // 1000)


HOSTILE_INDICES = {
    "behind the end": (lambda index: index.__setitem__((3, 0), 1 << 40), "puts its chunk number 3"),
    "too long": (lambda index: index.__setitem__((3, 1), 1 << 40), "puts its chunk number 3"),
    "sum too large": (lambda i: i.__setitem__(3, (2**64 - 9, 10)), "puts its chunk number 3"),
    "half absent": (lambda i: i.__setitem__((3, 1), 2**64 - 1), "puts its chunk number 3"),
    "within the index": (lambda index: index.__setitem__((3, 0), 12), "puts its chunk number 3"),
    "over another": (lambda i: i.__setitem__((3, 0), i[2, 0] + 1), "number 2 and 3 in one place"),
    "another's": (lambda i: i.__setitem__(3, i[7]), "number 3 and 7 in one place"),
    "too short": (lambda i: i.__setitem__((3, 1), i[3, 1] - 9), r"inner chunk \(3, 0\) in shard"),
    "nothing": (lambda index: index.__setitem__((3, 1), 0), r"inner chunk \(3, 0\) in shard"),
}


# Breaks when an index is believed: rows of elsewhere, or fill values, pass for data.
@pytest.mark.parametrize(("change", "message"), HOSTILE_INDICES.values(), ids=HOSTILE_INDICES)
@pytest.mark.parametrize("codec", ["zstd", "uncompressed", "blosc", "gzip"])
def test_index_that_lies(tmp_path: Path, codec: str, change, message: str) -> None:
    data = numbers((100, 6))
    file = sharded(tmp_path / "x.zarr", codec, data)
    source = opened(tmp_path / "x.zarr")
    file.write_bytes(with_index(file.read_bytes(), change))
    with pytest.raises(
        ReadError, match=rf"x\.zarr: rows 0:100 cannot be read.*{message}"
    ) as caught:
        read(source, 0, 100)
    assert "shard c/0/0" in str(caught.value) or "chunk c/0/0" in str(caught.value)


def test_checksum_of_an_index(tmp_path: Path) -> None:
    file = sharded(tmp_path, "zstd", numbers((100, 6)))
    stored = bytearray(file.read_bytes())
    stored[20] ^= 1
    file.write_bytes(stored)
    with pytest.raises(ReadError, match="crc32c of the shard's index is wrong"):
        read(opened(tmp_path), 0, 10)


# Breaks when an inner chunk is decoded to wherever its bytes lead: a decompression bomb.
@pytest.mark.parametrize("codec", ["zstd", "blosc", "gzip", "numcodecs.lz4", "numcodecs.zlib"])
@pytest.mark.parametrize("rows", [9, 11, 100_000], ids=["short", "long", "bomb"])
@pytest.mark.parametrize("is_sharded", [False, True], ids=["chunk", "shard"])
def test_chunk_that_expands_to_another_size(tmp_path: Path, codec, rows, is_sharded) -> None:
    data = np.zeros((100, 60), np.int32)
    file = sharded(tmp_path / "x", codec, data + 1)
    store_array(tmp_path / "y", 3, codec, data[:10] + 1, chunks=(10, 60))
    store_array(tmp_path / "z", 3, codec, np.ones((rows, 60), np.int32), chunks=(rows, 60))
    (wrong,) = chunk_files(tmp_path / "z")
    bad = wrong.read_bytes()
    if is_sharded:
        end = file.stat().st_size

        def append(index: np.ndarray) -> None:
            index[4] = end, len(bad)

        file.write_bytes(with_index(file.read_bytes(), append) + bad)
        path, match = tmp_path / "x", r"inner chunk \(4, 0\) in shard c/0/0"
    else:
        chunk_files(tmp_path / "y")[0].write_bytes(bad)
        path, match = tmp_path / "y", "chunk c/0/0"
    source = opened(path)
    out = np.empty((source.spec.n_rows, 60), np.int32)
    tracemalloc.start()
    with pytest.raises(ReadError, match=match):
        source.read(RowRange(0, len(out)), out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < source.spec.scratch_bytes + 200_000


# ---------------------------------------------------------------- which way


@pytest.mark.parametrize(
    "options",
    [
        {"shards": (20, 4), "compressors": [ZstdCodec(), Crc32cCodec()]},
        {"shards": (20, 4), "serializer": BytesCodec(endian="big")},
        {"shards": (20, 4), "filters": TransposeCodec(order=(1, 0))},
        sharding((20, 4), (10, 4), "zstd", index_codecs=[BytesCodec(endian="big")]),
        sharding((20, 4), (20, 4), "zstd", codecs=[ShardingCodec(chunk_shape=(10, 4))]),
        {"serializer": BytesCodec(endian="big")},
        {"filters": TransposeCodec(order=(1, 0))},
        {"compressors": Crc32cCodec()},
        {"compressors": [ZstdCodec(), Crc32cCodec()]},
        {"compressors": [ZstdCodec(), GzipCodec()]},
        {"zarr_format": 2, "order": "F"},
        {"zarr_format": 2, "dtype": ">f4"},
        {"zarr_format": 2, "filters": numcodecs.Delta("f4")},
        {"zarr_format": 2, "compressors": numcodecs.BZ2()},
    ],
    ids=str,
)
def test_others_are_left_to_zarr(tmp_path: Path, options: dict[str, Any]) -> None:
    settings = {"dtype": "f4", **options}
    stored = zarr.create_array(tmp_path, shape=(50, 4), **{"chunks": (10, 4), **settings})
    stored[...] = numbers((50, 4))
    source = open_source(tmp_path)
    assert source.spec.layout.endswith(", through zarr")
    # As zarr reads it: differences of floats do not add up to the same again.
    expected = np.asarray(stored[3:47]).astype("f4")
    assert same_bytes(read(source, 3, 47), expected)


# Breaks when files are read around a store that says something else of them.
def test_other_stores_are_left_to_zarr(tmp_path: Path) -> None:
    class Other(LocalStore):
        pass

    for store in (MemoryStore(), WrapperStore(MemoryStore()), Other(tmp_path)):
        array = zarr.create_array(store, shape=(50, 4), dtype="f4")
        assert open_source(array).spec.layout.endswith(", through zarr")


# Breaks when the order in memory, which v3 does not store, is taken for the stored one.
def test_order_in_memory_is_of_no_matter(tmp_path: Path) -> None:
    data = numbers((50, 4))
    stored = zarr.create_array(
        tmp_path, data=data, chunks=(20, 4), config={"order": "F", "write_empty_chunks": True}
    )
    source = open_source(stored)
    assert source.spec.layout.endswith(", decoded in place")
    assert same_bytes(read(source, 0, 50), data)


# ---------------------------------------------------------------- damage


def damaged(path: Path, codec: str, version: Literal[2, 3], rows: int) -> tuple[Any, Path, bytes]:
    # Compressible in part, so that every kind of block and sequence is there.
    data = np.repeat(numbers((rows, 4), "i4"), 2, axis=1)
    data[rows // 2 :] //= 1 << 24
    store_array(path, version, codec, data, chunks=(rows, 8))
    (file,) = chunk_files(path)
    return data, file, file.read_bytes()


@pytest.mark.parametrize(("version", "codec"), CODECS, ids=str)
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "part"])
def test_every_truncation_is_refused(tmp_path: Path, version, codec: str, cut: bool) -> None:
    data, file, whole = damaged(tmp_path / "x.zarr", codec, version, 40)
    source = opened(tmp_path / "x.zarr")
    stop = 30 if cut else 40
    sizes = {*range(40), *range(40, len(whole), 29), *range(len(whole) - 24, len(whole))}
    for size in sorted(sizes & set(range(len(whole)))):
        file.write_bytes(whole[:size])
        with pytest.raises(ReadError, match=rf"x\.zarr: rows 0:{stop} cannot .* chunk (c/)?0.0 is"):
            read(source, 0, stop)
    file.write_bytes(whole)
    assert same_bytes(read(source, 0, stop), data[:stop])


# Breaks when a size in a header is believed: memory after `out`, or before it, is written.
@pytest.mark.parametrize(("version", "codec"), CODECS, ids=str)
def test_flipped_bits_give_an_error_or_data(tmp_path: Path, version, codec: str) -> None:
    _, file, whole = damaged(tmp_path, codec, version, 300)
    source = opened(tmp_path)
    memory = np.full((304, 8), 0x5A5A5A5A, np.int32)
    draws = np.random.default_rng(1)
    places = {*range(min(48, len(whole))), *draws.integers(0, len(whole), 60).tolist()}
    refused = 0
    for place, bits in itertools.product(sorted(places), (1, 0x80, 0xFF)):
        changed = bytearray(whole)
        changed[place] ^= bits
        file.write_bytes(changed)
        try:
            source.read(RowRange(0, 300), memory[2:-2])
        except ReadError:
            refused += 1
        assert (memory[:2] == 0x5A5A5A5A).all()
        assert (memory[-2:] == 0x5A5A5A5A).all()
    assert (refused > 0) == (codec != "uncompressed")
    if codec in {"gzip", "zlib", "numcodecs.zlib", "zstd with a checksum"}:
        file.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
        with pytest.raises(ReadError):
            read(source, 0, 300)


# Breaks when what the last chunk left in the thread's buffer passes for this one's end.
@pytest.mark.parametrize(("version", "codec"), CODECS, ids=str)
@pytest.mark.parametrize("rows", [90, 110, 200])
@pytest.mark.parametrize("stop", [100, 60], ids=["whole", "part"])
def test_chunk_of_another_size_is_refused(
    tmp_path: Path, version, codec: str, rows: int, stop: int
) -> None:
    store_array(tmp_path / "x", version, codec, numbers((100, 5)), chunks=(100, 5))
    store_array(tmp_path / "y", version, codec, numbers((rows, 5)), chunks=(rows, 5))
    source = opened(tmp_path / "x")
    read(source, 0, stop)
    (file,), (other,) = chunk_files(tmp_path / "x"), chunk_files(tmp_path / "y")
    file.write_bytes(other.read_bytes())
    with pytest.raises(ReadError, match="cannot be read"):
        read(source, 0, stop)


def test_chunk_that_is_far_too_long_is_not_read(tmp_path: Path) -> None:
    store_array(tmp_path, 3, "zstd", numbers((100, 5)), chunks=(100, 5))
    with chunk_files(tmp_path)[0].open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(ReadError, match="1099511627776 bytes are stored"):
        read(opened(tmp_path), 0, 100)


# Breaks when a disk that went away passes for chunks that were never written.
def test_array_that_is_gone(tmp_path: Path) -> None:
    store_array(tmp_path / "x", 3, "zstd", numbers((100, 5)), chunks=(50, 5))
    source = opened(tmp_path / "x")
    (tmp_path / "x").rename(tmp_path / "y")
    with pytest.raises(ReadError, match=r"No such file.*chunk c/0/0"):
        read(source, 0, 100)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    store_array(tmp_path, 3, "zstd", numbers((100, 5)), chunks=(50, 5))
    file = chunk_files(tmp_path)[1]
    file.unlink()
    file.mkdir()
    with pytest.raises(ReadError, match=r"is no regular file.*chunk c/1/0"):
        read(opened(tmp_path), 0, 100)


# ---------------------------------------------------------------- decoders


def decoded(codec: str, stored: bytes, size: int) -> bytes:
    out = np.full(size, 0xA5, np.uint8)
    DECODERS[codec](np.frombuffer(stored, np.uint8), out)
    return out.tobytes()


# Breaks when a file of several members or frames, as parallel writers make, is cut short.
def test_several_members_and_frames() -> None:
    one, two = bytes(range(256)) * 3000, b"abc" * 100_000
    whole = one + two
    members = gzip.compress(one) + bytes(7) + gzip.compress(two) + bytes(5)
    assert decoded("gzip", members, len(whole)) == whole
    frames = numcodecs.Zstd().encode(one) + numcodecs.Zstd().encode(two)
    assert decoded("zstd", frames, len(whole)) == whole
    for codec, stored in (("gzip", members), ("zstd", frames)):
        for size in (len(whole) - 1, len(whole) + 1, len(one)):
            with pytest.raises((ValueError, RuntimeError)):
                decoded(codec, stored, size)
    with pytest.raises(zlib.error):
        decoded("gzip", gzip.compress(one) + b"more", len(one))


@pytest.mark.parametrize("size", [1, 255, 256, 300, 65_791, 65_792, 1 << 20, 1 << 24])
@pytest.mark.parametrize("codec", DECODERS)
def test_sizes_with_every_form_of_header(codec: str, size: int) -> None:
    data = np.random.default_rng(size).integers(0, 4, size, np.uint8).tobytes()
    stored = numcodecs.get_codec({"id": codec}).encode(data)
    assert decoded(codec, stored, size) == data
    with pytest.raises((ValueError, RuntimeError, EOFError)):
        decoded(codec, stored, size + 1)
    if size > 1:
        with pytest.raises((ValueError, RuntimeError)):
            decoded(codec, stored, size - 1)


# Breaks when a frame as a stream writes it, which does not give its size, is refused.
def test_frame_without_its_size() -> None:
    data = bytes(range(200)) * 2
    # A header with a window and no size; one raw block, the last.
    frame = b"\x28\xb5\x2f\xfd\x00\x58" + (len(data) << 3 | 1).to_bytes(3, "little") + data
    assert decoded("zstd", frame, len(data)) == data
    for size in (len(data) - 1, len(data) + 1):
        with pytest.raises(RuntimeError):
            decoded("zstd", frame, size)


@pytest.mark.parametrize("codec", DECODERS)
@given(stored=st.binary(max_size=200), size=st.integers(1, 300))
def test_any_bytes_are_refused_or_decoded(codec: str, stored: bytes, size: int) -> None:
    memory = np.zeros(size + 64, np.uint8)
    with contextlib.suppress(ValueError, RuntimeError, EOFError, MemoryError, zlib.error):
        DECODERS[codec](np.frombuffer(stored, np.uint8), memory[32:-32])
    assert not memory[:32].any()
    assert not memory[-32:].any()


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(("version", "codec"), CODECS, ids=str)
@pytest.mark.parametrize("shape", [(65_536, 32), (60_000, 32), (65_536, 30)], ids=str)
def test_scratch_is_what_the_spec_says(tmp_path: Path, version, codec: str, shape) -> None:
    data = numbers(shape)
    store_array(tmp_path, version, codec, data, chunks=(8192, 32))
    source = opened(tmp_path)
    size = source.spec.block_rows
    out = np.empty((size, shape[1]), np.float32)

    def read_all() -> None:
        for rows in RowRange(0, shape[0]).split(size):
            source.read(rows, out[: len(rows)])

    with ThreadPoolExecutor(1) as pool:
        pool.submit(source.read, RowRange(0, 1), out[:1]).result()  # what is made once
        pool.submit(source.close).result()  # and the thread's scratch released
        source = opened(tmp_path)
        tracemalloc.start()
        pool.submit(read_all).result()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < source.spec.scratch_bytes + 50_000
    assert same_bytes(read(source, 0, shape[0]), data)


# Breaks (hangs) when a process is forked while another thread looks for an index.
def test_a_forked_child_does_not_wait_for_a_thread_of_its_parent(tmp_path: Path) -> None:
    code = """
import os, signal, sys, threading
import numpy as np
from streamkm.sources import open_source
from streamkm.sources.base import RowRange
from streamkm.sources.zarr import shards

source, out = open_source(sys.argv[1]), np.empty((8, 2), np.float32)
held, done = threading.Event(), threading.Event()

def hold():
    with shards._lock:
        held.set()
        done.wait(60)

thread = threading.Thread(target=hold)
thread.start()
held.wait(60)
child = os.fork()
if child == 0:
    signal.alarm(30)
    source.read(RowRange(0, 8), out)
    os._exit(int(out.sum()))
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
done.set()
thread.join()
sys.exit(status)
"""
    ones = np.ones((8, 2), np.float32)
    zarr.create_array(tmp_path / "x.zarr", data=ones, chunks=(2, 2), shards=(4, 2))
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "x.zarr")]
    assert subprocess.run(command, check=False, timeout=120).returncode == 16
