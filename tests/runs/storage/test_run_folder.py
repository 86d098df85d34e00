"""The run folder: whose it is, and what it keeps of settings and data."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamkm import files
from streamkm.errors import NonFiniteError, OutputExistsError, ResumeError, RunError
from streamkm.runs.storage import run_folder
from streamkm.runs.storage.model import load_model
from streamkm.runs.storage.run_folder import RunFolder, check_run_is_free, read_config
from tests.runs.helpers import Job, clusters, every

RECORD: dict[str, Any] = {
    "source": "x.npy",
    "fit": {"k": 3, "seed": 0},
    "data": {"shape": [10, 2], "dtype": "float32", "fingerprint": "ab"},
}


def entered(path: Path, record=RECORD, *, resume: bool = True) -> None:
    with RunFolder(path, record, resume=resume):
        pass


def changed(group: str, **values):
    return {**RECORD, group: {**RECORD[group], **values}}


@pytest.fixture
def job(tmp_path) -> Job:
    np.save(tmp_path / "x.npy", clusters(300, 3))
    return Job(tmp_path / "x.npy", tmp_path / "run", {"k": 4, "batch_rows": 50, "init": "random"})


def test_a_new_folder_says_what_it_is(tmp_path):
    entered(tmp_path / "deep/run", resume=False)
    assert read_config(tmp_path / "deep/run") == RECORD
    entered(tmp_path / "deep/run")


# Breaks when a sweep is told as no run at all, and none of its runs is named.
def test_a_sweep_is_told_as_one(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(RunError, match=r"is a sweep, no run: name a run$"):
        read_config(tmp_path)
    entered(tmp_path / "k-0100")
    with pytest.raises(RunError, match=r"is a sweep, no run: name one .* such as .*k-0100$"):
        read_config(tmp_path)


def test_an_empty_folder_is_free_and_any_other_is_not(tmp_path):
    (tmp_path / "run").mkdir()
    check_run_is_free(tmp_path / "run", resume=False)
    entered(tmp_path / "run", resume=False)
    with pytest.raises(OutputExistsError, match="resume=True"):
        entered(tmp_path / "run", resume=False)


# Breaks where two looks at the folder must agree: another process may remove it between them.
@pytest.mark.parametrize("look", ["is_folder", "names_in", "_config_in"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_that_is_removed_while_it_is_looked_at_is_free(look, when, tmp_path, monkeypatch):
    entered(tmp_path / "run")
    real = getattr(run_folder, look)

    def vanishing(path: Path):
        found = real(path) if when == "after" else None
        shutil.rmtree(tmp_path / "run")
        return found if when == "after" else real(path)

    monkeypatch.setattr(run_folder, look, vanishing)
    check_run_is_free(tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


# Breaks where a folder that is being removed looks like one that lost its settings.
def test_a_run_that_saved_nothing_keeps_its_settings_to_the_last(tmp_path, monkeypatch):
    run, discarded = tmp_path / "run", []

    def discard(*paths: Path) -> None:
        for path in paths:
            discarded.append(path.name)
            check_run_is_free(run, resume=True)
            files.discard(path)

    def fail() -> None:
        with RunFolder(run, RECORD, resume=True) as folder:
            (folder.path / "metrics.jsonl").touch()
            raise NonFiniteError("nothing came of it")

    monkeypatch.setattr(run_folder, "discard", discard)
    with pytest.raises(NonFiniteError):
        fail()
    assert discarded[-1] == "config.json"
    assert set(discarded) == {"metrics.jsonl", "checkpoints", "config.json"}
    assert not run.exists()


# Killed between taking the lock and writing config.json, or while writing it.
@pytest.mark.parametrize("left", [["lock"], ["lock", ".config.json.tmp"]])
def test_a_run_that_was_killed_in_its_first_moment_can_be_resumed(left, tmp_path):
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name).write_bytes(b'{"fi')
    entered(tmp_path / "run")
    assert read_config(tmp_path / "run") == RECORD


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"fit": {}, "data": {}}', b"\xff\xfe"]
)
def test_a_damaged_config_is_refused_and_kept(content, tmp_path):
    entered(tmp_path / "run")
    (tmp_path / "run/config.json").write_bytes(content)
    with pytest.raises(RunError, match=r"config\.json is damaged"):
        entered(tmp_path / "run")
    assert (tmp_path / "run/config.json").read_bytes() == content


def test_a_changed_setting_is_refused_naming_both_values(tmp_path):
    entered(tmp_path / "run")
    with pytest.raises(ResumeError, match=r"k: 3 -> 4; seed: 0 -> 9"):
        entered(tmp_path / "run", changed("fit", k=4, seed=9))
    assert read_config(tmp_path / "run") == RECORD


@pytest.mark.parametrize(
    "change", [{"fingerprint": "cd"}, {"shape": [11, 2]}, {"dtype": "int8"}], ids=str
)
def test_changed_data_is_refused_naming_both_values(change, tmp_path):
    entered(tmp_path / "run")
    ((key, value),) = change.items()
    with pytest.raises(ResumeError, match="the data changed") as caught:
        entered(tmp_path / "run", changed("data", **change))
    assert f"{key}: {RECORD['data'][key]} -> {value}" in str(caught.value)


# Breaks when a user who mistyped the source is told of blocks and fingerprints.
@pytest.mark.parametrize(
    "change", [{"fingerprint": "cd"}, {"shape": [1100, 2]}, {"block_rows": 9}], ids=str
)
def test_another_source_is_told_as_one(change, tmp_path):
    entered(tmp_path / "run")
    other = {**changed("data", **change), "source": "/elsewhere/y.npy"}
    with pytest.raises(ResumeError, match="another source was given") as caught:
        entered(tmp_path / "run", other)
    said, rows = str(caught.value), "1,100" if "shape" in change else "10"
    assert "began with x.npy (10 x 2, float32)" in said
    assert f"this is /elsewhere/y.npy ({rows} x 2, float32); give the former" in said
    assert "cp -p" in said
    assert not any(word in said for word in ("block", "fingerprint", "->"))


def test_the_same_source_by_another_path_has_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entered(tmp_path / "run")
    by_path = {**changed("data", block_rows=9), "source": str(tmp_path / "x.npy")}
    with pytest.raises(
        ResumeError, match=r"data changed .*\(rows of a chunk or block: None -> 9\)"
    ):
        entered(tmp_path / "run", by_path)


def test_other_weights_are_no_other_source(tmp_path):
    entered(tmp_path / "run")
    weighted = {**changed("data", weights="ab"), "source": "/elsewhere/x.npy"}
    with pytest.raises(ResumeError, match=r"data changed .*\(weights: None -> ab\)"):
        entered(tmp_path / "run", weighted)


# The remedy that the error names is cp -p: the copy has another path.
def test_the_same_data_may_be_named_otherwise(tmp_path):
    entered(tmp_path / "run")
    entered(tmp_path / "run", {**RECORD, "source": "/elsewhere/x.npy"})


def test_a_folder_is_for_one_at_a_time_and_free_after_an_error(tmp_path):
    path = tmp_path / "run"
    with (
        RunFolder(path, RECORD, resume=True),
        pytest.raises(RunError, match=r"process \d+ on \S+ is working on this run"),
    ):
        entered(path)
    with pytest.raises(ResumeError):
        entered(path, changed("fit", k=4))
    entered(path)


def test_a_run_moves_with_its_data(job, tmp_path):
    whole = replace(job, run=tmp_path / "whole")
    whole.attempt()
    assert job.interrupted(5, checkpoint_every=every(1))
    (tmp_path / "new").mkdir()
    shutil.copy2(job.source, tmp_path / "new/x.npy")
    job.run.rename(tmp_path / "new/run")
    moved = replace(job, source=tmp_path / "new/x.npy", run=tmp_path / "new/run")
    moved.attempt()
    assert moved.results == whole.results


def test_data_that_was_written_again_is_refused(job):
    assert job.interrupted(5)
    np.save(job.source, clusters(300, 3, seed=1))
    with pytest.raises(ResumeError, match="fingerprint"):
        job.attempt()


# Weights are data too, and so is having none.
def test_other_weights_are_refused_naming_both(job, tmp_path):
    weighted = replace(job, weights=tmp_path / "w.npy")
    np.save(weighted.weights, np.ones(300))
    assert weighted.interrupted(5)
    before = read_config(job.run)["data"]["weights"]
    with pytest.raises(ResumeError, match=f"weights: {before} -> None"):
        job.attempt()
    np.save(weighted.weights, np.arange(300))
    with pytest.raises(ResumeError, match=f"weights: {before} -> [0-9a-f]{{64}}"):
        weighted.attempt()
    np.save(weighted.weights, np.ones(300, np.int8))  # The same numbers.
    weighted.attempt()
    assert load_model(job.run).weights_K.sum() == 300
    job.run = tmp_path / "unweighted"
    assert job.interrupted(5)
    with pytest.raises(ResumeError, match="weights: None -> "):
        replace(weighted, run=job.run).attempt()


# The centroids to begin with are data too: only their path is among the settings.
def test_another_init_file_of_the_same_name_is_refused(job, tmp_path):
    np.save(tmp_path / "init.npy", np.eye(4, 3))
    job.settings["init"] = str(tmp_path / "init.npy")
    assert job.interrupted(1)
    np.save(tmp_path / "init.npy", 2 * np.eye(4, 3))
    with pytest.raises(ResumeError, match="init: "):
        job.attempt()


@pytest.mark.parametrize(
    ("name", "value"), [("k", 5), ("seed", 1), ("batch_rows", 51), ("nan", "drop"), ("tol", 0.5)]
)
def test_a_run_goes_on_under_the_same_settings_only(name, value, job):
    assert job.interrupted(5)
    with pytest.raises(ResumeError, match=f"{name.replace('_', '-')}: .* -> {value}"):
        replace(job, settings={**job.settings, name: value}).attempt()


def test_a_setting_that_is_given_as_its_default_is_no_change(job):
    assert job.interrupted(5)
    replace(job, settings={**job.settings, "epochs": 1, "tol": 0.0}).attempt()


def test_config_json_says_what_was_resolved_and_on_which_data(job):
    job.attempt()
    record = json.loads((job.run / "config.json").read_text())
    assert record["fit"]["epochs"] == 1
    assert record["fit"]["batch_rows"] == 50
    assert record["data"]["shape"] == [300, 3]
    assert record["data"]["dtype"] == "float32"
