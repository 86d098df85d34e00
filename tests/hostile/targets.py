"""Every parser of files that may come from a stranger, and valid files to begin from.

A target puts bytes where a command would find them and does what the command would do. It
may refuse them with a `StreamkmError`, or read rows; nothing else: no other exception, no
memory beyond what a run's plan would grant, no reading past the file.
"""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numcodecs import LZ4, Blosc, GZip, Zlib, Zstd
from safetensors.numpy import load, save_file

from streamkm import cli
from streamkm.config import ExecutionConfig, FitConfig
from streamkm.errors import StreamkmError
from streamkm.files import file_sha256
from streamkm.runs.engine.checkpoint_schema import check_checkpoint
from streamkm.runs.engine.labelling import Labelling
from streamkm.runs.engine.snapshot import Snapshot
from streamkm.runs.fit import fit, plan_fit
from streamkm.runs.info import describe_run
from streamkm.runs.planning.given_centroids import given_centroids
from streamkm.runs.reporting.signals import StopRequest
from streamkm.runs.storage import checkpoint, model_file
from streamkm.runs.storage.model import load_model
from streamkm.runs.storage.run_folder import read_config
from streamkm.sealed import seal
from streamkm.sinks.registry import open_sink
from streamkm.sources import Source, open_source, open_weights
from streamkm.sources.base import RowRange

#: What one read may take, as of a run under a small budget; and the process beyond what it has.
BUDGET, PROCESS_BYTES = 64 << 20, 768 << 20

ROWS = np.arange(4096 * 4, dtype=np.float32).reshape(4096, 4) % 251


@dataclass(frozen=True)
class Target:
    """A parser."""

    seeds: Callable[[Path], list[bytes]]
    """Valid contents, made in an empty folder."""
    run: Callable[[bytes, Path], None]
    """Parse a content in an empty folder; raises a `StreamkmError` to refuse it."""


TARGETS: dict[str, Target] = {}


