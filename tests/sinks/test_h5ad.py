"""Outputs that are copies of an ``.h5ad`` file, with labels in its obs."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from streamkm.errors import ConfigError, ReadError, ResumeError
from streamkm.sinks import open_sink
from streamkm.sinks.h5ad import H5adSink
from tests.sinks.cells import write_cells
from tests.sinks.contract import N, PartedSinkContract, labels, partial_of


class TestH5adSink(PartedSinkContract):
    sink = H5adSink
    suffix = ".h5ad"
    durable_of_130 = 130
    synced = ("out.h5ad.partial",)
    takes_several = False

    def options(self, target: Path, n_rows: int) -> dict[str, Any]:
        origin = target.parent.parent / f"cells-{n_rows}.h5ad"
        return {"origin": origin if origin.exists() else write_cells(origin, n_rows)}

    def place(self, folder: Path) -> Path:
        (folder / "out").mkdir(exist_ok=True)
        return folder / "out"

    def load(self, path: Path) -> np.ndarray:
        with h5py.File(path) as file:
            return np.asarray(file["obs/cluster"])

    def leave_a_beginning(self, partial: Path) -> None:
        partial.write_bytes(b"\x93NUM")

    def lose_rows(self, partial: Path) -> None:
        os.truncate(partial, 300)


def told(path: Path) -> dict[str, Any]:
    """Everything in a file: attributes, and values of datasets, by name."""
    found: dict[str, Any] = {}

    def note(name: str, node: h5py.Group | h5py.Dataset) -> None:
        found[name] = {key: np.asarray(value).tolist() for key, value in node.attrs.items()}
        if isinstance(node, h5py.Dataset):
            found[f"{name} values"] = (str(node.dtype), node[()].tolist())

    with h5py.File(path) as file:
        note("", file)
        file.visititems(note)
    return found


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return write_cells(tmp_path / "cells.h5ad")


# Breaks when anndata would not find the column, loses another one, or the source is written to.
@pytest.mark.parametrize("columns", [0, 2])
@pytest.mark.parametrize("index", ["array", "nullable"])
def test_the_copy_has_one_column_more(tmp_path: Path, index: str, columns: int) -> None:
    cells = write_cells(tmp_path / "cells.h5ad", index=index, columns=columns)
    before, content = told(cells), digest(cells)
    target = tmp_path / "out.h5ad"
    with open_sink(target, n_rows=N, dtype="int32", origin=cells) as sink:
        sink.write(0, labels())
        sink.commit()
    assert digest(cells) == content
    found = told(target)
    assert found.pop("obs/cluster") == {"encoding-type": "array", "encoding-version": "0.2.0"}
    assert found.pop("obs/cluster values") == ("int32", labels().tolist())
    order = found["obs"].pop("column-order")
    assert order == [*before["obs"].pop("column-order"), "cluster"]
    assert found == before
    # What was reserved and is not used is given back.
    assert target.stat().st_size < cells.stat().st_size + 4 * N + 10_000


class Crash(BaseException):
    pass


# Breaks when a crash while the copy is made, or right after, cannot be resumed; when a copy that
# a killed run left in the middle is taken for whole, or stays.
@pytest.mark.parametrize("at", ["h5ad.pieces_of", "base.rename_durably", "base.Sink.publish"])
def test_a_crash_during_the_commit(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def end(*_: object) -> None:
        raise Crash

    target = tmp_path / "out" / "out.h5ad"
    options: dict[str, Any] = {"n_rows": N, "dtype": "int32", "origin": cells}
    sink = open_sink(target, **options)
    sink.write(0, labels())
    sink.write_cursor({"row": N})
    with monkeypatch.context() as patch:
        patch.setattr(f"streamkm.sinks.{at}", end)
        patch.setattr("streamkm.sinks.base.discard", lambda _: None)  # As where it is killed.
        with pytest.raises(Crash):
            sink.commit()
    sink.close()
    assert not target.exists()
    with open_sink(target, resume=True, **options) as sink:
        assert (sink.next_row, sink.read_cursor()) == (N, {"row": N})
        sink.commit()
    assert TestH5adSink().load(target).tolist() == labels().tolist()
    assert list(target.parent.iterdir()) == [target]


def test_a_copy_that_was_damaged_before_it_got_its_name(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> None:
        raise Crash

    target = tmp_path / "out" / "out.h5ad"
    sink = open_sink(target, n_rows=N, dtype="int32", origin=cells)
    sink.write(0, labels())
    with monkeypatch.context() as patch:
        patch.setattr("streamkm.sinks.base.Sink.publish", end)
        with pytest.raises(Crash):
            sink.commit()
    sink.close()
    with h5py.File(partial_of(target), "r+") as file:
        file["obs/cluster"][7] += 1
    with pytest.raises(ResumeError, match=r"\.partial: the 1,000 rows .*start again"):
        open_sink(target, n_rows=N, dtype="int32", origin=cells, resume=True)


# Breaks when the half of a copy keeps the disk full, or labels are lost with it.
def test_a_disk_that_has_no_room_for_the_copy(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = tmp_path / "out" / "out.h5ad"
    options: dict[str, Any] = {"n_rows": N, "dtype": "int32", "origin": cells}
    with open_sink(target, **options) as sink:
        sink.write(0, labels())
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", full)
            with pytest.raises(OSError, match=r"No space left.*out\.h5ad\.partial\.joined"):
                sink.commit()
    assert not target.with_name("out.h5ad.partial.joined").exists()
    with open_sink(target, resume=True, **options) as sink:
        assert sink.next_row == N
        sink.commit()
    assert TestH5adSink().load(target).tolist() == labels().tolist()


# Breaks when labels are joined to other cells than those that were labelled.
def test_a_source_that_has_changed(cells: Path, tmp_path: Path) -> None:
    with open_sink(tmp_path / "out.h5ad", n_rows=N, dtype="int32", origin=cells) as sink:
        sink.write(0, labels())
        write_cells(cells, columns=3)
        with pytest.raises(ReadError, match=r"cells\.h5ad: has changed .*start again"):
            sink.commit()
    assert not (tmp_path / "out.h5ad").exists()


def test_sources_that_are_refused(cells: Path, tmp_path: Path) -> None:
    def refused(origin: Path | None, match: str, n_rows: int = N) -> None:
        with pytest.raises(ConfigError, match=match):
            open_sink(tmp_path / "out" / "x.h5ad", n_rows=n_rows, dtype="int32", origin=origin)
        assert not list((tmp_path / "out").iterdir())

    np.save(tmp_path / "x.npy", np.zeros((N, 3)))
    for origin in (None, tmp_path / "x.npy"):
        refused(origin, r"one local \.h5ad file; write the labels as \.npy or \.parquet$")
    refused(cells, "obs of .* has 1,000 rows, there are 3 labels", n_rows=3)
    with h5py.File(cells, "r+") as file:
        file["obs/cluster"] = np.arange(N)
    refused(cells, "has a column cluster already; rename it there, or write")
    # Before anndata 0.7 obs was an array of records.
    with h5py.File(cells, "w") as file:
        file["obs"] = np.zeros(N, [("index", "i4")])
    refused(cells, r"anndata 0\.7 or later.*write it again with anndata")


def test_h5py_that_is_not_installed(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamkm.sinks.registry.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs h5py.*streamkm\[hdf5\]"):
        open_sink(tmp_path / "out.h5ad", n_rows=N, dtype="int32", origin=cells)
