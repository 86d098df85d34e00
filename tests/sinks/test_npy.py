"""Outputs that are .npy files: of their final size from the start."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from streamkm.sinks import open_sink
from streamkm.sinks.npy import NpySink
from tests.sinks.contract import N, PartedSinkContract, labels


class TestNpySink(PartedSinkContract):
    sink = NpySink
    suffix = ".npy"
    durable_of_130 = 130
    synced = ("out.npy.partial",)

    def load(self, path: Path) -> np.ndarray:
        return np.asarray(np.load(path))

    def leave_a_beginning(self, partial: Path) -> None:
        partial.write_bytes(b"\x93NUM")

    def lose_rows(self, partial: Path) -> None:
        os.truncate(partial, 300)


def test_full_disk_shows_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left.* 4128 bytes.*out\.npy") as caught:
        open_sink(tmp_path / "out.npy", n_rows=N, dtype="int32")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_file_system_that_cannot_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    with open_sink(tmp_path / "out.npy", n_rows=N, dtype="int32") as sink:
        sink.write(0, labels())
        sink.commit()
    assert (np.load(tmp_path / "out.npy") == labels()).all()
