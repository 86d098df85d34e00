"""`open_sink` and what it refuses, and outputs that are .npy files."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamkm.errors import ConfigError
from streamkm.sinks import open_sink
from streamkm.sinks.registry import NpySink
from tests.sinks.contract import N, SinkContract, labels


class TestNpySink(SinkContract):
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


@dataclass(frozen=True)
class Refused:
    """Arguments of `open_sink` that are wrong."""

    name: str
    says: str
    options: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    "case",
    [
        Refused("out.csv", r"out\.csv.*\.npy or \.zarr.*'\.csv'"),
        Refused("out", r"\.npy or \.zarr"),
        Refused("missing/out.npy", "missing does not exist"),
        Refused("out.npy", "at least 1, got 0", {"n_rows": 0}),
        Refused("out.zarr", "at least 1.* 0", {"chunk_rows": 0}),
        Refused("out.npy", "integers or floats", {"dtype": "U3"}),
        Refused("out.npy", "integers or floats, not bool", {"dtype": bool}),
    ],
    ids=lambda case: f"{case.name} {case.options or ''}",
)
def test_arguments_that_are_wrong(tmp_path: Path, case: Refused) -> None:
    with pytest.raises(ConfigError, match=case.says):
        open_sink(tmp_path / case.name, **{"n_rows": 10, "dtype": "int32", **case.options})
    assert list(tmp_path.iterdir()) == []


# ---- a disk that refuses ----------------------------------------------------


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
