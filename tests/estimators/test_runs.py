"""Estimators and run folders: what one leaves, the other opens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import streamkm
from streamkm import KMeans, MiniBatchKMeans, load_run, open_source
from streamkm.cli import main
from streamkm.errors import Interrupted, OutputExistsError, ParameterError, ResumeError, RunError
from streamkm.runs.info import describe_run
from streamkm.runs.planning import residency
from streamkm.tables import ALGORITHMS
from tests.runs.helpers import clusters

ROOT = Path(__file__).parents[2]
BOTH = [KMeans, MiniBatchKMeans]


# Breaks when anything that predict, transform or a further step needs is not in the folder.
@pytest.mark.parametrize(
    "settings",
    [{}, {"scale": "minmax"}, {"metric": "cosine"}, {"nan": "drop", "tol": 0.01}],
    ids=str,
)
@pytest.mark.parametrize("estimator", BOTH)
def test_load_run_is_the_estimator_that_wrote_it(
    estimator: type, settings: dict[str, Any], tmp_path: Path
) -> None:
    x = clusters(500, 4)
    fitted = estimator(5, random_state=3, run_dir=tmp_path / "run", **settings).fit(x)
    loaded = load_run(tmp_path / "run")
    assert type(loaded) is estimator
    for name in ("cluster_centers_", "counts_", "n_iter_", "stop_reason_"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(fitted, name))
    assert loaded.n_features_in_ == 4
    np.testing.assert_array_equal(loaded.predict(x), fitted.labels_)
    np.testing.assert_array_equal(loaded.transform(x), fitted.transform(x))
    np.testing.assert_array_equal(loaded.to_sklearn().predict(x), fitted.to_sklearn().predict(x))
    for name, value in {"n_clusters": 5, "random_state": 3, **settings}.items():
        assert loaded.get_params()[name] == value
    if estimator is MiniBatchKMeans:
        np.testing.assert_array_equal(
            loaded.partial_fit(x).cluster_centers_, fitted.partial_fit(x).cluster_centers_
        )


# Breaks when a run of an unknown algorithm is loaded as one of another.
def test_load_run_of_an_unknown_algorithm(tmp_path: Path) -> None:
    KMeans(2, random_state=0, run_dir=tmp_path / "run").fit(clusters(50, 2))
    others = {name: entry for name, entry in ALGORITHMS.items() if name != "lloyd"}
    # (Afterwards all are in their order again.)
    with (
        patch.dict(ALGORITHMS, others, clear=True),
        pytest.raises(RunError, match="knows no algorithm lloyd; `streamkm predict`"),
    ):
        load_run(tmp_path / "run")


# Breaks when the estimator and the command are two programs: the same bits come of both.
@pytest.mark.parametrize(
    ("estimator", "algorithm"), [(KMeans, "lloyd"), (MiniBatchKMeans, "minibatch")]
)
def test_the_command_line_and_the_estimator_agree(
    estimator: type, algorithm: str, tmp_path: Path
) -> None:
    x = clusters(2000, 4)
    np.save(tmp_path / "x.npy", x)
    run = tmp_path / "run"
    command = ["fit", str(tmp_path / "x.npy"), "--k", "5", "--out", str(run), "--seed", "7"]
    assert main([*command, "--algorithm", algorithm, "--device", "cpu"]) == 0
    loaded = load_run(run)
    assert isinstance(loaded, estimator)
    ours = estimator(5, random_state=7, device="cpu").fit(tmp_path / "x.npy")
    np.testing.assert_array_equal(loaded.cluster_centers_, ours.cluster_centers_)
    # Its parameters are enough to do the same again.
    again = loaded.set_params(device="cpu").fit(tmp_path / "x.npy")
    np.testing.assert_array_equal(again.cluster_centers_, ours.cluster_centers_)


def test_a_run_folder_of_an_estimator_is_one_of_the_command_line(tmp_path: Path) -> None:
    x = clusters(500, 4)
    np.save(tmp_path / "x.npy", x)
    kmeans = KMeans(5, random_state=0, run_dir=tmp_path / "run").fit(tmp_path / "x.npy")
    out = tmp_path / "labels.npy"
    command = ["predict", str(tmp_path / "run"), str(tmp_path / "x.npy"), "--labels", str(out)]
    assert main(command) == 0
    np.testing.assert_array_equal(np.load(out), kmeans.predict(x))
    assert "finished" in describe_run(tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"config.json", "metrics.jsonl"}


@pytest.mark.parametrize("estimator", BOTH)
def test_nothing_is_written_without_a_run_folder(
    estimator: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    estimator(5, random_state=0).fit(clusters(500, 4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("estimator", BOTH)
def test_an_existing_run_is_refused_or_resumed(estimator: type, tmp_path: Path) -> None:
    x = clusters(500, 4)
    settings: dict[str, Any] = {"run_dir": tmp_path / "run", "random_state": 0}
    first = estimator(5, **settings).fit(x)
    with pytest.raises(OutputExistsError, match="exists"):
        estimator(5, **settings).fit(x)
    again = estimator(5, resume=True, **settings).fit(x)
    np.testing.assert_array_equal(again.cluster_centers_, first.cluster_centers_)
    with pytest.raises(ResumeError, match="k: 5 -> 6"):
        estimator(6, resume=True, **settings).fit(x)
    with pytest.raises(ResumeError, match="data changed"):
        estimator(5, resume=True, **settings).fit(x + 1)
    with pytest.raises(ParameterError, match="integer"):
        estimator(5, **settings | {"resume": True, "random_state": None}).fit(x)


# Breaks when other centroids pass for those that the run began with.
def test_resuming_from_given_centroids(tmp_path: Path) -> None:
    x = clusters(500, 4)
    settings: dict[str, Any] = {"run_dir": tmp_path / "run", "random_state": 0}
    fitted = KMeans(5, init=x[:5], **settings).fit(x)
    again = KMeans(5, init=x[:5].copy(), resume=True, **settings).fit(x)
    np.testing.assert_array_equal(again.cluster_centers_, fitted.cluster_centers_)
    with pytest.raises(ResumeError, match="init: array of sha256"):
        KMeans(5, init=x[1:6], resume=True, **settings).fit(x)
    loaded = load_run(tmp_path / "run")
    np.testing.assert_array_equal(loaded.predict(x), fitted.labels_)
    # It cannot know them any more, and does not begin from others in silence.
    with pytest.raises(ParameterError, match=r"init must be .*'given'"):
        loaded.fit(x)


class SlowSource:
    """Asks for a stop after some reads, as a user does who presses Ctrl-C."""

    def __init__(self, array: np.ndarray, stop_at: int | None) -> None:
        self._source, self._stop_at, self._reads = open_source(array), stop_at, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def spec(self) -> Any:
        return self._source.spec

    def fingerprint(self) -> str:
        return self._source.fingerprint()

    def notes(self) -> list[str]:
        return []

    def close(self) -> None:
        self._source.close()

    def read(self, rows: Any, out: np.ndarray) -> None:
        self._reads += 1
        if self._reads == self._stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        self._source.read(rows, out)


# Breaks when Ctrl-C loses what was done, or a resumed fit is another.
def test_interrupted_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "available_memory", lambda: 0)  # Nothing stays in memory.
    x = clusters(3000, 4)
    settings: dict[str, Any] = {
        "init": "random", "n_init": 1, "random_state": 0, "tol": 0.0, "max_iter": 20,
    }  # fmt: skip
    whole = KMeans(20, **settings).fit(x)
    settings["run_dir"] = tmp_path / "run"
    with pytest.raises(Interrupted, match="stopped by SIGINT"):
        KMeans(20, **settings).fit(SlowSource(x, 6))
    with pytest.raises(RunError, match="not finished"):
        load_run(tmp_path / "run")
    resumed = KMeans(20, resume=True, **settings).fit(SlowSource(x, None))
    np.testing.assert_array_equal(resumed.cluster_centers_, whole.cluster_centers_)


def test_without_a_run_folder_control_c_is_a_keyboard_interrupt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(residency, "available_memory", lambda: 0)  # Nothing stays in memory.
    with pytest.raises(KeyboardInterrupt):
        KMeans(20, init="random", tol=0.0, random_state=0).fit(SlowSource(clusters(3000, 4), 6))
    left = [t.name for t in threading.enumerate() if t.name.startswith("streamkm")]
    assert left == []


# Importing torch and scikit-learn takes seconds, which a mistyped name should not.
def test_import_is_quick() -> None:
    program = (
        "import sys, streamkm; dir(streamkm); assert not {'torch', 'sklearn'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    assert set(streamkm.__all__) <= set(dir(streamkm))


# A fit of a small array is arithmetic, not threads, files and imports. (The least of ten:
# the machine may be busy. A thread for every pass took it to 25 ms.)
@pytest.mark.parametrize("estimator", BOTH)
def test_small_fits_are_quick(estimator: type, monkeypatch: pytest.MonkeyPatch) -> None:
    x = clusters(150, 4).astype(float)
    kmeans = estimator(3, init=x[[0, 70, 149]], random_state=0)

    def refuse(thread: threading.Thread) -> None:
        raise AssertionError(f"{thread.name} was started")

    def seconds(what: Any) -> float:
        began = time.perf_counter()
        what(x)
        return time.perf_counter() - began

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert min(seconds(kmeans.fit) for _ in range(10)) < 0.1
    assert min(seconds(kmeans.predict) for _ in range(10)) < 0.02


# Breaks when going on asks again for where the run began, which it does not keep.
def test_a_run_that_began_from_an_array_goes_on(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    MiniBatchKMeans(4, init=x[:4], random_state=0, run_dir=tmp_path / "run").fit(x)
    loaded = load_run(tmp_path / "run")
    before = loaded.counts_.sum()
    assert loaded.partial_fit(x[:50]).counts_.sum() == before + 50
