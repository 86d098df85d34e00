"""Reading past the page cache: the same bytes, and nothing of it stays there."""

from __future__ import annotations

import errno
import mmap
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamkm.errors import ReadError
from streamkm.sources import open_source, pagecache, rowfile
from streamkm.sources.npy import open_npy
from streamkm.sources.zarr import direct
from tests.sources.contract import numbers, read, same_bytes
from tests.sources.zarr.arrays import CODECS, chunk_files, opened, sharding, store_array


def dropped(path: Path) -> None:
    """Take a file out of the page cache; skip where the filesystem has no other place for it."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    os.fdatasync(fd)
    for _ in range(20):
        pagecache.forget(fd, 0, 0)
        # Looking for a page may bring it in.
        if not pagecache.is_cached(fd, 0, 0):
            pagecache.forget(fd, 0, 0)
            os.close(fd)
            return
    pytest.skip("the filesystem keeps its files in memory")


def cached_pages(path: Path) -> int:
    with path.open("rb") as file:
        # Or looking for a page would bring in others.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        size = path.stat().st_size
        return sum(pagecache.is_cached(file.fileno(), at, 0) for at in range(0, size, 4096))


def spare(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let the machine have `most` bytes to spare."""
    for module in (pagecache, rowfile, direct):
        monkeypatch.setattr(module, "has_spare_memory", lambda size=0: size < most)


@pytest.fixture
def no_spare_memory(monkeypatch) -> None:
    spare(monkeypatch, 0)


@pytest.fixture
def no_direct(monkeypatch) -> None:
    """A filesystem that takes no O_DIRECT."""
    opened = os.open

    def without_direct(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", without_direct)
    monkeypatch.setattr(pagecache, "_refused", set())


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is cached")


# Breaks when a run fills the page cache with what it reads once, or when what was there goes.
@linux
@pytest.mark.parametrize("refused", [False, True], ids=["direct", "O_DIRECT refused"])
@pytest.mark.parametrize("keep_open", [True, False])
def test_what_is_read_does_not_stay(
    tmp_path: Path, request, caplog, no_spare_memory, refused: bool, keep_open: bool
) -> None:
    caplog.set_level("INFO", logger="streamkm")
    array = numbers((70_001, 33))
    np.save(tmp_path / "x.npy", array)
    dropped(tmp_path / "x.npy")
    if refused:
        request.getfixturevalue("no_direct")
    source = open_npy(tmp_path / "x.npy", keep_open=keep_open)
    for start, stop in ((0, 70_001), (5, 9_999), (31_007, 70_001), (69_000, 70_001)):
        assert same_bytes(read(source, start, stop), array[start:stop])
    source.close()
    # All but pages at borders of reads, and those of short ones.
    assert cached_pages(tmp_path / "x.npy") < 0.1 * array.nbytes / 4096
    said = [record.message for record in caplog.records]
    assert len(said) == int(refused)
    if refused:
        assert "x.npy: its filesystem takes no O_DIRECT" in said[0]


@linux
def test_what_was_cached_stays(tmp_path: Path, no_spare_memory) -> None:
    array = numbers((70_001, 33))
    np.save(tmp_path / "x.npy", array)
    dropped(tmp_path / "x.npy")
    (tmp_path / "x.npy").read_bytes()
    before = cached_pages(tmp_path / "x.npy")
    source = open_source(tmp_path / "x.npy")
    assert same_bytes(read(source, 0, 70_001), array)
    assert cached_pages(tmp_path / "x.npy") == before > 2000


@linux
def test_a_file_that_fits_stays(tmp_path: Path, monkeypatch) -> None:
    spare(monkeypatch, 20 << 20)
    array = numbers((70_001, 33))
    np.save(tmp_path / "x.npy", array)
    dropped(tmp_path / "x.npy")
    assert same_bytes(read(open_source(tmp_path / "x.npy"), 0, 70_001), array)
    assert cached_pages(tmp_path / "x.npy") > 2000


# Breaks when the end of a file that was cut passes for data, or for no error at all.
@linux
@pytest.mark.parametrize("left", [128, 4096, 5_000_000, 5_000_192])
def test_file_that_shrinks_while_it_is_read(tmp_path: Path, no_spare_memory, left: int) -> None:
    array = numbers((70_001, 33))
    np.save(tmp_path / "x.npy", array)
    source = open_source(tmp_path / "x.npy")
    assert same_bytes(read(source, 60_000, 70_001), array[60_000:])
    os.truncate(tmp_path / "x.npy", left)
    dropped(tmp_path / "x.npy")
    with pytest.raises(
        ReadError, match=rf"x\.npy: ends at byte {left} in the middle of rows 0:70001"
    ):
        read(source, 0, 70_001)


# Breaks when threads share a buffer, or a read begins or ends between the disk's blocks.
@linux
def test_reads_past_the_cache_from_threads(tmp_path: Path, monkeypatch, no_spare_memory) -> None:
    monkeypatch.setattr(pagecache, "DIRECT_BYTES", 1)
    monkeypatch.setattr(pagecache, "is_cached", lambda *_: False)
    array = numbers((70_001, 33))
    np.save(tmp_path / "x.npy", array)
    source = open_source(tmp_path / "x.npy")
    bounds = np.sort(np.random.default_rng(1).integers(0, 70_002, size=(60, 2)), axis=1)

    def right(bound: np.ndarray) -> bool:
        start, stop = (int(row) for row in bound)
        return same_bytes(read(source, start, stop), array[start:stop])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(right, bounds))


