"""Tensors of safetensors files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from streamkm.errors import NoRowsError, SourceError
from streamkm.sources import open_source
from tests.sources.contract import Case, SourceContract, numbers, read, same_bytes


class TestSafetensors(SourceContract):
    @pytest.fixture(params=["float32", "int8", "uint64", "three dimensions", "of several"])
    def case(self, request, tmp_path: Path) -> Case:
        path = tmp_path / "x.safetensors"
        dtype = request.param if "t" in request.param and request.param[-1].isdigit() else "float32"
        shape = (29, 7, 5) if request.param == "three dimensions" else (203, 5)
        array = numbers(shape, dtype)
        others: dict[str, Any] = {}
        options: dict[str, Any] = {}
        if request.param == "of several":
            others, options = {"a": numbers((9, 2)), "z": numbers((9,))}, {"dataset": "layer.x"}

        def store(changed: np.ndarray) -> None:
            save_file({**others, "layer.x": changed}, path, {"about": "it"})

        store(array)
        return Case(array, dtype, store, lambda: open_source(path, **options), tmp_path)


class TestBfloat16(SourceContract):
    @pytest.fixture
    def case(self, tmp_path: Path) -> Case:
        path = tmp_path / "x.safetensors"
        array = numbers((101, 5), "uint16")

        def store(changed: np.ndarray) -> None:
            save_torch({"x": torch.from_numpy(changed).view(torch.bfloat16)}, path)

        store(array)
        return Case(array, "bfloat16", store, lambda: open_source(path), tmp_path)


def refused(path: Path, *says: str, **options: Any) -> None:
    with pytest.raises(SourceError) as caught:
        open_source(path, **options)
    assert "\n" not in str(caught.value)
    for part in (str(path), *says):
        assert part in str(caught.value)


def test_which_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    mask = np.zeros((4, 4), bool)
    save_file({"a": numbers((5, 2)), "b": numbers((6, 3)), "c": numbers((4,)), "m": mask}, path)
    refused(path, "choose it by dataset; it holds a (5, 2), b (6, 3)")
    refused(path, "no array 'z'", dataset="z")
    refused(path, "no array 'm'", dataset="m")
    refused(path, "at least two dimensions", dataset="c")
    assert same_bytes(read(open_source(path, dataset="b"), 0, 6), numbers((6, 3)))
    save_file({"a": np.empty((0, 3), "f4")}, path)
    with pytest.raises(NoRowsError):
        open_source(path)


def header(path: Path, about: object, n_bytes: int = 24) -> None:
    """A file with the header `about`."""
    text = json.dumps(about).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(n_bytes))


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ([1], "no JSON object"),
        ({"x": {"dtype": "F32", "shape": [2, 3]}}, "data_offsets"),
        ({"x": {"dtype": "F32", "shape": [2, -3], "data_offsets": [0, 24]}}, "no count"),
        ({"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 2.5]}}, "no count"),
        ({"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 20]}}, "gives 20 bytes"),
        ({"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [24, 48]}}, "truncated"),
        ({"x": {"dtype": "F8_E4M3", "shape": [2, 3], "data_offsets": [0, 6]}}, "it holds none"),
        ({"x": 3}, "no readable"),
    ],
)
def test_headers_that_lie(tmp_path: Path, about: object, says: str) -> None:
    path = tmp_path / "x.safetensors"
    header(path, about)
    refused(path, says)


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": numbers((20, 3))}, path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 11):
        path.write_bytes(whole[:size])
        refused(path)
