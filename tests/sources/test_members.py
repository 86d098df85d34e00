"""One array of a file that holds several."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamkm.errors import SourceError
from streamkm.sources.members import chosen_member

FILE = Path("x.npz")


def test_the_only_array_of_rows_needs_no_name() -> None:
    assert chosen_member(FILE, {"y": (5,), "x": (5, 2), "n": ()}, None) == "x"
    assert chosen_member(FILE, {"y": (5,), "x": (5, 2)}, "y") == "y"


def test_errors_list_what_there_is() -> None:
    many = {f"a{i}": (5, i) for i in range(10)}
    for shapes, name, says in (
        ({"y": (5,)}, None, r"choose it by dataset; it holds y \(5,\)"),
        ({}, None, "it holds none"),
        (many, None, r"it holds a0 \(5, 0\), .* a7 \(5, 7\), \.\.\."),
        (many, "b", "there is no array 'b'; it holds a0"),
    ):
        with pytest.raises(SourceError, match=says):
            chosen_member(FILE, shapes, name)
