"""`open_sink`: what it refuses before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from streamkm.errors import ConfigError
from streamkm.sinks import open_sink


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
