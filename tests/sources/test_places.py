"""Which files a location names: lists, partitions, patterns, and what is not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamkm import KMeans
from streamkm.cli import main
from streamkm.errors import NoRowsError, SourceError
from streamkm.sources import open_source
from streamkm.sources.places import hive_shards, is_path_list
from tests.sources.contract import Case, SourceContract, numbers, read, same_bytes
from tests.sources.test_registry import ConcatContract, refused


def save(folder: Path, **arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


# ---------------------------------------------------------------- lists


class TestListFile(ConcatContract):
    """Ragged shards, in an order that is neither natural nor that of names."""

    def location(self, folder: Path) -> object:
        names = sorted(folder.glob("*.npy"), key=lambda path: int(path.stem[1:]))
        (folder / "files.txt").write_text("".join(f"{name}\n" for name in names))
        return f"@{folder / 'files.txt'}"


class TestPythonList(ConcatContract):
    def location(self, folder: Path) -> object:
        return sorted(folder.glob("*.npy"), key=lambda path: int(path.stem[1:]))


# Breaks when the order of a list is not kept: labels would belong to other rows.
def test_a_list_keeps_its_order(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path, **{f"u{i}": np.full((i, 2), i, "f4") for i in (1, 2, 3)})
    (tmp_path / "sub").mkdir()
    # Paths count from the working directory, as those of find do, wherever the list lies.
    list_file = tmp_path / "sub" / "files.txt"
    list_file.write_text("\ufeff# utterances\nu3.npy\n\n  ./u1.npy\r\nu2.npy", "utf-8")
    expected = [3.0, 3, 3, 1, 2, 2]
    for location in (
        "@sub/files.txt",
        Path("@sub/files.txt"),
        ["u3.npy", Path("u1.npy"), "u2.npy"],
    ):
        source = open_source(location)
        assert read(source, 0, 6)[:, 0].tolist() == expected
        source.close()
    assert open_source(("u3.npy", "u1.npy")).fingerprint() != (
        open_source(["u1.npy", "u3.npy"]).fingerprint()
    )


def test_a_list_that_is_wrong_names_the_line(tmp_path: Path) -> None:
    save(tmp_path, a=numbers((5, 2)))
    list_file = tmp_path / "files.txt"
    list_file.write_text(f"{tmp_path}/a.npy\n\n{tmp_path}/b.npy\n")
    refused(f"@{list_file}", f"{list_file}, line 3: {tmp_path}/b.npy: does not exist", "a.npy")
    list_file.write_text("# nothing\n\n")
    refused(f"@{list_file}", "names no file", "one path a line")
    list_file.write_bytes(b"\xff\xfe\x00")
    refused(f"@{list_file}", "no text in UTF-8")
    list_file.write_text("a\0b\n")
    refused(f"@{list_file}", "line 1", "no path")
    refused(
        f"@{tmp_path}/none.txt", "none.txt", "cannot be read", "No such file", "one path a line"
    )
    refused(f"@{tmp_path}", "cannot be read")
    refused(
        [f"{tmp_path}/a.npy", f"{tmp_path}/c.npy"], "path 1 of the list", "c.npy: does not exist"
    )
    refused([f"{tmp_path}/*.npy"], "one by one")
    refused([], "empty")
    refused([1, 2], "builtins.list")
    refused([[1.0, 2.0]], "builtins.list")


def test_what_is_a_list_of_paths() -> None:
    assert is_path_list(["a", Path("b")])
    assert is_path_list(("a",))
    for other in ([], [["a"]], "a", Path("a"), [1.0], ["a", 1], np.array(["a"]), {"a"}):
        assert not is_path_list(other)


# Breaks when a file that is called so can no longer be opened.
def test_a_name_that_begins_with_at(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path, **{"@x": numbers((5, 2))})
    assert open_source("@x.npy").spec.n_rows == 5


def test_a_path_that_stands_twice_is_told(tmp_path: Path) -> None:
    save(tmp_path, a=numbers((5, 2)), b=numbers((6, 2)))
    source = open_source([tmp_path / "a.npy", tmp_path / "b.npy", tmp_path / "a.npy"])
    assert source.spec.n_rows == 16
    note = source.notes()[0]
    assert note.endswith(
        f"1 path in it more than once, whose rows count as often: {tmp_path}/a.npy"
    )


def test_a_list_of_shards_of_several_kinds(tmp_path: Path) -> None:
    from tests.sources.test_flat import write_bin

    rows = numbers((11, 2))
    save(tmp_path, a=rows[:5])
    write_bin(tmp_path / "b.fbin", rows[5:])
    source = open_source([tmp_path / "a.npy", tmp_path / "b.fbin"])
    assert same_bytes(read(source, 0, 11), rows)
    assert source.spec.layout == "2 parts, mixed"


def test_estimators_take_a_list(tmp_path: Path) -> None:
    rows = numbers((60, 3))
    save(tmp_path, a=rows[:13], b=rows[13:])
    paths = [str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]
    whole = KMeans(2, random_state=0).fit(rows)
    listed = KMeans(2, random_state=0).fit(paths)
    assert np.allclose(listed.cluster_centers_, whole.cluster_centers_)
    assert listed.predict(paths).tolist() == whole.predict(rows).tolist()


# Breaks when a run of a list cannot go on, or goes on with a list that has changed.
def test_a_fit_of_a_list_resumes(tmp_path: Path, capsys) -> None:
    rows = numbers((90, 3))
    save(tmp_path, a=rows[:30], b=rows[30:])
    list_file = tmp_path / "files.txt"
    list_file.write_text(f"{tmp_path}/a.npy\n{tmp_path}/b.npy\n")
    command = ["fit", f"@{list_file}", "--k", "2", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    assert main([*command, "--resume"]) == 0
    assert main(["info", str(tmp_path / "run")]) == 0
    assert f"source       @{list_file}" in capsys.readouterr().out
    list_file.write_text(f"{tmp_path}/b.npy\n{tmp_path}/a.npy\n")
    assert main([*command, "--resume"]) == 2


# ---------------------------------------------------------------- partitions and folders


class TestHive(SourceContract):
    """``year=.../month=...`` two deep, with shards of several lengths."""

    @pytest.fixture
    def case(self, tmp_path: Path) -> Case:
        array = numbers((100, 3))
        names = ["y=9/m=2/a", "y=9/m=10/a", "y=9/m=10/b", "y=10/m=1/a"]

        def store(changed: np.ndarray) -> None:
            for name, rows in zip(names, np.split(changed, [7, 20, 60]), strict=True):
                path = tmp_path / f"{name}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, rows)

        store(array)
        return Case(array, "float32", store, lambda: open_source(tmp_path), tmp_path)


def test_what_is_said_of_partitions(tmp_path: Path) -> None:
    for folder in ("y=1/m=2", "y=1/m=3", "_delta_log", "y=1/.tmp"):
        (tmp_path / folder).mkdir(parents=True)
    for index, folder in enumerate(("y=1/m=2", "y=1/m=3")):
        save(tmp_path / folder, a=numbers((5 + index, 2)))
        (tmp_path / folder / "_SUCCESS").touch()
        (tmp_path / folder / "a.crc").touch()
    source = open_source(tmp_path)
    assert source.notes() == [
        f"{tmp_path}: the names of its folders give y, m: these are no features",
        f"{tmp_path}: 2 other entries are not read: a.crc, a.crc",
    ]
    assert source.spec.n_rows == 11
    from streamkm.sources.within import would_take

    assert would_take(source, tmp_path / "y=1" / "m=4" / "labels.npy")
    assert not would_take(source, tmp_path / "y=1" / "m=4" / "labels.txt")
    assert not would_take(source, tmp_path / "_logs" / "labels.npy")
    assert not would_take(source, tmp_path.parent / "labels.npy")


def test_partitions_of_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = numbers((30, 2))
    for day, part in enumerate(np.split(rows, 3)):
        (tmp_path / f"day={day}").mkdir()
        table = pa.table({"a": part[:, 0], "b": part[:, 1]})
        parquet.write_table(table, tmp_path / f"day={day}" / "part-0.snappy.parquet")
    assert same_bytes(read(open_source(tmp_path), 0, 30), rows)
    assert hive_shards(tmp_path)[2] == ["day"]


def test_folders_of_folders_are_told_how(tmp_path: Path) -> None:
    (tmp_path / "speaker1" / "session").mkdir(parents=True)
    save(tmp_path / "speaker1" / "session", a=numbers((5, 2)))
    refused(tmp_path, "without an array", f"'{tmp_path}/**/*.npy'")
    assert open_source(f"{tmp_path}/**/*.npy").spec.n_rows == 5


def test_a_run_is_no_source(tmp_path: Path) -> None:
    save(tmp_path, x=numbers((40, 2)))
    assert main(["fit", str(tmp_path / "x.npy"), "--k", "2", "--out", str(tmp_path / "run")]) == 0
    refused(tmp_path / "run", f"{tmp_path}/run: is a run folder", "name the array")


def test_a_pattern_that_the_shell_has_expanded(tmp_path: Path, capsys) -> None:
    save(tmp_path, a=numbers((5, 2)), b=numbers((5, 2)), c=numbers((5, 2)))
    names = [str(path) for path in sorted(tmp_path.glob("*.npy"))]
    for command in (["info", *names], ["fit", *names, "--k", "2", "--out", "run"]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert "c.npy; one source is read: quote a pattern ('data/*.npy'), or list" in said
        assert said.count("\n") == 1


def test_what_is_not_there_and_is_like_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path, train=numbers((5, 2)))
    refused("trian.npy", "trian.npy: does not exist; did you mean train.npy?")
    with pytest.raises(SourceError, match=r"^nope\.parquet: does not exist$"):
        open_source("nope.parquet")
    refused("no/nope.npy", f"does not exist; the folder {tmp_path} does, check what follows")


@pytest.mark.parametrize("suffix", [".csv", ".txt", ".pkl", ".pt"])
def test_files_that_people_have(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"x{suffix}").write_bytes(bytes(24))
    remedy = "numpy.save" if suffix.startswith(".p") else "convert it to Parquet"
    refused(tmp_path / f"x{suffix}", f"x{suffix}: ", remedy)
    # Who says what the bytes are, means it.
    assert open_source(tmp_path / f"x{suffix}", dtype="f4", n_features=2).spec.n_rows == 3


# ---------------------------------------------------------------- shards without rows


# Breaks when one empty shard, as Spark writes them, makes a whole folder unreadable.
@pytest.mark.parametrize("order", ["first", "middle", "last"])
def test_empty_shards_are_passed_over(tmp_path: Path, order: str) -> None:
    rows = numbers((20, 3))
    place = {"first": "0", "middle": "2", "last": "4"}[order]
    save(tmp_path, **{"1": rows[:12], "3": rows[12:], place: rows[:0]})
    source = open_source(tmp_path)
    assert same_bytes(read(source, 0, 20), rows)
    assert source.notes() == [f"{tmp_path}: 1 shard holds no rows: {tmp_path}/{place}.npy"]
    source.close()


def test_only_empty_shards(tmp_path: Path) -> None:
    save(tmp_path, a=np.empty((0, 3)), b=np.empty((0, 3)))
    refused(tmp_path, "all 2 shards hold no rows")
    with pytest.raises(NoRowsError, match="write rows into it first"):
        open_source(tmp_path / "a.npy")
    save(tmp_path, b=np.empty((3, 0)))
    refused(tmp_path, "b.npy: the array is empty")


# ---------------------------------------------------------------- how a source shows itself


def test_repr_says_what_a_source_is(tmp_path: Path) -> None:
    save(tmp_path, a=numbers((1005, 3)))
    path = tmp_path / "a.npy"
    expected = f"<FlatSource {path}: 1,005 rows x 3 features, float32, npy, C order>"
    assert repr(open_source(path)) == expected
    shown: Any = repr(open_source(tmp_path))
    assert (
        shown
        == f"<ConcatSource {tmp_path}: 1,005 rows x 3 features, float32, 1 part, npy, C order>"
    )
    assert repr(open_source(numbers((5, 2)))).startswith("<MemorySource array in memory: 5 rows")
    assert os.linesep not in shown