def parse(name: str, content: bytes, folder: Path) -> bool:
    """Give `content` to a target; whether it was taken. Anything but a refusal is raised."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with limited_memory():
        try:
            TARGETS[name].run(content, folder)
        except StreamkmError as error:
            if "\n" in str(error):
                raise AssertionError("a refusal is one line") from error
            return False
    return True


@contextmanager
def limited_memory() -> Iterator[None]:
    """Memory beyond what the process has, and `PROCESS_BYTES`, is refused as a `MemoryError`."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = pages * resource.getpagesize() + PROCESS_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def read_some(source: Source, *, at_most: int | None = None) -> None:
    """What a run reads first: notes, fingerprint, and blocks from all over, if they fit."""
    with closing(source):
        spec = source.spec
        assert spec.n_rows > 0 < spec.n_features
        if at_most is not None:
            assert spec.nbytes <= at_most
        source.fingerprint()
        source.notes()
        if min(spec.block_rows, spec.n_rows) * spec.row_bytes + spec.scratch_bytes > BUDGET:
            return
        for start in {0, spec.n_rows // 2, (spec.n_rows - 1) // spec.block_rows * spec.block_rows}:
            rows = RowRange(start, min(start + spec.block_rows, spec.n_rows))
            out = np.empty((len(rows), spec.n_features), spec.storage)
            source.read(rows, out)


# ---- flat files -----------------------------------------------------------------


def _file(suffix: str, *makers: Callable[[Path], object], bounded: bool = True) -> Target:
    """Files of one suffix, each made by a function of its path; `bounded` by their own size."""

    def seeds(folder: Path) -> list[bytes]:
        contents = []
        for make in makers:
            make(folder / f"x{suffix}")
            contents.append((folder / f"x{suffix}").read_bytes())
        return contents

    def run(content: bytes, folder: Path) -> None:
        (folder / f"x{suffix}").write_bytes(content)
        source = open_source(folder / f"x{suffix}")
        read_some(source, at_most=len(content) if bounded else None)

    return Target(seeds, run)


def _bin(rows: np.ndarray) -> Callable[[Path], object]:
    header = np.array(rows.shape, "<u4").tobytes()
    return lambda path: path.write_bytes(header + rows.tobytes())


def _vecs(rows: np.ndarray) -> Callable[[Path], object]:
    lengths = np.full((len(rows), 1), rows.shape[1], "<i4").view(np.uint8)
    records = np.hstack((lengths, np.ascontiguousarray(rows).view(np.uint8)))
    return lambda path: path.write_bytes(records.tobytes())


FEW = ROWS[:40]
TARGETS["npy"] = _file(
    ".npy",
    lambda path: np.save(path, FEW),
    lambda path: np.save(path, np.asfortranarray(FEW.astype(">f8"))),
    lambda path: np.lib.format.write_array(path.open("wb"), FEW[:, :, None], (3, 0)),
)
TARGETS["fbin"] = _file(".fbin", _bin(FEW))
TARGETS["u8bin"] = _file(".u8bin", _bin(FEW.astype(np.uint8)))
TARGETS["fvecs"] = _file(".fvecs", _vecs(FEW))
TARGETS["bvecs"] = _file(".bvecs", _vecs(FEW.astype(np.uint8)))


def _run_init(content: bytes, folder: Path) -> None:
    (folder / "c.npy").write_bytes(content)
    config = FitConfig(k=40, init=str(folder / "c.npy"))
    given_centroids(config, 4, None)


def _run_weights(content: bytes, folder: Path) -> None:
    (folder / "w.npy").write_bytes(content)
    open_weights(folder / "w.npy", 40).close()


TARGETS["init"] = Target(TARGETS["npy"].seeds, _run_init)
TARGETS["weights"] = Target(
    lambda folder: _file(".npy", lambda path: np.save(path, FEW[:, 0])).seeds(folder), _run_weights
)

# ---- Zarr -----------------------------------------------------------------------


def _zarr(make: Callable[[Path], object], name: str, read: Callable[[Path], None]) -> Target:
    """One file within a store that is valid otherwise."""
    made: dict[str, bytes] = {}

    def store(folder: Path) -> None:
        if not made:
            make(folder / "x.zarr")
            for path in (folder / "x.zarr").rglob("*"):
                if path.is_file():
                    made[path.relative_to(folder / "x.zarr").as_posix()] = path.read_bytes()
            shutil.rmtree(folder / "x.zarr")

    def seeds(folder: Path) -> list[bytes]:
        store(folder)
        return [made[name]]

    def run(content: bytes, folder: Path) -> None:
        store(folder)
        for key, stored in made.items():
            path = folder / "x.zarr" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if key == name else stored)
        read(folder / "x.zarr")

    return Target(seeds, run)


def _array(rows: np.ndarray = ROWS, **options: Any) -> Callable[[Path], object]:
    return lambda path: zarr.create_array(path, data=rows, **options)


def _read_rows(path: Path) -> None:
    read_some(open_source(path))


def _read_narrow(path: Path) -> None:
    """A few rows within each chunk, which of Blosc reads blocks by themselves."""
    with closing(open_source(path)) as source:
        for start in (0, 700, 4000):
            rows = RowRange(start, start + 50)
            source.read(rows, np.empty((50, source.spec.n_features), source.spec.storage))


def _read_weights(path: Path) -> None:
    open_weights(path, len(ROWS)).close()


CHUNK = (1024, 4)
TARGETS["zarr v3"] = _zarr(_array(chunks=CHUNK, compressors=None), "zarr.json", _read_rows)
TARGETS["zarr v3 sharded"] = _zarr(
    _array(chunks=(256, 4), shards=CHUNK), "zarr.json", _read_rows
)  # fmt: skip
TARGETS["zarr v2"] = _zarr(
    _array(chunks=CHUNK, zarr_format=2, compressors=Blosc()), ".zarray", _read_rows
)
TARGETS["zarr weights"] = _zarr(_array(ROWS[:, 0], chunks=(1024,)), "zarr.json", _read_weights)


def _sharded(path: Path, location: str) -> None:
    array = zarr.create_array(
        path,
        shape=ROWS.shape,
        dtype="f4",
        chunks=CHUNK,
        compressors=None,
        serializer=zarr.codecs.ShardingCodec(
            chunk_shape=(64, 4),
            codecs=[zarr.codecs.BytesCodec(), zarr.codecs.ZstdCodec()],
            index_codecs=[zarr.codecs.BytesCodec()],
            index_location=location,
        ),
    )
    array[:] = ROWS


