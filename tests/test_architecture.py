"""docs/architecture.md says what is so: the way of a block, the floors, one meaning a word."""

from __future__ import annotations

import inspect
import re
import sys
import threading
import tomllib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import streamkm
from streamkm.cli import main
from streamkm.kernels.extension import instruction_sets
from streamkm.sources import flat
from streamkm.stream import plan

if TYPE_CHECKING:
    from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(streamkm.__file__).parent
PAGE = (ROOT / "docs/architecture.md").read_text()


def section(heading: str) -> str:
    """What stands under a heading of the page."""
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def tables(text: str) -> list[list[list[str]]]:
    """Cells of the rows of each table, its head left out."""
    found = re.findall(r"^\|.*\|\n\|[-|]+\|\n((?:\|.*\|\n)+)", text, re.MULTILINE)
    return [[row.strip("|").split("|") for row in rows.splitlines()] for rows in found]


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


ONCE, EACH, AT_THE_END = tables(section("The way of a block"))

# ---- the way of a block -------------------------------------------------------


def calls(n_rows: int, folder: Path) -> Counter[tuple[str, str]]:
    """Calls of each function of streamkm in a fit of `n_rows` rows, by file and name."""
    folder.mkdir()
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(n_rows, 4)).astype("f4"))
    found: Counter[tuple[str, str]] = Counter()

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        # (Bodies of modules and classes are not optimized.)
        is_function = event == "call" and code.co_flags & inspect.CO_OPTIMIZED
        if is_function and code.co_filename.startswith(f"{PACKAGE}/"):
            name = Path(code.co_filename).relative_to(PACKAGE).as_posix()
            found[name, code.co_qualname] += 1

    arguments = "--k 4 --init random --batch-rows 256 --no-closing-pass --kernel cpu --device cpu"
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        status = main(["fit", f"{folder}/x.npy", "--out", f"{folder}/run", *arguments.split()])
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert status == 0
    return found


# Breaks when a file joins the way of a block or leaves it, and the page is not told.
@pytest.mark.skipif(not instruction_sets(), reason="the way is that of the compiled kernel")
def test_a_block_crosses_the_files_that_are_told(tmp_path: Path, monkeypatch) -> None:
    # Many blocks and windows of few rows.
    monkeypatch.setattr(flat, "BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(plan, "WINDOW_BYTES", 1 << 14)
    # More rows than a sample has, so that seeding takes the same.
    few, many = (calls(n_rows, tmp_path / f"{n_rows}") for n_rows in (20_000, 40_000))
    n_windows = 20_000 * 16 // (1 << 14)
    crossed = {name for name, n in many.items() if n - few[name] >= n_windows // 2}
    # The loop is part of a function that is called once.
    found = {file for file, _ in crossed} | {"runs/engine/attempt.py"}
    assert found == {spans(file)[0] for file, _, _ in EACH}


def test_the_way_is_counted() -> None:
    before = {spans(now if before.strip() == "=" else before)[0] for now, before, _ in EACH}
    said = re.search(r"(\d+) files before and crosses (\d+) now", PAGE)
    assert said is not None
    assert (int(said[1]), int(said[2])) == (len(before), len(EACH))


def test_files_on_the_way_exist() -> None:
    files = [spans(file)[0] for file, _, _ in (*ONCE, *EACH, *AT_THE_END)]
    assert not [file for file in files if not (PACKAGE / file).is_file()]


# ---- floors and words ---------------------------------------------------------


# Breaks when a room moves to another floor, and the page keeps it where it was.
def test_floors_are_those_of_the_contract() -> None:
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = linter["contracts"][0]["layers"]
    told = [spans(rooms) for _, rooms, _ in tables(section("Floors"))[0]]
    assert told == [layer.split(" | ") for layer in layers]


def test_every_seam_is_where_it_is_said_to_be() -> None:
    for name, protocol, table, contract in tables(section("One picture"))[0]:
        (seam,), (file,), (entries, home) = spans(name), spans(protocol), spans(table)
        assert f"\nclass {seam}(" in (ROOT / file).read_text()
        assert re.search(rf"^{entries}\b.* = ", (ROOT / home).read_text(), re.MULTILINE)
        assert (ROOT / spans(contract)[0]).is_file()


def test_a_word_has_one_place_in_the_glossary() -> None:
    words = [word.strip() for word, _ in tables(section("Glossary"))[0]]
    assert words == sorted(set(words))
