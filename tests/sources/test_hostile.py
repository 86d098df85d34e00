"""Files from strangers: refused in one line or read, and nothing run, exhausted or left.

``scripts/fuzz`` feeds the same parsers for as long as asked, led by coverage.
"""

from __future__ import annotations

import json
import logging
import os
import pickle  # noqa: TID251  to plant what must never be loaded
import random
import shutil
import struct
import warnings
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import GZip

from streamkm.config import ExecutionConfig, FitConfig
from streamkm.errors import (
    ConfigError,
    MemoryBudgetError,
    ReadError,
    RunError,
    SourceError,
    StreamkmError,
)
from streamkm.runs.fit import fit
from streamkm.runs.planning.given_centroids import given_centroids
from streamkm.runs.reporting.signals import StopRequest
from streamkm.runs.storage.checkpoint import load_checkpoint
from streamkm.runs.storage.model import load_model
from streamkm.sources import open_source, open_weights
from streamkm.sources.base import RowRange
from tests.hostile.mutate import mutate
from tests.hostile.targets import CHUNK, ROWS, TARGETS, limited_memory, parse

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("hostile")
    return path


@pytest.fixture(scope="module")
def seeds(folder) -> dict[str, list[bytes]]:
    made: dict[str, list[bytes]] = {}
    for name, target in TARGETS.items():
        place = folder / "seeds" / str(len(made))
        place.mkdir(parents=True)
        made[name] = target.seeds(place)
    return made


# WRONG when damage, or a lie in a header, ends in anything but an error of ours in one line: an
# exception of somebody else's, memory taken on the file's word, a read past its end.
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_refused_or_read(name, seeds, folder):
    assert sum(parse(name, content, folder / "input") for content in seeds[name])

    @settings(
        max_examples=60, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.integers(0, 2**64 - 1))
    def check(draw: int) -> None:
        rng = random.Random(draw)
        parse(name, mutate(rng.choice(seeds[name]), rng), folder / "input")

    logging.disable(logging.WARNING)
    try:
        check()
    finally:
        logging.disable(logging.NOTSET)


# ---- numbers that are not to be believed ------------------------------------------


def npy(shape: str, dtype: str = "<f8", length: int | None = None) -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header = header.ljust(117) + b"\n"
    version = b"\x01\x00" + struct.pack("<H", len(header))
    if length is not None:
        version = b"\x02\x00" + struct.pack("<I", length)
    return b"\x93NUMPY" + version + header + bytes(64)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npy", npy("(10**15, 4)"), "no readable .npy"),
        ("x.npy", npy("(1000000000000000, 4)"), "truncated: .* takes 32000000000000128 bytes"),
        ("x.npy", npy("(4, 2)", length=2**32 - 1), "header takes 4294967295 bytes"),
        ("x.npy", npy("(((((" * 20), "no readable .npy"),
        ("x.fbin", struct.pack("<II", 2**32 - 1, 2**32 - 1) + bytes(64), "the file has 72"),
        ("x.fvecs", struct.pack("<i", 2**31 - 1) + bytes(64), "no whole number of rows"),
        ("x.bvecs", struct.pack("<i", -5) + bytes(64), "at least 1"),
    ],
    ids=["expression", "rows", "header", "nesting", "fbin", "fvecs", "bvecs"],
)
def test_sizes_are_compared_with_the_files(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with limited_memory(), pytest.raises(SourceError, match=message):
        open_source(tmp_path / name)


def test_first_centroids_are_read_by_their_shape_alone(tmp_path):
    path = tmp_path / "c.npy"
    path.write_bytes(npy("(1000000000000000, 4)"))
    with limited_memory(), pytest.raises(ConfigError, match=r"init=.*truncated"):
        given_centroids(FitConfig(k=3, init=str(path)), 4, None)


def v3(path: Path, *, fit: bool = False, **changes) -> Path:
    """A Zarr array of 4096 x 4 whose metadata are changed."""
    zarr.create_array(path, data=ROWS, chunks=CHUNK, compressors=None)
    metadata = json.loads((path / "zarr.json").read_bytes())
    (path / "zarr.json").write_text(json.dumps({**metadata, **changes}))
    return path


def grid(*chunk: int) -> dict[str, object]:
    return {"name": "regular", "configuration": {"chunk_shape": list(chunk)}}


# What an array of fill values may be is without limit; what a run takes for it is not.
@pytest.mark.parametrize(
    ("shape", "chunk"),
    [((2**40, 4), (2**40, 4)), ((4096, 2**40), (16, 2**40)), ((2**40, 1), (1, 1)),
     ((2**62, 2**20), (2**40, 2)), ((4096, 4), (2**40, 4))],
)  # fmt: skip
def test_chunks_and_grids_of_any_size_meet_the_budget(shape, chunk, tmp_path):
    path = v3(tmp_path / "x.zarr", shape=shape, chunk_grid=grid(*chunk))
    with limited_memory(), closing(open_source(path)) as source:
        assert source.notes() is not None  # By what is there, not by what could be.
        source.fingerprint()
        # (Rows of a chunk that is not compressed are read alone; then its file is too short.)
        with pytest.raises((MemoryBudgetError, ReadError)):
            fit(
                source, FitConfig(k=2, init="random"),
                ExecutionConfig(device="cpu", max_host_memory=200 << 20), None,
                resume=False, stop_request=StopRequest(), quiet=True,
            )  # fmt: skip


@pytest.mark.parametrize("chunk", [(0, 4), (1024, 0), (-1, 4)])
@pytest.mark.parametrize("version", [2, 3])
def test_chunks_hold_something(version, chunk, tmp_path):
    zarr.create_array(tmp_path / "x.zarr", data=ROWS, chunks=CHUNK, zarr_format=version)
    file = tmp_path / "x.zarr" / {2: ".zarray", 3: "zarr.json"}[version]
    changed = {"chunks": chunk} if version == 2 else {"chunk_grid": grid(*chunk)}
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **changed}))
    with pytest.raises(SourceError):
        open_source(tmp_path / "x.zarr")