for _location in ("start", "end"):
    TARGETS[f"shard, index at {_location}"] = _zarr(
        partial(_sharded, location=_location), "c/0/0", _read_rows
    )
for _name, _codec in (
    ("blosc", Blosc("lz4", blocksize=4096)), ("blosc zstd", Blosc("zstd")),
    ("blosc bitshuffle", Blosc("blosclz", shuffle=2, blocksize=2048)),
    ("lz4", LZ4()), ("zstd", Zstd()), ("gzip", GZip()), ("zlib", Zlib()),
):  # fmt: skip
    TARGETS[f"chunk of {_name}"] = _zarr(
        _array(chunks=CHUNK, zarr_format=2, compressors=_codec), "0.0", _read_rows
    )
TARGETS["blocks of blosc"] = _zarr(
    _array(chunks=(4096, 4), zarr_format=2, compressors=Blosc("lz4", blocksize=4096)), "0.0",
    _read_narrow,
)  # fmt: skip

# ---- files of other libraries ---------------------------------------------------


def _write_h5(path: Path, **options: Any) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("rows", data=FEW, **options)


TARGETS["parquet"] = _file(
    ".parquet",
    lambda path: pq.write_table(pa.table({"a": FEW[:, 0], "b": FEW[:, 1]}), path),
    lambda path: pq.write_table(pa.table({"a": list(FEW)}), path, row_group_size=16),
    bounded=False,
)


def _write_arrow(path: Path, *, stream: bool = False, **options: Any) -> None:
    table = pa.table({"a": list(FEW), "text": ["x"] * len(FEW)})
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    settings = pa.ipc.IpcWriteOptions(**options)
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema, options=settings) as out:
        out.write_table(table, max_chunksize=16)


TARGETS["arrow"] = _file(
    ".arrow",
    _write_arrow,
    partial(_write_arrow, compression="zstd"),
    partial(_write_arrow, stream=True, compression="lz4"),
    bounded=False,
)
TARGETS["npz"] = _file(".npz", lambda path: np.savez(path, rows=FEW, other=FEW[:, 0]))
TARGETS["safetensors"] = _file(".safetensors", lambda path: save_file({"rows": FEW}, path))
TARGETS["zipped zarr"] = _file(
    ".zip",
    lambda path: zarr.create_array(zarr.storage.ZipStore(path, mode="w"), data=FEW).store.close(),
    bounded=False,
)
TARGETS["hdf5"] = _file(
    ".h5", _write_h5, lambda path: _write_h5(path, chunks=(16, 4), compression="gzip"),
    bounded=False,
)  # fmt: skip

# ---- settings and runs ----------------------------------------------------------


def _run_config(content: bytes, folder: Path) -> None:
    (folder / "run.toml").write_bytes(content)
    with suppress(SystemExit):
        cli._parse(["fit", "x.npy", "--out", "run", "--k", "3", "--config",
                    str(folder / "run.toml")])  # fmt: skip


TARGETS["config.toml"] = Target(
    lambda _: [b'k = 5\nscale = "zscore"\ntol = 1e-3\n', b'closing-pass = false\ndevice = "cpu"\n'],
    _run_config,
)

_RUN: dict[str, bytes] = {}


def _make_run(folder: Path) -> None:
    """A finished run, in `folder`; the same each time."""
    if not _RUN:
        np.save(folder / "x.npy", FEW)
        with closing(open_source(folder / "x.npy")) as source:
            fit(
                source, FitConfig(k=3, scale="zscore", init="random"),
                ExecutionConfig(device="cpu", read_threads=0), folder / "run",
                resume=False, stop_request=StopRequest(), quiet=True,
            )  # fmt: skip
        for path in (folder / "run").rglob("*"):
            if path.is_file() and path.name not in ("lock", "metrics.jsonl"):
                _RUN[path.relative_to(folder / "run").as_posix()] = path.read_bytes()
        shutil.rmtree(folder / "run")
    for key, content in _RUN.items():
        path = folder / "run" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _of_run(name: str) -> Callable[[Path], list[bytes]]:
    def seeds(folder: Path) -> list[bytes]:
        _make_run(folder)
        return [next(content for key, content in _RUN.items() if key.endswith(name))]

    return seeds


