"""The table of formats: a new format is its file, its line and its test."""

from __future__ import annotations

import inspect
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamkm.cli import main
from streamkm.errors import SourceError
from streamkm.sources import SourceOptions, open_source
from streamkm.sources import formats as formats_module
from streamkm.sources.formats import (
    ADDRESSES,
    FORMATS,
    RAW,
    Format,
    format_of,
    source_options,
    suffixes,
)
from streamkm.sources.options import SourceOption
from tests.sources.contract import Case, SourceContract, numbers, read, same_bytes

#: The file of a format that there is not: several arrays under names, as NumPy saves them.
TOY = """
import json
import numpy as np
from streamkm.errors import Option, SourceError
from streamkm.sources.memory import MemorySource


def open_toy(path, *, table=None):
    with path.open("rb") as file:
        arrays = dict(np.load(file))
    if table is None and len(arrays) > 1:
        raise SourceError(f"{path}: choose by ", Option("table"), f" of {', '.join(arrays)}")
    return MemorySource(arrays[table or next(iter(arrays))], str(path))


def open_folder(folder):
    return MemorySource(np.load(folder / "rows.bin.npy"), str(folder))


def rows_of(folder):
    return f"it holds {json.loads((folder / 'toy.json').read_text())}"
"""

TABLE = SourceOption("table", "of toys: which one (default: the only one)", metavar="NAME")


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, while there is a format of files and one of folders more."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "toy_format.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    lines = (
        Format("toy", "toy_format:open_toy", (".toy",), (TABLE,), keeps_open=False),
        Format(
            "toy folder", "toy_format:open_folder", (".toys",),
            keeps_open=False, markers=("toy.json",), members="toy_format:rows_of",
        ),
    )  # fmt: skip
    monkeypatch.setattr(formats_module, "FORMATS", (*FORMATS, *lines))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def save_toy(path: Path, **arrays: np.ndarray) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


class TestToy(SourceContract):
    """The contract, met by a format that is known from the table alone."""

    @pytest.fixture
    def case(self, toys: Path) -> Case:
        array = numbers((57, 3))

        def store(changed: np.ndarray) -> None:
            save_toy(toys / "x.toy", other=numbers((4, 2)), chosen=changed)

        store(array)
        options: Any = {"table": "chosen"}
        return Case(array, "float32", store, lambda: open_source(toys / "x.toy", **options))


