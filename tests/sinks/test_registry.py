"""`open_sink`: what it refuses before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from streamkm.errors import ConfigError
from streamkm.files import FileLock
from streamkm.sinks import open_sink
from streamkm.sinks.registry import check_target, tidy, unfinished_bytes


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


# Breaks where the size of a file is asked for that its writer has removed since.
def test_an_output_that_another_process_writes_is_measured(tmp_path: Path, monkeypatch) -> None:
    partial = tmp_path / "labels.zarr.partial"
    (partial / "c").mkdir(parents=True)
    (partial / "c" / "0").write_bytes(b"12345")
    found = [*partial.rglob("*"), partial / "c" / "1"]
    monkeypatch.setattr(Path, "rglob", lambda _path, _pattern: iter(found))
    assert unfinished_bytes(tmp_path / "labels.zarr") == 5
    assert unfinished_bytes(tmp_path / "other.npy") == 0


# Breaks where one of two that find an output finished is refused, because the other tidies it.
def test_what_is_left_beside_a_finished_output_may_be_tidied_by_another(tmp_path: Path) -> None:
    (tmp_path / "labels.npy").touch()
    lock = tmp_path / "labels.npy.partial.lock"
    other = FileLock(lock, tmp_path / "labels.npy", "writing this output")
    other.take()
    tidy(tmp_path / "labels.npy")
    assert lock.exists()
    other.release()
    tidy(tmp_path / "labels.npy")
    assert not lock.exists()


# Breaks where a store that another process makes at this moment counts as something else.
def test_a_store_that_is_being_made_can_be_added_to(tmp_path: Path) -> None:
    store = tmp_path / "map.zarr"
    store.mkdir()
    (store / "zarr.0123.partial").touch()
    assert check_target(store / "labels") == store / "labels"
    (store / "notes.txt").touch()
    with pytest.raises(ConfigError, match="no Zarr group"):
        check_target(store / "labels")