def _run_record(content: bytes, folder: Path) -> None:
    _make_run(folder)
    (folder / "run" / "config.json").write_bytes(content)
    with suppress(StreamkmError):
        read_config(folder / "run")
    (folder / "run" / "config.json").write_bytes(_sealed(content))
    read_config(folder / "run")
    describe_run(folder / "run")


def _run_model(content: bytes, folder: Path) -> None:
    _make_run(folder)
    (folder / "run" / "model.safetensors").write_bytes(content)
    found = load_model(folder / "run")
    source = open_source(np.zeros((8, 4), np.float32))
    with Labelling(found, source, ExecutionConfig(device="cpu", read_threads=0)).batches() as each:
        for batch in each:
            assert len(batch.labels_B) == 8


def _run_resealed_model(content: bytes, folder: Path) -> None:
    """What says of the model what it is, with a checksum that agrees."""
    _make_run(folder)
    try:
        about = json.loads(content)
        about["sha256"] = None
    except (ValueError, TypeError, RecursionError):
        return
    about.pop("sha256")
    sealed = folder / "sealed.safetensors"
    model_file.write_model_file(sealed, load(_RUN["model.safetensors"]), about)
    _run_model(sealed.read_bytes(), folder)


def _about_model(folder: Path) -> list[bytes]:
    _make_run(folder)
    content = _RUN["model.safetensors"]
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    about = json.loads(header["__metadata__"][model_file.METADATA])
    del about["sha256"]
    return [json.dumps(about).encode()]


def _restore(folder: Path) -> None:
    config = FitConfig(k=3, scale="zscore", init="random")
    setup = plan_fit(open_source(FEW), config, ExecutionConfig(device="cpu"))
    check = partial(check_checkpoint, plan=setup)
    found = checkpoint.load_checkpoint(folder / "run" / "checkpoints", check)
    if found is not None:
        Snapshot.from_checkpoint(found, setup.device, setup.config)


def _checkpoint(folder: Path) -> Path:
    _make_run(folder)
    kept, *others = sorted((folder / "run" / "checkpoints").iterdir())
    for other in others:
        shutil.rmtree(other)
    return kept


def _run_manifest(content: bytes, folder: Path) -> None:
    """A manifest as it is, then with checksums that agree."""
    manifest = _checkpoint(folder) / checkpoint.MANIFEST
    manifest.write_bytes(content)
    with suppress(StreamkmError):
        _restore(folder)
    manifest.write_bytes(_sealed(content))
    _restore(folder)


def _run_state(content: bytes, folder: Path) -> None:
    """The tensors of a checkpoint, with checksums that agree."""
    path = _checkpoint(folder)
    (path / checkpoint.STATE).write_bytes(content)
    body = json.loads((path / checkpoint.MANIFEST).read_bytes())
    del body["sha256"]
    body["state"]["sha256"] = file_sha256(path / checkpoint.STATE)
    (path / checkpoint.MANIFEST).write_bytes(seal(body))
    _restore(folder)


def _sealed(content: bytes) -> bytes:
    """JSON as this package writes it, whatever it says; `content` where it is none."""
    try:
        body = json.loads(content)
        body.pop("sha256", None)
        return seal(body)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return content


def _run_cursor(content: bytes, folder: Path) -> None:
    np.save(folder / "labels.npy", np.zeros(40, np.int32))
    (folder / "labels.npy").rename(folder / "labels.npy.partial")
    (folder / "labels.npy.partial.json").write_bytes(_sealed(content))
    open_sink(folder / "labels.npy", n_rows=40, dtype=np.int32, resume=True).close()


TARGETS["config.json"] = Target(_of_run("config.json"), _run_record)
TARGETS["model"] = Target(_of_run("model.safetensors"), _run_model)
TARGETS["model, sealed"] = Target(_about_model, _run_resealed_model)
TARGETS["manifest"] = Target(_of_run("manifest.json"), _run_manifest)
TARGETS["state"] = Target(_of_run("state.safetensors"), _run_state)
TARGETS["cursor"] = Target(
    lambda _: [json.dumps({"durable_rows": 20, "crc32": crc32(bytes(80)), "cursor": {}}).encode()],
    _run_cursor,
)