# Breaks when bytes at either end come from the wrong page, those beside the memory are overwritten,
# or the thread's buffer is used for all of them though the memory lies as the file does.
@linux
@pytest.mark.parametrize("n_bytes", [100_000, 15 * 4096])
def test_memory_that_lies_as_the_file_does_is_read_into(tmp_path: Path, n_bytes: int) -> None:
    stored = np.random.default_rng(0).integers(0, 256, n_bytes, np.uint8)
    stored.tofile(tmp_path / "x")
    fd = os.open(tmp_path / "x", os.O_RDONLY)
    with suppress(OSError):  # Some filesystems take no O_DIRECT.
        fd = os.open(tmp_path / "x", os.O_RDONLY | os.O_DIRECT)
    pages = np.frombuffer(mmap.mmap(-1, n_bytes + 16384), np.uint8)
    for offset in (0, 128, 4095, 4096, 8200):
        for size in (8192, 8193, 20480, n_bytes):
            pages.fill(7)
            skip = 4096 + offset % 4096
            size = min(size, len(pages) - skip - 1)
            memory, left = pages[skip : skip + size], max(n_bytes - offset, 0)
            pagecache._buffer().fill(9)
            assert pagecache._read_aligned(fd, [memory], size, offset) == min(size, left)
            assert np.array_equal(memory[:left], stored[offset : offset + size])
            assert set(pages[:skip]) | set(pages[skip + size :]) == {7}
            assert size > left or (pagecache._buffer()[2 * 4096 :] == 9).all()


# ---------------------------------------------------------------- chunks of Zarr

LAYOUTS: dict[str, dict[str, Any]] = {
    "chunks": {"chunks": (9_000, 32)},
    "cut along features": {"chunks": (9_000, 16)},
    "shards": {"chunks": (4_000, 32), "shards": (20_000, 32)},
    "shards cut along features": sharding((20_000, 32), (5_000, 16), "zstd"),
}


def layout(name: str, version: int) -> dict[str, Any]:
    if version == 2 and "shards" in name:
        pytest.skip("Zarr v2 has no shards")
    return LAYOUTS[name]


