"""Zarr groups: which arrays are opened, and which an error suggests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr

from streamkm.cli import main
from streamkm.errors import SourceError
from streamkm.sources import open_source

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def group(tmp_path: Path) -> Path:
    made = zarr.create_group(tmp_path / "d.zarr")
    made.create_array("lat", data=np.arange(4.0))
    made.create_array("flags", data=np.zeros((4, 5), bool))
    made.create_array("red", data=np.zeros((4, 5), "f4"), dimension_names=("lat", "lon"))
    made.create_array("nir", data=np.zeros((4, 5), "f4"), dimension_names=("lon", "lat"))
    made.create_array("far/cube", data=np.zeros((4, 6), "i2"))
    return tmp_path / "d.zarr"


# Breaks when an error suggests what would be refused next, such as a coordinate.
def test_errors_suggest_what_is_accepted(group: Path, capsys) -> None:
    assert main(["info", str(group)]) == 2
    said = capsys.readouterr().err
    assert "it holds far/cube (4, 6), nir (4, 5), red (4, 5)" in said
    assert "lat" not in said
    assert "flags" not in said
    assert f"open {group}/far/cube, for example" in said
    assert "make several of one shape features with --variable" in said
    assert main(["info", str(group / "far" / "cube")]) == 0
    assert main(["info", str(group), "--dataset", "far/cube"]) == 0
    assert "features     6" in capsys.readouterr().out
    assert main(["info", str(group), "--variable", "blue"]) == 2
    assert "--variable blue does not exist; it holds" in capsys.readouterr().err


def test_a_group_without_arrays_to_open(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "d.zarr").create_array("lat", data=np.arange(4.0))
    with pytest.raises(SourceError, match="holds none of numbers in two or more dimensions"):
        open_source(tmp_path / "d.zarr")


def test_an_open_group(group: Path) -> None:
    opened = zarr.open_group(group, mode="r")
    assert open_source(opened, variable="red").spec.n_rows == 20
    assert open_source(opened, dataset="far/cube").spec.n_features == 6
    with pytest.raises(SourceError, match="chooses from a group, this is an array"):
        open_source(opened["red"], dataset="red")