def test_weights_are_no_longer_than_the_rows(tmp_path):
    path = v3(tmp_path / "w.zarr", shape=[2**40, 1], chunk_grid=grid(1024, 1))
    with limited_memory(), pytest.raises(SourceError, match="one weight is needed for each of 10"):
        open_weights(path, 10)
    shutil.rmtree(path)
    path = v3(path, shape=[2**45, 1], chunk_grid=grid(1024, 1))
    with limited_memory(), pytest.raises(SourceError, match="held in memory"):
        open_weights(path, 2**45)


def read(path: Path, n_rows: int = 1024, start: int = 0) -> np.ndarray:
    with closing(open_source(path)) as source:
        out = np.empty((n_rows, source.spec.n_features), source.spec.storage)
        source.read(RowRange(start, start + n_rows), out)
    return out


def test_an_index_of_a_shard_is_no_longer_than_the_shard(tmp_path):
    zarr.create_array(tmp_path / "x.zarr", data=ROWS, chunks=(64, 4), shards=CHUNK)
    metadata = json.loads((tmp_path / "x.zarr" / "zarr.json").read_bytes())
    metadata["chunk_grid"] = grid(2**40, 4)
    metadata["codecs"][0]["configuration"]["chunk_shape"] = [1, 4]
    (tmp_path / "x.zarr" / "zarr.json").write_text(json.dumps(metadata))
    with limited_memory(), pytest.raises(ReadError, match="its index alone takes 17592186044420"):
        read(tmp_path / "x.zarr", 4)


@pytest.mark.parametrize("start", [0, 500])
def test_a_chunk_of_blosc_decodes_to_what_the_array_says(start, tmp_path):
    zarr.create_array(tmp_path / "x.zarr", data=ROWS, chunks=(4096, 4), zarr_format=2)
    # 100 bytes that promise 2 GiB; with blocks of any size.
    for block in (1, 65536, 2**31 - 1):
        head = struct.pack("<4B3I", 2, 1, 0x21, 4, 2**31 - 1, block, 100)
        (tmp_path / "x.zarr" / "0.0").write_bytes(head + bytes(84))
        with limited_memory(), pytest.raises(ReadError, match=r"chunk 0\.0 is corrupt"):
            read(tmp_path / "x.zarr", 16, start)


