"""Fits that go on from an earlier run: all rows count, and nothing unlike is joined."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from streamkm import MiniBatchKMeans, load_run
from streamkm.runs.storage.model import load_model
from tests.runs.helpers import Job, cli, clusters, every

N, FIRST = 1200, 700


@pytest.fixture
def x(tmp_path: Path) -> Path:
    rows = clusters(N, 4)
    np.random.default_rng(1).shuffle(rows)
    for name, part in (("x", rows), ("first", rows[:FIRST]), ("new", rows[FIRST:])):
        np.save(tmp_path / f"{name}.npy", part)
    return tmp_path / "x.npy"


@pytest.fixture
def run(x: Path) -> Path:
    """A finished run on the first rows."""
    out = x.with_name("run")
    assert cli("fit", x, "--rows", f":{FIRST}", "--k", 5, "--scale", "zscore", "--out", out) == 0
    return out


# Breaks when rows of the earlier run are lost, or count otherwise than new ones; when the scaling
# is another.
def test_centroids_are_means_of_all_rows_that_came(x: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fit = ("fit", x, "--rows", f"{FIRST}:", "--from", run, "--batch-rows", N, "--out", out)
    assert cli(*fit) == 0
    before, after = load_model(run), load_model(out)
    labels_N = np.load(label(run, tmp_path / "new.npy"))
    rows_ND = np.load(tmp_path / "new.npy").astype(np.float64)
    scaled_ND = (rows_ND - before.scaling.shift_D.numpy()) * before.scaling.factor_D.numpy()
    for cluster in range(5):
        mine = scaled_ND[labels_N == cluster]
        mass = int(before.counts_K[cluster]) + len(mine)
        mean = (before.sums_KD[cluster].numpy() + mine.sum(axis=0)) / mass
        np.testing.assert_allclose(after.centroids_KD[cluster].numpy(), mean, rtol=1e-5, atol=1e-6)
        assert int(after.counts_K[cluster]) == mass
    assert after.scaling.shift_D.tolist() == before.scaling.shift_D.tolist()
    assert after.inertia is None


# Breaks when a run of another algorithm goes on as minibatch in silence.
def test_another_algorithm_is_told(x: Path, tmp_path: Path, capsys) -> None:
    first, said = tmp_path / "first.npy", "is one of algorithm lloyd: its centroids go on as those"
    for algorithm, is_said in (("lloyd", True), ("minibatch", False)):
        run = tmp_path / algorithm
        assert cli("fit", first, "--k", 5, "--algorithm", algorithm, "--out", run) == 0
        capsys.readouterr()
        go_on = ("fit", tmp_path / "new.npy", "--from", run, "--out", tmp_path / f"{algorithm}-2")
        for more in (("--dry-run",), ()):
            assert cli(*go_on, *more) == 0
            assert (said in "".join(capsys.readouterr())) is is_said


def label(run: Path, source: Path) -> Path:
    out = source.with_suffix(".labels.npy")
    assert cli("predict", run, source, "--labels", out) == 0
    return out


# Breaks when one update in a fit is another than that of partial_fit.
def test_one_batch_is_a_partial_fit(x: Path, tmp_path: Path) -> None:
    first, new = (np.load(tmp_path / f"{name}.npy") for name in ("first", "new"))
    fitted = MiniBatchKMeans(5, random_state=0, run_dir=tmp_path / "est").fit(first)
    out = tmp_path / "out"
    fit = ("fit", tmp_path / "new.npy", "--from", tmp_path / "est", "--batch-rows", N)
    assert cli(*fit, "--out", out) == 0
    fitted.partial_fit(new)
    grown = load_run(out)
    np.testing.assert_allclose(grown.cluster_centers_, fitted.cluster_centers_, rtol=1e-6)
    np.testing.assert_array_equal(grown.counts_, fitted.counts_)


# Breaks when age, counts or sums are not in a checkpoint.
@pytest.mark.parametrize("half_life", [None, 300])
def test_a_resumed_run_has_the_bytes_of_one_that_was_not_stopped(
    half_life: int | None, run: Path, x: Path, tmp_path: Path
) -> None:
    settings = {
        "k": 5, "scale": "zscore", "from_run": str(run), "half_life": half_life,
        "batch_rows": 64, "epochs": 2, "tol": 1e-9,
    }  # fmt: skip
    new = tmp_path / "new.npy"
    whole = Job(new, tmp_path / "whole", settings)
    n_looks = whole.attempt()
    stopped = Job(new, tmp_path / "stopped", settings)
    for stop_at in (2, 3, n_looks):
        stopped.interrupted(stop_at, checkpoint_every=every(1))
    stopped.attempt()
    assert stopped.results == whole.results


# Breaks when old rows do not fade, or what they weigh is lost on the way to the next run.
def test_a_half_life_follows_data_that_moves(run: Path, x: Path, tmp_path: Path) -> None:
    moved = np.load(tmp_path / "new.npy") + np.float32(3)
    np.save(tmp_path / "moved.npy", moved)
    fit = ("fit", tmp_path / "moved.npy", "--batch-rows", 50, "--from")
    assert cli(*fit, run, "--out", tmp_path / "slow") == 0
    assert cli(*fit, run, "--half-life", 100, "--out", tmp_path / "fast") == 0
    inertia = {name: far(tmp_path / name, tmp_path / "moved.npy") for name in ("slow", "fast")}
    assert inertia["fast"] < 0.8 * inertia["slow"]
    fast, slow = load_model(tmp_path / "fast"), load_model(tmp_path / "slow")
    assert len(slow.weights_K) == 0
    # 500 rows, a half-life of 100: 700 rows of the first run weigh 700 / 32.
    batches = 50 * 2.0 ** -(np.arange(10)[::-1] / 2)
    assert float(fast.weights_K.sum()) == pytest.approx(700 / 32 + batches.sum(), rel=1e-9)
    assert int(fast.counts_K.sum()) == N
    assert cli(*fit, tmp_path / "fast", "--out", tmp_path / "next") == 0
    assert float(load_model(tmp_path / "next").weights_K.sum()) == pytest.approx(
        float(fast.weights_K.sum()) + 500, rel=1e-9
    )


def far(run: Path, source: Path) -> float:
    distances = source.with_name(f"{run.name}-far.npy")
    labels = source.with_name(f"{run.name}-labels.npy")
    assert cli("predict", run, source, "--labels", labels, "--distances", distances) == 0
    return float(np.square(np.load(distances).astype(np.float64)).sum())


# Breaks when the change is measured on other rows, or against other centroids.
def test_what_changed_is_told(run: Path, x: Path, tmp_path: Path, capsys) -> None:
    out, new = tmp_path / "out", tmp_path / "new.npy"
    capsys.readouterr()
    assert cli("fit", new, "--from", run, "--out", out) == 0
    said = capsys.readouterr().err
    before, after = load_model(run), load_model(out)
    moved_K = np.linalg.norm((after.centroids_KD - before.centroids_KD).double().numpy(), axis=1)
    n_changed = int((np.load(label(run, new)) != np.load(relabel(out, new))).sum())
    found = after.figures["changes"]
    assert found["changed_rows"] == n_changed
    assert found["compared_rows"] == N - FIRST
    assert found["moved_most"] == pytest.approx(moved_K.max(), rel=1e-6)
    assert found["moved_mean"] == pytest.approx(moved_K.mean(), rel=1e-6)
    assert f"since {run}: 5 centroids moved" in said
    assert f"{n_changed} of 500 rows of a sample changed cluster" in said
    assert f"from {run}" in said
    capsys.readouterr()
    assert cli("info", out) == 0
    info = capsys.readouterr().out
    assert "since        5 centroids moved" in info
    assert "from-run     model of sha256" in info


def relabel(run: Path, source: Path) -> Path:
    out = source.with_suffix(".again.npy")
    assert cli("predict", run, source, "--labels", out) == 0
    return out


# Breaks when fewer rows than clusters are refused: they come after many.
def test_a_few_new_rows_are_enough(run: Path, x: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "two.npy", np.load(tmp_path / "new.npy")[:2])
    assert cli("fit", tmp_path / "two.npy", "--from", run, "--out", tmp_path / "out") == 0
    assert int(load_model(tmp_path / "out").counts_K.sum()) == FIRST + 2


# Breaks when a run goes on from another model than it began with.
def test_a_run_resumes_with_the_same_earlier_run_alone(run: Path, x: Path, tmp_path: Path, capsys):
    fit = ("fit", tmp_path / "new.npy", "--out", tmp_path / "out", "--from")
    assert cli(*fit, run) == 0
    record = json.loads((tmp_path / "out" / "config.json").read_text())["fit"]
    assert record["from_run"].startswith("model of sha256 ")
    assert record["closing_pass"] is False
    # By content: a run may be copied elsewhere.
    shutil.copytree(run, tmp_path / "copy")
    assert cli(*fit, tmp_path / "copy", "--resume") == 0
    assert cli(*fit, tmp_path / "out", "--resume") == 2
    assert "from-run: model of sha256" in capsys.readouterr().err
    assert cli(*fit, run, "--half-life", 50, "--resume") == 2
    assert "half-life: None -> 50" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--k", 6), "was made with --k 5, this fit asks for --k 6; leave that out"),
        (("--scale", "none"), "was made with --scale zscore, this fit asks for --scale none"),
        (("--metric", "cosine", "--scale", "none"), "was made with --metric euclidean, this fit"),
        (("--init", "random"), "leave --init random out"),
        (("--rate", "annealed"), "leave --rate annealed out"),
        (("--algorithm", "lloyd"), "leave --algorithm lloyd out"),
        (("--n-init", 2), "leave --n-init 2 out"),
        (("--closing-pass",), "would forget its rows: leave --closing-pass out"),
        (("--half-life", 0), "--half-life must be a whole number of at least 1, not 0"),
        (("--from", "nothing"), "nothing does not exist"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(options, says, run, x, tmp_path, capsys) -> None:
    capsys.readouterr()
    fit = ("fit", tmp_path / "new.npy", "--from", run, "--out", tmp_path / "out")
    for more in ((), ("--dry-run",)):
        assert cli(*fit, *options, *more) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_features_and_unfinished_runs_are_refused(run, x, tmp_path, capsys) -> None:
    np.save(tmp_path / "narrow.npy", np.zeros((50, 3), np.float32))
    out = ("--out", tmp_path / "out")
    assert cli("fit", tmp_path / "narrow.npy", "--from", run, *out) == 2
    assert "has centroids of 4 features" in (said := capsys.readouterr().err)
    assert "narrow.npy has 3" in said
    (run / "model.safetensors").unlink()
    assert cli("fit", x, "--from", run, *out) == 2
    assert str(run) in capsys.readouterr().err
    assert cli("fit", x, "--k", 3, "--half-life", 9, *out) == 2
    assert "--half-life 9 ages the rows of an earlier run: name it with --from" in (
        capsys.readouterr().err
    )
