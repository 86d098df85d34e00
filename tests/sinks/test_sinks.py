"""Outputs: what is claimed is there, and what is there under its name is whole."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamkm.errors import ConfigError, OutputExistsError, ResumeError, RunError
from streamkm.sealed import seal
from streamkm.sinks import open_sink
from streamkm.sinks.base import commit_together

N = 1000


def labels(n: int = N, dtype: str = "int32") -> np.ndarray:
    return (np.arange(n) * 7 % 311 - 1).astype(dtype)


def load(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.asarray(np.load(path))
    return np.asarray(zarr.open_array(path, mode="r")[...])


@pytest.fixture(params=[".npy", ".zarr"])
def target(request, tmp_path: Path) -> Path:
    return tmp_path / f"out{request.param}"


def leftovers(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if path != target)


# Breaks when rows are lost at a chunk's border, or the last chunk is not written.
@pytest.mark.parametrize("size", [1000, 64, 100, 37, 1])
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
def test_round_trip(target: Path, size: int, dtype: str) -> None:
    values = labels(dtype=dtype)
    with open_sink(target, n_rows=N, dtype=dtype, chunk_rows=64) as sink:
        for start in range(0, N, size):
            sink.write(start, values[start : start + size])
            assert not target.exists()
        sink.commit()
    found = load(target)
    assert found.dtype == values.dtype
    assert (found == values).all()
    assert leftovers(target) == []


# Breaks when writes of any lengths, flushed anywhere, do not give the same array.
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=12), st.integers(1, 70))
def test_any_writes(tmp_path_factory, pieces: list[tuple[int, bool]], chunk_rows: int) -> None:
    folder = tmp_path_factory.mktemp("sink")
    n = max(1, sum(length for length, _ in pieces))
    values = labels(n)
    for target in (folder / "x.npy", folder / "x.zarr"):
        with open_sink(target, n_rows=n, dtype="int32", chunk_rows=chunk_rows) as sink:
            for length, flush in pieces:
                start = sink.next_row
                sink.write(start, values[start : start + length])
                if flush:
                    sink.flush()
                    assert sink.durable_rows <= sink.next_row
            sink.write(sink.next_row, values[sink.next_row :])
            sink.commit()
        assert (load(target) == values).all()


# Breaks when a chunk of zeros is left out and looks like one that was never written.
def test_zeros_are_stored(target: Path) -> None:
    with open_sink(target, n_rows=100, dtype="int32", chunk_rows=10) as sink:
        sink.write(0, np.zeros(100, np.int32))
        sink.commit()
    if target.suffix == ".zarr":
        assert zarr.open_array(target, mode="r").nchunks_initialized == 10
    assert not load(target).any()


# Breaks when that is forgotten by an output that is resumed.
def test_zeros_are_stored_by_a_resumed_output_too(target: Path) -> None:
    with open_sink(target, n_rows=100, dtype="int32", chunk_rows=10) as sink:
        sink.write(0, labels(20))
        sink.write_cursor({})
    with open_sink(target, n_rows=100, dtype="int32", resume=True) as sink:
        sink.write(20, np.zeros(80, np.int32))
        sink.commit()
    assert (load(target)[:20] == labels(20)).all()
    assert not load(target)[20:].any()


def test_strided_values(target: Path) -> None:
    values = labels(200)
    with open_sink(target, n_rows=100, dtype="int32", chunk_rows=7) as sink:
        sink.write(0, values[::2])
        sink.commit()
    assert (load(target) == values[::2]).all()


# Breaks when `durable_rows` claims what is still in memory.
def test_durable_rows(tmp_path: Path) -> None:
    values = labels()
    with open_sink(tmp_path / "x.npy", n_rows=N, dtype="int32") as sink:
        sink.write(0, values[:130])
        assert sink.durable_rows == 0
        sink.flush()
        assert sink.durable_rows == 130
    with open_sink(tmp_path / "x.zarr", n_rows=N, dtype="int32", chunk_rows=64) as sink:
        sink.write(0, values[:130])
        assert sink.durable_rows == 0
        sink.flush()
        assert sink.durable_rows == 128
        sink.write(130, values[130:])
        sink.flush()
        assert sink.durable_rows == N


# Breaks when gaps read as zeros: label 0 is a cluster.
def test_refuses_gaps_and_overruns(target: Path) -> None:
    with open_sink(target, n_rows=N, dtype="int32", chunk_rows=64) as sink:
        with pytest.raises(ValueError, match=r"rows 1:11 .*next is 0"):
            sink.write(1, labels(10))
        with pytest.raises(ValueError, match="rows 0:1001"):
            sink.write(0, labels(1001))
        with pytest.raises(ValueError, match=r"int32.*int64"):
            sink.write(0, labels(5, "int64"))
        with pytest.raises(ValueError, match="2 dimensions"):
            sink.write(0, labels(6).reshape(2, 3))
        sink.write(0, labels(10))
        with pytest.raises(ValueError, match="10 of 1000 rows"):
            sink.commit()
    assert not target.exists()
    with pytest.raises(ValueError, match="closed"):
        sink.write(10, labels(1))


# ---------------------------------------------------------------- names


def test_output_that_exists(target: Path) -> None:
    target.write_text("mine")
    for resume in (False, True):
        with pytest.raises(OutputExistsError, match=r"out\..*remove it or choose another"):
            open_sink(target, n_rows=N, dtype="int32", resume=resume)
    target.unlink()
    target.symlink_to("nowhere")
    with pytest.raises(OutputExistsError):
        open_sink(target, n_rows=N, dtype="int32")


# Breaks when a file that appears during a run is overwritten by it.
def test_output_that_appears(target: Path) -> None:
    with open_sink(target, n_rows=10, dtype="int32") as sink:
        sink.write(0, labels(10))
        target.write_text("mine")
        with pytest.raises(OutputExistsError):
            sink.commit()
    assert target.read_text() == "mine"
    target.unlink()
    with open_sink(target, n_rows=10, dtype="int32", resume=True) as sink:
        sink.write(0, labels(10))
        sink.commit()
    assert (load(target) == labels(10)).all()


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("out.csv", {}, r"out\.csv.*\.npy or \.zarr.*'\.csv'"),
        ("out", {}, r"\.npy or \.zarr"),
        ("missing/out.npy", {}, "missing does not exist"),
        ("out.npy", {"n_rows": 0}, "at least 1, got 0"),
        ("out.zarr", {"chunk_rows": 0}, "at least 1.* 0"),
        ("out.npy", {"dtype": "U3"}, "integers or floats"),
        ("out.npy", {"dtype": bool}, "integers or floats, not bool"),
    ],
)
def test_arguments_that_are_wrong(
    tmp_path: Path, name: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        open_sink(tmp_path / name, **{"n_rows": 10, "dtype": "int32", **options})
    assert list(tmp_path.iterdir()) == []


# Breaks when rows of an older run are taken over into a new one.
def test_stale_partial_is_replaced(target: Path) -> None:
    with open_sink(target, n_rows=N, dtype="int32", chunk_rows=64) as sink:
        sink.write(0, labels()[:500])
        sink.write_cursor({"batch": 5})
    assert leftovers(target) == [f"{target.name}.partial", f"{target.name}.partial.json"]
    with open_sink(target, n_rows=30, dtype="float32", chunk_rows=64) as sink:
        assert sink.read_cursor() is None
        assert sink.durable_rows == sink.next_row == 0
        sink.write(0, labels(30, "float32"))
        sink.commit()
    assert (load(target) == labels(30)).all()
    assert leftovers(target) == []


# ---------------------------------------------------------------- going on


@pytest.mark.parametrize("written", [0, 5, 64, 130, 1000])
def test_resume(target: Path, written: int) -> None:
    values = labels()
    with open_sink(target, n_rows=N, dtype="int32", chunk_rows=64) as sink:
        sink.write(0, values[:written])
        sink.flush()
        sink.write_cursor({"row": sink.durable_rows})
        assert sink.read_cursor() == {"row": sink.durable_rows}
    with open_sink(target, n_rows=N, dtype="int32", chunk_rows=64, resume=True) as sink:
        cursor = sink.read_cursor()
        assert cursor is not None
        row = cursor["row"]
        assert row == sink.durable_rows == sink.next_row
        # A run may only be able to start further back; what is there already stays.
        back = max(0, row - 10)
        sink.write(back, values[back : back + 10])
        sink.write(sink.next_row, values[sink.next_row :])
        sink.commit()
    assert (load(target) == values).all()
    assert leftovers(target) == []


CRASH = """
import os, sys
import numpy as np
from streamkm.sinks import open_sink
target, stop = sys.argv[1], int(sys.argv[2])
values = (np.arange(1000) * 7 % 311 - 1).astype(np.int32)
sink = open_sink(target, n_rows=1000, dtype="int32", chunk_rows=64, resume=True)
start = sink.next_row
while start < stop:
    sink.write(start, values[start : start + 37])
    start = sink.next_row
    if start % 2:
        sink.flush()
        sink.write_cursor({"row": sink.durable_rows})