# Breaks when a format, or an option of one, has to be named anywhere but in its line.
def test_a_line_is_all_that_the_command_line_needs(toys: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    save_toy(toys / "x.toy", a=numbers((30, 2)), b=numbers((50, 4)))
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    assert "--table NAME  " in text
    assert TABLE.help in text
    assert ".toy .toys)" in text
    assert main(["info", str(toys / "x.toy"), "--table", "b"]) == 0
    assert "rows         50" in capsys.readouterr().out
    run = toys.parent / "run"
    assert main(["fit", str(toys / "x.toy"), "--table", "a", "--k", "2", "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["info", str(toys / "x.toy")]) == 2
    assert capsys.readouterr().err == f"streamkm: {toys}/x.toy: choose by --table of a, b\n"
    np.save(toys / "x.npy", numbers((5, 2)))
    assert main(["info", str(toys / "x.npy"), "--table", "a"]) == 2
    said = f"streamkm: {toys}/x.npy: --table is for .toy, not for .npy; leave it out\n"
    assert capsys.readouterr().err == said


def test_shards_of_a_new_format(toys: Path) -> None:
    rows = numbers((20, 3))
    for index, part in enumerate(np.split(rows, 4)):
        save_toy(toys / f"{index}.toy", a=part, b=-part)
    options: Any = {"table": "b"}
    source = open_source(toys, **options)
    assert same_bytes(read(source, 0, 20), -rows)


def test_a_new_format_of_folders(toys: Path) -> None:
    folder = toys / "array"
    folder.mkdir()
    (folder / "toy.json").write_text('["rows"]')
    np.save(folder / "rows.bin.npy", numbers((7, 2)))
    assert open_source(folder).spec.n_rows == 7
    with pytest.raises(SourceError, match=r"does not exist; of .*array: it holds \['rows'\]"):
        open_source(folder / "columns")
    with pytest.raises(SourceError, match=r"table is for \.toy, not for \.toys"):
        open_source(folder, table="a")  # type: ignore[call-arg]
    (toys / "x.toys").write_text("")
    with pytest.raises(SourceError, match="is a file, a toy folder array is a folder"):
        open_source(toys / "x.toys")
    (toys / "empty.toys").mkdir()
    with pytest.raises(SourceError, match=r"without toy\.json, so no toy folder array"):
        open_source(toys / "empty.toys")
    (toys / "plain").mkdir()
    with pytest.raises(SourceError, match=r"without zarr\.json.*, so no Zarr or toy folder array"):
        open_source(toys / "pl*")


def test_a_package_that_is_not_installed(toys: Path, monkeypatch) -> None:
    line = Format("lost", "no_such_package.reader:open", (".lost",), extra="lost")
    monkeypatch.setattr(formats_module, "FORMATS", (*FORMATS, line))
    (toys / "x.lost").write_text("")
    with pytest.raises(SourceError, match=r"x\.lost: reading it needs no_such_package.*\[lost\]"):
        open_source(toys / "x.lost")


# ---- the lines that there are -------------------------------------------------


# Breaks when a line promises what its opener does not take; that of addresses needs obstore.
@pytest.mark.parametrize("entry", [*FORMATS, ADDRESSES], ids=lambda entry: entry.home)
def test_an_opener_takes_what_its_line_says(entry: Format) -> None:
    taken = set(inspect.signature(pkgutil.resolve_name(entry.home)).parameters)
    assert {option.name for option in entry.options} <= taken
    assert ("keep_open" in taken) == entry.keeps_open


def test_a_suffix_is_of_one_format() -> None:
    assert len(set(suffixes())) == len(suffixes())
    assert all(format_of(suffix) is not RAW for suffix in suffixes())
    assert format_of(".dat") is format_of("") is RAW


# Breaks when a format is added without a word in the manual's table, or reads addresses unsaid.
def test_the_manual_lists_every_format() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "formats.md"
    rows = [line for line in page.read_text().splitlines() if line.startswith("| [")]
    for entry in FORMATS:
        for suffix in entry.suffixes:
            (row,) = [each for each in rows if f"`{suffix}`" in each]
            assert row.endswith("| yes |" if entry.reads_objects or entry.markers else "| no |")
            assert ("extra" in row) == (entry.extra is not None)


# Breaks when a type checker knows other keywords than the openers.
def test_the_keywords_of_open_source_are_the_options_of_the_table() -> None:
    named = [option.name for option in source_options()]
    # A key for each option, in the order in which the lines of FORMATS first name them.
    assert list(SourceOptions.__annotations__) == named, f"give SourceOptions the keys {named}"


# ---- what is said of a location -----------------------------------------------


def test_a_keyword_that_no_format_has() -> None:
    with pytest.raises(TypeError, match="'column'; there are dtype, n_features, offset, dataset"):
        open_source(numbers((5, 2)), column="a")  # type: ignore[call-arg]


@pytest.mark.parametrize("options", [{"offset": 3}, {"columns": ["a"]}, {"dataset": "a"}], ids=str)
def test_what_is_said_of_an_array_in_memory_is_not_ignored(options: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match=f"{next(iter(options))} is for .*, not for this; leave"):
        open_source(numbers((5, 2)), **options)


# Breaks when saying nothing, or the default, is taken for saying something.
def test_nothing_is_said_by_none_nor_by_a_default(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbers((5, 2)))
    nothing: Any = dict.fromkeys(SourceOptions.__annotations__)
    for said in (nothing, {**nothing, "offset": 0}):
        open_source(tmp_path / "x.npy", **said).close()


def test_one_column_is_named_without_a_list(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    rows = numbers((6, 2))
    table = pa.table({"a": rows[:, 0], "b": rows[:, 1], "text": ["x"] * 6})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "x.parquet")
    one = open_source(tmp_path / "x.parquet", columns="b")
    assert same_bytes(read(one, 0, 6), rows[:, 1:].copy())
    # float64 is what NumPy takes None for.
    with pytest.raises(SourceError, match="dtype='float64' was given"):
        open_source(tmp_path / "x.parquet", columns=["a"], dtype="float64")
