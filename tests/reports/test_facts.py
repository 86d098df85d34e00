"""What a run folder says while its run is under way, and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file

from streamkm.errors import RunError
from streamkm.reports.facts import read_run
from streamkm.runs.storage.run_folder import RunFolder, read_config
from tests.reports.helpers import report
from tests.runs.helpers import Job, cli, clusters, every

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def job(tmp_path: Path) -> Job:
    np.save(tmp_path / "x.npy", clusters(400, 3))
    settings = {"k": 4, "epochs": 3, "batch_rows": 50, "init": "random", "scale": "none"}
    return Job(tmp_path / "x.npy", tmp_path / "run", settings)


# Breaks when a report needs the result, or shows sizes of all epochs for those of one.
def test_a_run_under_way_shows_what_is_known(job: Job) -> None:
    assert job.interrupted(12, checkpoint_every=every(1))
    facts = read_run(job.run)
    assert facts.model is None
    assert facts.clusters is not None
    (newest,) = sorted((job.run / "checkpoints").iterdir())[-1:]
    tensors = load_file(newest / "state.safetensors")
    np.testing.assert_allclose(facts.clusters.points_KD, tensors["state.centroids_KD"], rtol=1e-5)
    assert 0 < facts.clusters.sizes_K.sum() <= 400
    assert facts.stands.startswith("phase train, epoch ")
    made = report(job.run)
    text = made.verdict.findings[0].text
    assert text.startswith(f"The run is not finished: it stands at {facts.stands}. No process")
    assert made.verdict.headline == "400 rows in 4 clusters, not finished"
    assert {"sizes", "map"} <= made.figures.keys()
    assert "Rows are read once the run is finished." in made.html()


def test_a_run_that_somebody_works_on_names_the_process(job: Job) -> None:
    assert job.interrupted(12, checkpoint_every=every(1))
    with RunFolder(job.run, read_config(job.run), resume=True):
        made = report(job.run)
    assert "is working on it; make the report again" in made.verdict.findings[0].text


@pytest.mark.parametrize("stop_at", [1, 2])
def test_a_run_before_its_first_centroids_has_no_clusters(job: Job, stop_at: int) -> None:
    assert job.interrupted(stop_at, checkpoint_every=every(1))
    assert read_run(job.run).clusters is None
    made = report(job.run)
    assert "sizes" not in made.figures
    assert "not finished" in made.html()


def test_damaged_checkpoints_are_refused(job: Job) -> None:
    assert job.interrupted(12, checkpoint_every=every(1))
    for state in job.run.glob("checkpoints/*/state.safetensors"):
        state.write_bytes(state.read_bytes()[:-4])
    with pytest.raises(RunError, match="none of its 2 checkpoints is intact"):
        report(job.run)


def test_a_finished_run_without_a_closing_pass_knows_no_exact_sizes(job: Job) -> None:
    job.settings["closing_pass"] = False
    job.attempt()
    facts = read_run(job.run)
    assert facts.clusters is not None
    assert facts.clusters.inertia is None
    made = report(job.run, rows=False)
    assert any(f.text.startswith("There was no closing pass") for f in made.verdict.findings)
    assert "variance explained" not in [f.name for f in made.verdict.figures]


# Breaks where figures keep the power of two that --scale none multiplies values with.
def test_distances_are_in_the_unit_of_the_data(tmp_path: Path) -> None:
    x = clusters(300, 3)
    found = []
    for name, factor in (("a", 1.0), ("b", 1e20)):
        np.save(tmp_path / f"{name}.npy", (x * factor).astype(np.float32))
        run = tmp_path / f"run-{name}"
        assert cli("fit", tmp_path / f"{name}.npy", "--k", 3, "--out", run) == 0
        made = report(run)
        assert made.seen is not None
        assert made.facts.clusters is not None
        assert made.verdict.figures[0].name == "variance explained"
        found.append(
            (
                made.seen.mean_distance_K / factor,
                made.facts.clusters.points_KD / factor,
                made.verdict.figures[0].value,
            )
        )
    (distances, points, explained), (distances_2, points_2, explained_2) = found
    np.testing.assert_allclose(distances, distances_2, rtol=1e-4)
    np.testing.assert_allclose(points, points_2, rtol=1e-4)
    assert explained == explained_2
