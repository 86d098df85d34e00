"""Places where outputs may lie, and records of those that are finished."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from streamkm import KMeans
from streamkm.cli import main
from streamkm.errors import ConfigError
from streamkm.runs.storage import output_records
from streamkm.sinks import Sink
from streamkm.sources import open_source
from streamkm.sources.within import pattern_takes, would_take
from tests.runs.helpers import clusters

ROWS = clusters(300, 3)


@pytest.fixture
def cli(capsys):
    def run(*arguments: object) -> tuple[int, str]:
        status = main([str(argument) for argument in arguments])
        return status, capsys.readouterr().err

    return run


@pytest.fixture
def x(tmp_path: Path) -> Path:
    path = tmp_path / "x.zarr"
    zarr.create_array(path, data=ROWS, chunks=(50, 3))
    return path


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


# ---- outputs in their own source --------------------------------------------


# Breaks when a run is begun that an interruption would end for good: its own files are changes
# of the data.
@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--resume"]], ids=str)
def test_a_run_in_its_own_source_is_refused(options, x, tmp_path, cli):
    before = tree(tmp_path)
    status, err = cli("fit", x, "--k", 2, "--out", x / "run", *options)
    assert status == 2
    assert f"--out {x / 'run'} would become part of the source {x}" in err
    assert "choose a place outside of it" in err
    assert len(err.splitlines()) == 1
    assert tree(tmp_path) == before


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=str)
def test_labels_and_distances_in_their_own_source_are_refused(dry, x, tmp_path, cli):
    run = tmp_path / "run"
    assert cli("fit", x, "--k", 2, "--out", run, "--init", "random")[0] == 0
    before = tree(tmp_path)
    status, err = cli("predict", run, x, "--labels", x / "l.zarr", *dry)
    assert (status, f"--labels {x / 'l.zarr'} would become part of" in err) == (2, True)
    outputs = ("--labels", tmp_path / "l.npy", "--distances", x / "c" / "d.npy")
    status, err = cli("predict", run, x, *outputs, *dry)
    assert (status, "--distances" in err) == (2, True)
    assert tree(tmp_path) == before


def test_links_are_followed(x, tmp_path, cli):
    (tmp_path / "link").symlink_to(x)
    assert cli("fit", x, "--k", 2, "--out", tmp_path / "link" / "run")[0] == 2
    assert cli("fit", tmp_path / "link", "--k", 2, "--out", x / "run")[0] == 2


def test_estimators_refuse_a_run_folder_in_what_they_read(x):
    before = tree(x)
    for rows in (x, zarr.open_array(x, mode="r"), open_source(x)):
        with pytest.raises(ConfigError, match=r"run_dir='.*run' would become part of"):
            KMeans(2, random_state=0, run_dir=x / "run").fit(rows)
    assert tree(x) == before


# Arrays of one store often lie side by side, and so may labels.
def test_beside_an_array_of_a_store_is_outside_of_it(x, tmp_path, cli):
    group = zarr.create_group(tmp_path / "store.zarr")
    group.create_array("rows", data=ROWS, chunks=(50, 3))
    rows, run = tmp_path / "store.zarr" / "rows", tmp_path / "store.zarr" / "run"
    assert cli("fit", rows, "--k", 2, "--out", run, "--init", "random")[0] == 0
    assert cli("predict", run, rows, "--labels", tmp_path / "store.zarr" / "l.zarr")[0] == 0
    assert cli("fit", rows, "--k", 2, "--out", run, "--init", "random", "--resume")[0] == 0


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for index, rows in enumerate(np.split(ROWS, 3)):
        np.save(folder / f"s{index}.npy", rows)
    return folder


# A run folder is no shard, and what is refused is what would be read as one.
def test_a_folder_of_shards_refuses_what_it_would_take_for_a_shard(shards, tmp_path, cli):
    fit = ("fit", shards, "--k", 2, "--init", "random", "--out")
    assert cli(*fit, shards / "run.npy")[0] == 2
    assert cli(*fit, shards / "new.zarr" / "run")[0] == 2
    fingerprint = open_source(shards).fingerprint()
    assert cli(*fit, shards / "run")[0] == 0
    assert open_source(shards).fingerprint() == fingerprint
    assert "is finished" in cli(*fit, shards / "run", "--resume")[1]
    for name in ("l.npy", "l.zarr"):
        status, err = cli("predict", shards / "run", shards, "--labels", shards / name)
        assert (status, "would become part of the source" in err) == (2, True)
    (shards / "sub").mkdir()
    assert cli("predict", shards / "run", shards, "--labels", shards / "sub" / "l.npy")[0] == 0


def test_what_a_pattern_would_name_is_refused(shards, tmp_path, cli):
    fit = ("fit", f"{shards}/*", "--k", 2, "--init", "random", "--out")
    assert cli(*fit, shards / "run")[0] == 2
    assert cli("fit", f"{shards}/*.npy", *fit[2:], shards / "run")[0] == 0
    predict = ("predict", shards / "run", f"{shards}/*.npy", "--labels")
    assert cli(*predict, shards / "l.npy")[0] == 2
    assert cli(*predict, shards / "l.zarr")[0] == 0
    assert cli("predict", shards / "run", f"{shards}/s*.npy", "--labels", shards / "l.npy")[0] == 0


@pytest.mark.parametrize(
    ("pattern", "path", "takes"),
    [
        ("*.npy", "l.npy", True),
        ("*.npy", "run", False),
        ("*.npy", "sub/l.npy", False),
        ("*.npy", "new.npy/run", True),
        ("*/x.npy", "run", True),
        ("*/x.npy", "run/x.npy", True),
        ("*/x.npy", "run/l.npy", False),
        ("**/*.npy", "l.npy", True),
        ("**/*.npy", "a/b/run", True),
        ("a/**/b*/*.npy", "c/b/l.npy", False),
        ("a/*.npy", "b/l.npy", False),
        ("a[12].zarr", "a2.zarr/run", True),
        ("a[12].zarr", "a3.zarr/run", False),
    ],
)
def test_a_pattern_takes_what_it_names_and_what_may_hold_it(pattern, path, takes, tmp_path):
    assert pattern_takes(tmp_path / pattern, tmp_path / path) is takes


def test_sources_that_are_one_file_or_none_take_nothing(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    np.save(tmp_path / "bits.npy", np.zeros((4, 2), np.uint16))
    for source in (
        open_source(tmp_path / "x.npy"),
        open_source(tmp_path / "bits.npy", dtype="bfloat16"),
        open_source(ROWS),
    ):
        assert not would_take(source, tmp_path / "run")


def test_bits_in_a_store_take_what_it_takes(tmp_path):
    zarr.create_array(tmp_path / "b.zarr", data=np.zeros((4, 2), np.uint16))
    source = open_source(tmp_path / "b.zarr", dtype="bfloat16")
    assert would_take(source, tmp_path / "b.zarr" / "run")
    assert not would_take(source, tmp_path / "run")


# ---- outputs that are finished ----------------------------------------------


@pytest.fixture
def run(x: Path, tmp_path: Path, cli) -> Path:
    folder = tmp_path / "run"
    assert cli("fit", x, "--k", 3, "--out", folder, "--init", "random")[0] == 0
    return folder


def times(folder: Path) -> list[tuple[Path, int]]:
    return [(path, path.stat().st_mtime_ns) for path in tree(folder)]


# A script can always pass --resume, as to a fit.
@pytest.mark.parametrize("suffix", ["npy", "zarr"])
def test_resume_leaves_what_is_finished(suffix, run, x, tmp_path, cli):
    labels, distances = tmp_path / f"l.{suffix}", tmp_path / f"d.{suffix}"
    predict = ("predict", run, x, "--labels", labels, "--distances", distances)
    assert cli(*predict, "--resume")[0] == 0
    before = times(tmp_path)
    for again in (predict, ("predict", run, x, "--labels", labels)):
        status, err = cli(*again, "--resume")
        assert status == 0
        assert "finished, by this model from this source: nothing is left to do" in err
        # Without it nothing is assumed of a file that is there.
        assert cli(*again)[0] == cli(*again, "--dry-run")[0] == 2
    assert times(tmp_path) == before


def change_model(run: Path, x: Path, labels: Path) -> None:
    shutil.rmtree(run)
    fit = ["fit", str(x), "--k", "3", "--seed", "5", "--out", str(run), "--init", "random"]
    assert main(fit) == 0


def change_data(run: Path, x: Path, labels: Path) -> None:
    zarr.open_array(x, mode="r+")[7] = 50.0


def change_values(run: Path, x: Path, labels: Path) -> None:
    if labels.suffix == ".npy":
        content = bytearray(labels.read_bytes())
        content[-1] ^= 1
        labels.write_bytes(content)
    else:
        zarr.open_array(labels, mode="r+")[7] = 50


def replace_by_another(run: Path, x: Path, labels: Path) -> None:
    if labels.suffix == ".npy":
        np.save(labels, np.load(labels)[:-1])
    else:
        shutil.rmtree(labels)
        zarr.create_array(labels, data=np.zeros(300, np.int64))


def cut(run: Path, x: Path, labels: Path) -> None:
    if labels.suffix == ".npy":
        labels.write_bytes(labels.read_bytes()[:-4])
    else:
        (labels / "c" / "0").write_bytes(b"")


def damage_record(run: Path, x: Path, labels: Path) -> None:
    for path in (run / "outputs").iterdir():
        path.write_bytes(path.read_bytes().replace(b"300", b"301"))


def lose_record(run: Path, x: Path, labels: Path) -> None:
    shutil.rmtree(run / "outputs")


# Breaks when labels are said to be this model's, of these rows, that are not, or may not be.
@pytest.mark.parametrize(
    "change",
    [change_model, change_data, change_values, replace_by_another, cut, damage_record, lose_record],
)
@pytest.mark.parametrize("suffix", ["npy", "zarr"])
def test_what_is_not_known_to_be_finished_is_refused(suffix, change, run, x, tmp_path, cli):
    labels = tmp_path / f"l.{suffix}"
    predict = ("predict", run, x, "--labels", labels, "--resume")
    assert cli(*predict)[0] == 0
    change(run, x, labels)
    before = times(tmp_path)
    for options in ([], ["--dry-run"]):
        status, err = cli(*predict, *options)
        assert status == 2
        assert f"{labels}: exists already, and is nothing that --resume can go on with" in err
        assert "remove it or choose another name" in err
        assert ("it is of another source, or of this one before" in err) is (change is change_data)
    assert times(tmp_path) == before


def test_other_labels_of_the_same_run_are_not_taken_for_these(run, x, tmp_path, cli):
    predict = ("predict", run, x, "--resume", "--labels")
    assert cli(*predict, tmp_path / "l.npy")[0] == 0
    (tmp_path / "l.npy").rename(tmp_path / "moved.npy")
    assert cli(*predict, tmp_path / "moved.npy")[0] == 2
    assert cli(*predict, tmp_path / "l.npy")[0] == 0
    # With distances that are still to be made there is something left to do.
    both = (*predict, tmp_path / "l.npy", "--distances", tmp_path / "d.npy")
    assert cli(*both)[0] == 2
    assert cli(*predict, tmp_path / "l.npy", "--nan", "drop")[0] == 2


# Killed when both have their names and only cursors are left, it has finished.
@pytest.mark.parametrize("suffix", ["npy", "zarr"])
@pytest.mark.parametrize("n_forgotten", [0, 1, 2])
def test_what_was_killed_at_its_very_end_is_finished(
    n_forgotten, suffix, run, x, tmp_path, cli, monkeypatch
):
    labels, distances = tmp_path / f"l.{suffix}", tmp_path / f"d.{suffix}"
    predict = ("predict", run, x, "--labels", labels, "--distances", distances, "--resume")
    forget, left = Sink.forget, [n_forgotten]

    class Killed(BaseException):
        pass

    def forget_some(sink: Sink) -> None:
        if not left[0]:
            raise Killed
        forget(sink)
        left[0] -= 1
        if n_forgotten == 2 and not left[0]:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Sink, "forget", forget_some)
        with pytest.raises(Killed):
            cli(*predict)
    assert labels.exists()
    assert distances.exists()
    status, err = cli(*predict)
    assert (status, "are finished" in err) == (0, True)
    assert not list(tmp_path.glob("*.partial*"))


# A model is often shared, and read-only; its labels are as good.
def test_a_run_that_cannot_be_written_labels_all_the_same(run, x, tmp_path, cli, monkeypatch):
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(output_records, "make_directory", refuse)
    predict = ("predict", run, x, "--labels", tmp_path / "l.npy")
    status, err = cli(*predict)
    assert status == 0
    assert "note: a later --resume will not know that this is finished" in err
    assert "Permission denied" in err
    status, err = cli(*predict, "--resume")
    assert (status, "has no record" in err) == (2, True)