def test_a_bomb_stops_at_the_size_of_its_chunk(tmp_path):
    zarr.create_array(
        tmp_path / "x.zarr", data=ROWS, chunks=CHUNK, zarr_format=2, compressors=GZip()
    )
    # One GiB of zeros in a MiB.
    bomb = bytes(GZip(9).encode(bytes(16 << 20))) * 64
    (tmp_path / "x.zarr" / "0.0").write_bytes(bomb[: 2 * 1024 * 16])
    with limited_memory(), pytest.raises(ReadError, match="more than the chunk's 16384 bytes"):
        read(tmp_path / "x.zarr")
    (tmp_path / "x.zarr" / "0.0").write_bytes(bomb)
    with limited_memory(), pytest.raises(ReadError, match="are stored for a chunk of 16384"):
        read(tmp_path / "x.zarr")


def test_nesting_without_end_is_refused(tmp_path):
    for name, beginning in (("config.toml", b"a = "), ("config.json", b"")):
        with pytest.raises((ConfigError, RunError)):
            TARGETS[name].run(beginning + b"[" * 100_000, tmp_path)


# ---- paths ------------------------------------------------------------------------


@pytest.mark.parametrize("separator", ["/../", "..", "/", "\0"])
@pytest.mark.parametrize("encoding", ["default", "v2"])
def test_keys_cannot_leave_the_store(encoding, separator, tmp_path):
    key = {"name": encoding, "configuration": {"separator": separator}}
    path = v3(tmp_path / "inner" / "x.zarr", chunk_key_encoding=key)
    # What such a key might lead to: it is never read.
    for place in (tmp_path / "0", tmp_path / "inner" / "0", tmp_path / "inner" / "c"):
        place.parent.mkdir(exist_ok=True)
        if not place.exists():
            place.write_bytes(b"\xff" * 16384)
    try:
        rows = read(path)
    except StreamkmError:
        assert separator != "/"
    else:
        assert np.isin(rows, (0, *ROWS.ravel())).all()


def test_metadata_of_a_group_do_not_stand_for_those_of_its_arrays(tmp_path):
    group = zarr.create_group(tmp_path / "g.zarr")
    group.create_array("a", data=ROWS, chunks=CHUNK)
    zarr.consolidate_metadata(tmp_path / "g.zarr")
    metadata = json.loads((tmp_path / "g.zarr" / "zarr.json").read_bytes())
    entry = metadata["consolidated_metadata"]["metadata"].pop("a")
    metadata["consolidated_metadata"]["metadata"].update({"../../b": entry, "a": entry})
    entry["shape"] = [2**40, 4]
    (tmp_path / "g.zarr" / "zarr.json").write_text(json.dumps(metadata))
    with closing(open_source(tmp_path / "g.zarr" / "a")) as source:
        assert source.spec.n_rows == len(ROWS)
    with pytest.raises(SourceError):
        open_source(tmp_path / "g.zarr")


# A pipe that nobody writes to would be waited for without end, and a device has none.
@pytest.mark.parametrize("kind", ["pipe", "link to a device", "folder"])
def test_a_chunk_is_a_regular_file(kind, tmp_path):
    path = v3(tmp_path / "x.zarr")
    chunk = path / "c" / "1" / "0"
    chunk.unlink()
    if kind == "pipe":
        os.mkfifo(chunk)
    elif kind == "folder":
        chunk.mkdir()
    else:
        chunk.symlink_to("/dev/zero")
    with pytest.raises(ReadError, match=r"no regular file|directory"):
        read(path, 2048)


# Links are followed, as by every program: people keep chunks elsewhere (git-annex does).
def test_links_are_followed(tmp_path):
    path = v3(tmp_path / "x.zarr")
    (path / "c" / "1" / "0").rename(tmp_path / "elsewhere")
    (path / "c" / "1" / "0").symlink_to(tmp_path / "elsewhere")
    np.testing.assert_array_equal(read(path, 4096), ROWS)