os._exit(9)
"""


# Breaks when a killed run leaves a cursor that claims more than is on disk, twice over.
def test_killed_and_resumed_twice(target: Path) -> None:
    root = Path(__file__).parents[2]
    rows = []
    for stop in (400, 800):
        command = [sys.executable, "-c", CRASH, str(target), str(stop)]
        assert subprocess.run(command, cwd=root, check=False).returncode == 9
        assert not target.exists()
        with open_sink(target, n_rows=N, dtype="int32", chunk_rows=64, resume=True) as sink:
            assert sink.read_cursor() == {"row": sink.durable_rows}
            rows.append(sink.durable_rows)
    assert 0 < rows[0] < 437 < rows[1] < 837
    with open_sink(target, n_rows=N, dtype="int32", chunk_rows=64, resume=True) as sink:
        sink.write(rows[1], labels()[rows[1] :])
        sink.commit()
    assert (load(target) == labels()).all()
    assert leftovers(target) == []


# Breaks when chunks that no cursor claims, or a killed writer's remains, end up in the output.
def test_unclaimed_chunks_are_dropped(tmp_path: Path) -> None:
    target = tmp_path / "x.zarr"
    with open_sink(target, n_rows=N, dtype="int32", chunk_rows=64) as sink:
        sink.write(0, labels()[:200])
        sink.write_cursor({})
        sink.write(200, labels()[200:700])
        sink.flush()
    chunks = tmp_path / "x.zarr.partial" / "c"
    (chunks / "9.0123.partial").write_text("torn")
    assert len(list(chunks.iterdir())) == 11
    with open_sink(target, n_rows=N, dtype="int32", resume=True) as sink:
        assert sorted(path.name for path in chunks.iterdir()) == ["0", "1", "2"]
        assert sink.durable_rows == 192


@pytest.mark.parametrize(
    ("options", "says"),
    [({"n_rows": N + 1}, "1000 rows of int32.*1001"), ({"dtype": "int64"}, "int32.*int64")],
)
@pytest.mark.parametrize("cursor", [False, True])
def test_resume_of_another_output(
    target: Path, options: dict[str, Any], says: str, cursor: bool
) -> None:
    with open_sink(target, n_rows=N, dtype="int32", chunk_rows=64) as sink:
        sink.write(0, labels()[:200])
        if cursor:
            sink.write_cursor({})
    with pytest.raises(ResumeError, match=says):
        open_sink(target, **{"n_rows": N, "dtype": "int32", "resume": True, **options})


def test_resume_of_nothing(target: Path) -> None:
    # A cursor whose rows are gone claims nothing.
    target.with_name(target.name + ".partial.json").write_text('{"durable_rows": 5, "cursor": {}}')
    with open_sink(target, n_rows=10, dtype="int32", resume=True) as sink:
        assert sink.read_cursor() is None
        assert sink.next_row == 0
        sink.write(0, labels(10))
        sink.commit()
    assert leftovers(target) == []


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"durable_rows": "5", "cursor": {}}',
        '{"durable_rows": 9999, "cursor": {}}',
    ],
)
def test_damaged_cursor(target: Path, text: str) -> None:
    open_sink(target, n_rows=N, dtype="int32").close()
    target.with_name(target.name + ".partial.json").write_text(text)
    with pytest.raises(ResumeError, match=r"partial\.json.*start again"):
        open_sink(target, n_rows=N, dtype="int32", resume=True)


# Breaks when a crash during creation keeps a run from ever resuming.
def test_partial_without_a_header(target: Path) -> None:
    partial = target.with_name(target.name + ".partial")
    if target.suffix == ".npy":
        partial.write_bytes(b"\x93NUM")
    else:
        partial.mkdir()
    with open_sink(target, n_rows=10, dtype="int32", resume=True) as sink:
        sink.write(0, labels(10))
        sink.commit()
    assert (load(target) == labels(10)).all()


# Breaks when claimed rows that are gone are given out as the fill value.
def test_partial_that_lost_claimed_rows(target: Path) -> None:
    with open_sink(target, n_rows=N, dtype="int32", chunk_rows=64) as sink:
        sink.write(0, labels()[:200])
        sink.write_cursor({})
    partial = target.with_name(target.name + ".partial")
    if target.suffix == ".npy":
        os.truncate(partial, 300)
    else:
        (partial / "c" / "1").unlink()
    with pytest.raises(ResumeError, match=r"\.partial.*start again"):
        open_sink(target, n_rows=N, dtype="int32", resume=True)
    if target.suffix == ".zarr":
        state = target.with_name(target.name + ".partial.json")
        state.write_bytes(seal({"durable_rows": 100, "crc32": 0, "cursor": {}}))
        with pytest.raises(ResumeError, match="100 rows"):
            open_sink(target, n_rows=N, dtype="int32", resume=True)


# ---------------------------------------------------------------- a disk that refuses


def test_full_disk_shows_at_once(tmp_path: Path, monkeypatch) -> None:
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left.* 4128 bytes.*out\.npy") as caught:
        open_sink(tmp_path / "out.npy", n_rows=N, dtype="int32")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_file_system_that_cannot_reserve(tmp_path: Path, monkeypatch) -> None:
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    with open_sink(tmp_path / "out.npy", n_rows=N, dtype="int32") as sink:
        sink.write(0, labels())
        sink.commit()
    assert (load(tmp_path / "out.npy") == labels()).all()


# Breaks when a failed fsync is tried again: it then succeeds without the rows that were lost.
def test_failed_flush_is_final(target: Path, monkeypatch) -> None:
    with open_sink(target, n_rows=N, dtype="int32", chunk_rows=64) as sink:
        sink.write(0, labels()[:200])
        with monkeypatch.context() as patch:

            def lost(*_):
                raise OSError(errno.EIO, "Input/output error")

            patch.setattr(os, "fsync", lost)
            with pytest.raises(OSError, match="Input/output error"):
                sink.write_cursor({})
        assert sink.durable_rows == 0
        for again in (
            sink.flush,
            lambda: sink.write_cursor({}),
            lambda: sink.write(200, labels(5)),
        ):
            with pytest.raises(OSError, match="earlier write failed"):
                again()
    assert not target.with_name(target.name + ".partial.json").exists()


# Breaks when the cursor is saved before the rows that it claims.
def test_rows_are_synced_before_the_cursor(target: Path, monkeypatch) -> None:
    order: list[str] = []
    sync, replace = os.fsync, os.replace

    def fsync(fd: int) -> None:
        order.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        sync(fd)

    def noted(path: Path, to: Path) -> None:
        if "json" in str(to):
            order.append("cursor")
        replace(path, to)

    with open_sink(target, n_rows=N, dtype="int32", chunk_rows=64) as sink:
        sink.write(0, labels()[:64])
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", noted)
        sink.write_cursor({})
    data = ["out.npy.partial"] if target.suffix == ".npy" else ["0", "out.zarr.partial", "c"]
    at = order.index("cursor")
    assert order[: len(data)] == data
    assert "json" in order[at - 1]
    assert order[at + 1 :] == [target.parent.name]


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_a_commit_of_two_outputs_that_was_interrupted_is_resumed(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when an output that already has its name keeps the other from being completed."""
    paths = [tmp_path / f"labels{suffix}", tmp_path / f"distances{suffix}"]
    values = np.arange(10, dtype=np.int32)
    sinks = [open_sink(path, n_rows=10, dtype=np.int32) for path in paths]
    for sink in sinks:
        sink.write(0, values)

    def crash() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sinks[1], "publish", crash)
    with pytest.raises(KeyboardInterrupt):
        commit_together(sinks)
    for sink in sinks:
        sink.close()
    assert paths[0].exists()
    assert not paths[1].exists()
    with pytest.raises(OutputExistsError):
        open_sink(paths[0], n_rows=10, dtype=np.int32)

    sinks = [open_sink(path, n_rows=10, dtype=np.int32, resume=True) for path in paths]
    assert [sink.next_row for sink in sinks] == [10, 10]
    commit_together(sinks)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    # Nothing is left that would let a later run take the complete outputs for its own.
    with pytest.raises(OutputExistsError):
        open_sink(paths[0], n_rows=10, dtype=np.int32, resume=True)


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_two_writers_of_one_output(tmp_path: Path, suffix: str) -> None:
    """Breaks without a lock: the first would publish the second's half-written file."""
    target = tmp_path / f"labels{suffix}"
    first = open_sink(target, n_rows=10, dtype=np.int32)
    first.write(0, np.arange(10, dtype=np.int32))
    for resume in (False, True):
        with pytest.raises(RunError, match=r"process \d+ on \S+ is writing this output"):
            open_sink(target, n_rows=10, dtype=np.int32, resume=resume)
    first.commit()
    stored = np.load(target) if suffix == ".npy" else np.asarray(zarr.open_array(target)[:])
    assert stored.tolist() == list(range(10))


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_discarding_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    """Breaks when an output that is not to be resumed is left behind."""
    sink = open_sink(tmp_path / f"labels{suffix}", n_rows=10, dtype=np.int32)
    sink.write_cursor({})
    assert any(tmp_path.iterdir())
    sink.discard()
    assert not any(tmp_path.iterdir())
