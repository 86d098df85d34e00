"""Where outputs may lie: a run or a label that is written into its own source is lost data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from streamkm import KMeans
from streamkm.cli import main
from streamkm.errors import ConfigError
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