# Breaks when bytes of a chunk get lost at the borders of the disk's blocks or of the thread's
# buffer, or a run through a large array takes the page cache from everybody else.
@linux
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("version", "codec"), CODECS, ids=str)
def test_chunks_past_the_cache(
    tmp_path: Path, no_spare_memory, name: str, version: Any, codec: str
) -> None:
    array = numbers((41_003, 32))
    store_array(tmp_path / "x.zarr", version, codec, array, **layout(name, version))
    files = chunk_files(tmp_path / "x.zarr")
    n_cached = 0
    for attempt in range(8):
        time.sleep(0.1 * attempt)
        for file in files:
            dropped(file)
        source = opened(tmp_path / "x.zarr")
        for start, stop in ((0, 41_003), (5, 9_999), (17_007, 41_000), (41_000, 41_003)):
            assert same_bytes(read(source, start, stop), array[start:stop])
        # All but a page here and there, of headers, indices and ends of files. (On a busy machine
        # pages of what was just written may outlast `dropped`: then again, later.)
        n_cached = sum(map(cached_pages, files))
        if n_cached < 0.1 * array.nbytes / 4096:
            return
    pytest.fail(f"{n_cached} pages of {array.nbytes // 4096} are cached")


@linux
@pytest.mark.usefixtures("no_spare_memory")
@pytest.mark.parametrize("codec", ["blosc", "uncompressed"])
@pytest.mark.parametrize("name", ["chunks", "shards"])
def test_chunks_where_o_direct_is_refused(tmp_path, no_direct, caplog, codec, name) -> None:
    caplog.set_level("INFO", logger="streamkm")
    array = numbers((41_003, 32))
    store_array(tmp_path / "x.zarr", 3, codec, array, **layout(name, 3))
    files = chunk_files(tmp_path / "x.zarr")
    for file in files:
        dropped(file)
    assert same_bytes(read(opened(tmp_path / "x.zarr"), 0, 41_003), array)
    assert sum(map(cached_pages, files)) < 0.1 * array.nbytes / 4096
    assert sum("takes no O_DIRECT" in record.message for record in caplog.records) == 1


@linux
@pytest.mark.parametrize("fits", [True, False])
def test_chunks_that_were_cached_or_fit_stay(tmp_path: Path, monkeypatch, fits: bool) -> None:
    spare(monkeypatch, 20 << 20 if fits else 0)
    array = numbers((41_003, 32))
    store_array(tmp_path / "x.zarr", 3, "zstd", array, chunks=(9_000, 32))
    files = chunk_files(tmp_path / "x.zarr")
    for file in files:
        dropped(file)
        if not fits:
            file.read_bytes()
    assert same_bytes(read(opened(tmp_path / "x.zarr"), 0, 41_003), array)
    assert sum(map(cached_pages, files)) > 0.7 * array.nbytes / 4096


# Breaks when the end of a chunk that was cut passes for data.
@linux
@pytest.mark.usefixtures("no_spare_memory")
@pytest.mark.parametrize("left", [4096, 70_000, 131_072, 1_000_000])
@pytest.mark.parametrize("codec", ["zstd", "uncompressed", "blosc"])
def test_chunk_that_ends_too_early(tmp_path: Path, monkeypatch, codec: str, left: int) -> None:
    array = numbers((9_000, 32))
    store_array(tmp_path / "x.zarr", 3, codec, array, chunks=(9_000, 32))
    source = opened(tmp_path / "x.zarr")
    (file,) = chunk_files(tmp_path / "x.zarr")
    size = file.stat().st_size
    fstat = os.fstat
    os.truncate(file, left)
    dropped(file)

    class Longer:
        """As if the file shrank after its length was asked for."""

        def __init__(self, fd: int) -> None:
            self._stat = fstat(fd)

        def __getattr__(self, name: str) -> Any:
            return size if name == "st_size" else getattr(self._stat, name)

    monkeypatch.setattr(os, "fstat", Longer)
    with pytest.raises(ReadError, match=rf"the file ends at byte {left}, {size - left} bytes"):
        read(source, 0, 9_000)