@pytest.mark.parametrize("inside", [True, False])
def test_hdf5_stays_in_its_folder(inside, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    other = (home if inside else tmp_path) / "other.h5"
    with h5py.File(other, "w") as file:
        file["rows"] = ROWS
    with h5py.File(home / "x.h5", "w") as file:
        file["rows"] = h5py.ExternalLink(str(other), "/rows")
    if not inside:
        with pytest.raises(SourceError, match="outside of its folder"):
            open_source(home / "x.h5", dataset="rows")
        return
    with closing(open_source(home / "x.h5", dataset="rows")) as source:
        out = np.empty(ROWS.shape, np.float32)
        source.read(RowRange(0, len(ROWS)), out)
        np.testing.assert_array_equal(out, ROWS)
        before = source.fingerprint()
    # The file that holds the numbers is the one that is watched.
    os.utime(other, (1, 1))
    with closing(open_source(home / "x.h5", dataset="rows")) as source:
        assert source.fingerprint() != before


# Their numbers can change while the file that is named, and watched, does not; and of files that
# are missing HDF5 makes up values, in silence.
@pytest.mark.parametrize("kind", ["external", "virtual"])
def test_hdf5_whose_numbers_lie_in_other_files_is_refused(kind, tmp_path):
    other = str(tmp_path / "missing")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        if kind == "external":
            file.create_dataset("rows", ROWS.shape, "f4", external=[(other, 0, ROWS.nbytes)])
        else:
            layout = h5py.VirtualLayout(ROWS.shape, "f4")
            layout[:] = h5py.VirtualSource(other, "rows", ROWS.shape)
            file.create_virtual_dataset("rows", layout)
    with pytest.raises(SourceError, match=f"rows is {kind}, its numbers lie in {other}.*a glob"):
        open_source(tmp_path / "x.h5", dataset="rows")


# ---- nothing is unpickled ---------------------------------------------------------


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path, folder):
    executed = tmp_path / "executed"
    planted = pickle.dumps(Planted(executed))
    np.save(tmp_path / "objects.npy", np.array([[Planted(executed)]], object), allow_pickle=True)
    executed.unlink(missing_ok=True)
    (tmp_path / "bare.npy").write_bytes(planted)
    for name in ("objects.npy", "bare.npy"):
        with pytest.raises(SourceError):
            open_source(tmp_path / name)
        with pytest.raises(SourceError):
            open_weights(tmp_path / name, 1)
        with pytest.raises(ConfigError):
            given_centroids(FitConfig(k=1, init=str(tmp_path / name)), 1, None)

    v2: dict[str, object] = {
        "zarr_format": 2, "shape": [4, 2], "chunks": [4, 2], "dtype": "<f4", "order": "C",
        "fill_value": 0, "compressor": None, "filters": None,
    }  # fmt: skip
    codec = {"id": "pickle"}
    hidden: tuple[dict[str, object], ...] = (
        {"filters": [codec]},
        {"compressor": codec},
        {"dtype": "|O", "filters": [codec]},
        {"filters": [{"id": "delta", "dtype": "<f4"}, codec]},
        {"filters": [{"id": "zlib", "level": 1}], "compressor": codec},
        {"dtype": "|O"},
    )
    for number, changes in enumerate(hidden):
        store = tmp_path / f"{number}.zarr"
        store.mkdir()
        (store / ".zarray").write_text(json.dumps({**v2, **changes}))
        (store / "0.0").write_bytes(planted)
        with pytest.raises(SourceError):
            read(store, 4)
        (store / ".zarray").write_text(json.dumps({**v2, **changes, "shape": [4], "chunks": [4]}))
        (store / "0").write_bytes(planted)
        with pytest.raises(SourceError):
            open_weights(store, 4)
    for number, codecs in enumerate(("numcodecs.pickle", "pickle")):
        store = v3(tmp_path / f"v3-{number}.zarr", codecs=[
            {"name": "bytes", "configuration": {"endian": "little"}}, {"name": codecs},
        ])  # fmt: skip
        (store / "c" / "0" / "0").write_bytes(planted)
        with pytest.raises(SourceError):
            read(store)

    for name in ("model", "state", "config.json", "cursor"):
        with pytest.raises(StreamkmError), warnings.catch_warnings():
            TARGETS[name].run(planted, _emptied(folder / "planted"))
    run = folder / "planted" / "run"
    TARGETS["config.json"].run(
        TARGETS["config.json"].seeds(folder)[0], _emptied(folder / "planted")
    )
    (run / "model.safetensors").write_bytes(planted)
    with pytest.raises(RunError):
        load_model(run)
    for path in (run / "checkpoints").glob("*/*"):
        path.write_bytes(planted)
    with pytest.raises(RunError):
        load_checkpoint(run / "checkpoints")
    assert not executed.exists()
    pickle.loads(planted)  # noqa: S301  it would have been noticed
    assert executed.exists()


def _emptied(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path
