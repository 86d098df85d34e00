"""scikit-learn's own checks, and what its users do with estimators."""

from __future__ import annotations

import json
import os
import pickle  # noqa: TID251  # users pickle estimators; streamkm itself reads no pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import cluster
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from streamkm import BisectingKMeans, KMeans, MiniBatchKMeans
from streamkm.errors import ParameterError

ROOT = Path(__file__).parents[2]
BOTH = [KMeans, MiniBatchKMeans]

#: What each prints with ``verbose``.
PRINTED = {
    KMeans: r"Initialization complete\nIteration 0, inertia [0-9.]+\n.*Converged at iteration "
    r"[0-9]+: (strict convergence|center shift [0-9.e-]+ within tolerance [0-9.e-]+)",
    MiniBatchKMeans: r"Initialization complete\nMinibatch step 1/1: mean batch inertia: [0-9.]+\n$",
}

CHECK = """
import json, sys, warnings
from sklearn.utils.estimator_checks import check_estimator
import streamkm
warnings.simplefilter("ignore")
results = check_estimator(getattr(streamkm, sys.argv[1])(), on_fail=None, on_skip=None)
print(json.dumps([[r["check_name"], r["status"], repr(r["exception"])] for r in results]))
"""


# Breaks when an estimator is none to scikit-learn. In a process of its own because the
# checks of array types ask for a variable that SciPy reads when it is imported.
@pytest.mark.parametrize("estimator", [*BOTH, BisectingKMeans])
def test_check_estimator(estimator: type) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK, estimator.__name__],
        cwd=ROOT,
        env=os.environ | {"SCIPY_ARRAY_API": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) > 50
    # None fails, and none is left out.
    assert [result for result in results if result[1] != "passed"] == []


# Breaks when a parameter of scikit-learn's is renamed, or its default refused.
@pytest.mark.parametrize("name", ["KMeans", "MiniBatchKMeans"])
def test_parameters_of_scikit_learn_are_taken(name: str) -> None:
    # The best of several: one seeding of iris in some ends 80 % higher, theirs as ours.
    theirs = getattr(cluster, name)(3, random_state=0, n_init=10)
    parameters = theirs.get_params()
    ours = {"KMeans": KMeans, "MiniBatchKMeans": MiniBatchKMeans}[name](**parameters)
    x = load_iris().data
    with warnings.catch_warnings():
        # What a reassignment_ratio asks for is not done, which is said.
        warnings.filterwarnings("ignore", "without effect in streamkm: reassignment_ratio")
        ours.fit(x)
    assert ours.inertia_ <= 1.02 * theirs.fit(x).inertia_
    fitted = {key for key in vars(theirs) if key.endswith("_") and not key.startswith("_")}
    assert fitted <= set(vars(ours))


@pytest.mark.parametrize("estimator", BOTH)
def test_pipeline_and_grid_search(estimator: type) -> None:
    x = load_iris().data
    pipeline = make_pipeline(StandardScaler(), estimator(3, random_state=0))
    assert len(set(pipeline.fit_predict(x))) == 3
    assert pipeline.fit_transform(x).shape == (150, 3)
    grid = GridSearchCV(estimator(random_state=0), {"n_clusters": [1, 2, 5]}, cv=3).fit(x)
    # The score is minus the inertia of rows that were left out: more clusters, less of it.
    assert grid.best_params_ == {"n_clusters": 5}
    assert np.all(np.diff(grid.cv_results_["mean_test_score"]) > 0)


# Breaks when something of the fit is left out of the pickle, or cannot be put in it.
@pytest.mark.parametrize("estimator", BOTH)
@pytest.mark.parametrize("settings", [{}, {"metric": "cosine"}, {"scale": "zscore"}], ids=str)
def test_pickle_and_clone(estimator: type, settings: dict[str, Any]) -> None:
    x = load_iris().data
    fitted = estimator(3, random_state=0, **settings).fit(x)
    copied = pickle.loads(pickle.dumps(fitted))  # noqa: S301  # ours, of a moment ago
    np.testing.assert_array_equal(copied.predict(x), fitted.labels_)
    np.testing.assert_array_equal(copied.transform(x), fitted.transform(x))
    fresh = clone(fitted)
    assert not hasattr(fresh, "labels_")
    assert fresh.get_params() == fitted.get_params()
    np.testing.assert_array_equal(fresh.fit(x).cluster_centers_, fitted.cluster_centers_)


# Breaks when the counts of partial_fit do not survive a pickle.
def test_partial_fit_goes_on_after_a_pickle(rng: np.random.Generator) -> None:
    x = rng.normal(size=(300, 4))
    whole = MiniBatchKMeans(5, random_state=0)
    parts = MiniBatchKMeans(5, random_state=0)
    for batch in np.split(x, 3):
        whole.partial_fit(batch)
        parts = pickle.loads(pickle.dumps(parts)).partial_fit(batch)  # noqa: S301
    np.testing.assert_array_equal(whole.cluster_centers_, parts.cluster_centers_)


@pytest.mark.parametrize("estimator", BOTH)
def test_data_frames_and_names(estimator: type) -> None:
    frame = load_iris(as_frame=True).data
    kmeans = estimator(3, random_state=0).set_output(transform="pandas").fit(frame)
    assert kmeans.n_features_in_ == 4
    assert kmeans.feature_names_in_.tolist() == list(frame.columns)
    name = estimator.__name__.lower()
    assert kmeans.get_feature_names_out().tolist() == [f"{name}{i}" for i in range(3)]
    moved = frame.set_index(np.arange(150) + 1000)
    distances = kmeans.transform(moved)
    assert isinstance(distances, pd.DataFrame)
    assert distances.index[0] == 1000
    np.testing.assert_array_equal(distances.to_numpy().argmin(axis=1), kmeans.labels_)
    with pytest.raises(ValueError, match="feature names"):
        kmeans.predict(frame[frame.columns[::-1]])
    # An array without names is another fit, without names.
    assert not hasattr(kmeans.fit(frame.to_numpy()), "feature_names_in_")


# Breaks when an integer is not the seed, or None is one.
@pytest.mark.parametrize("estimator", BOTH)
def test_random_state(estimator: type, rng: np.random.Generator) -> None:
    x = rng.normal(size=(400, 3))

    def centroids(random_state: Any) -> bytes:
        kmeans = estimator(20, init="random", random_state=random_state).fit(x)
        return bytes(kmeans.cluster_centers_.tobytes())

    assert centroids(0) == centroids(0) != centroids(1)
    assert centroids(np.int64(0)) == centroids(0)
    state = np.random.RandomState(0)
    first, second = centroids(state), centroids(state)
    assert first != second
    assert centroids(np.random.RandomState(0)) == first
    assert centroids(None) != centroids(None)


# Breaks when fit says something on stderr unasked, or nothing when asked.
@pytest.mark.parametrize("estimator", BOTH)
def test_verbose(estimator: type, capfd: pytest.CaptureFixture[str]) -> None:
    x = load_iris().data
    estimator(3, random_state=0).fit(x).predict(x)
    assert capfd.readouterr() == ("", "")
    estimator(3, random_state=0, verbose=1).fit(x)
    shown = capfd.readouterr()
    # What people look for in a log, on stdout as scikit-learn has it.
    assert re.match(PRINTED[estimator], shown.out, re.DOTALL)
    assert "150 rows x 4 features" in shown.err
    assert "stopped: " in shown.err


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_clusters": 0}, "n_clusters must be a whole number of at least 1; it is 0"),
        ({"n_clusters": 2.0}, "n_clusters must be"),
        ({"n_clusters": True}, "n_clusters must be"),
        ({"n_clusters": "8"}, "n_clusters must be"),
        ({"max_iter": 0}, "max_iter must be"),
        ({"tol": -1e-4}, "tol must be a finite number of at least 0; it is -0.0001"),
        ({"tol": np.nan}, "tol must be"),
        ({"n_init": 0}, "n_init must be"),
        ({"n_init": "best"}, "n_init must be 'auto' or"),
        ({"init": "k-means"}, "init must be .*k-means\\+\\+, .*random.*; it is 'k-means'"),
        ({"init": 3}, "init must be"),
        ({"init": "given"}, "init must be"),
        ({"verbose": -1}, "verbose must be"),
        ({"compute_labels": "yes"}, "compute_labels must be"),
        ({"run_dir": 3}, "run_dir must be"),
        ({"resume": True}, "give its path as run_dir"),
        ({"resume": True, "run_dir": "run"}, "give an integer as random_state; it is None"),
        # Also of the first attempt: without its seed there is no second.
        ({"run_dir": "run"}, "runs that can be resumed.* give an integer as random_state"),
        ({"metric": "manhattan"}, "metric must be one of euclidean, cosine"),
        ({"scale": "robust"}, "scale must be one of"),
        ({"metric": "cosine", "scale": "zscore"}, "cosine compares directions"),
        ({"nan": "ignore"}, "nan must be one of"),
        ({"device": "tpu"}, "device must be"),
        ({"max_host_memory": "lots"}, "8GiB"),
        ({"random_state": "seed"}, "cannot be used to seed"),
        ({"random_state": -1}, "(?i)seed must be"),
    ],
)
@pytest.mark.parametrize("estimator", BOTH)
def test_wrong_parameters(estimator: type, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimator(**parameters).fit(load_iris().data)


@pytest.mark.parametrize(
    ("estimator", "parameters", "message"),
    [
        (KMeans, {"algorithm": "hartigan"}, "algorithm must be one of lloyd, elkan"),
        (KMeans, {"copy_x": "no"}, "copy_x must be True or False"),
        (MiniBatchKMeans, {"init_size": 0}, "init_size must be None or a whole number"),
        (MiniBatchKMeans, {"reassignment_ratio": -1}, "reassignment_ratio must be"),
        (MiniBatchKMeans, {"batch_size": 0}, "batch_size must be 'auto'"),
        (MiniBatchKMeans, {"batch_size": "large"}, "batch_size must be 'auto'"),
        (MiniBatchKMeans, {"max_no_improvement": 0}, "max_no_improvement must be .auto."),
        (MiniBatchKMeans, {"min_gain": None}, "min_gain must be a finite number of at least 0 and"),
    ],
)
def test_wrong_parameters_of_one(estimator: type, parameters: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        estimator(**parameters).fit(load_iris().data)
    # scikit-learn's error for this is both.
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)
    assert not hasattr(estimator(**parameters), "cluster_centers_")


# Breaks when a number of NumPy passes the estimator's check, and is refused by the run's.
@pytest.mark.parametrize(
    ("estimator", "parameters"),
    [
        (KMeans, {"n_init": np.int16(2), "max_iter": np.int64(3), "tol": np.float32(0)}),
        (KMeans, {"verbose": np.float32(0) > 1, "max_host_memory": np.int64(1 << 30)}),
        (MiniBatchKMeans, {"batch_size": np.int64(50), "max_no_improvement": np.int64(3)}),
        (MiniBatchKMeans, {"min_gain": np.float32(0.5), "max_iter": np.int64(3)}),
    ],
    ids=str,
)
def test_numbers_of_numpy_are_numbers(estimator: type, parameters: dict[str, Any]) -> None:
    plain = {name: value.item() for name, value in parameters.items()}
    x = load_iris().data
    fitted = [estimator(3, random_state=0, **given).fit(x) for given in (parameters, plain)]
    np.testing.assert_array_equal(fitted[0].cluster_centers_, fitted[1].cluster_centers_)


# Breaks when a value of scikit-learn's is refused, or without effect and nothing says so.
@pytest.mark.parametrize(
    ("estimator", "parameters", "said"),
    [
        (KMeans, {"algorithm": "elkan"}, r"algorithm='elkan' \(Lloyd's algorithm finds the same"),
        (MiniBatchKMeans, {"init_size": 100}, "init_size=100"),
        (MiniBatchKMeans, {"reassignment_ratio": 0.05}, "reassignment_ratio=0.05"),
        (
            MiniBatchKMeans,
            {"reassignment_ratio": 0.05, "init_size": 100},
            "init_size=100 .*; reassignment_ratio=0.05",
        ),
    ],
)
def test_one_warning_of_what_has_no_effect(estimator: type, parameters: Any, said: str) -> None:
    x = load_iris().data
    with pytest.warns(UserWarning, match=said) as caught:
        given = estimator(3, random_state=0, **parameters).fit(x)
    assert len(caught) == 1
    plain = estimator(3, random_state=0).fit(x)
    np.testing.assert_array_equal(given.cluster_centers_, plain.cluster_centers_)


@pytest.mark.parametrize(
    "parameters", [{"algorithm": "auto"}, {"algorithm": "full"}, {"copy_x": False}], ids=str
)
@pytest.mark.filterwarnings("error")
def test_nothing_is_said_of_what_is_done_anyway(parameters: dict[str, Any]) -> None:
    x = load_iris().data
    given = KMeans(3, random_state=0, **parameters).fit(x)
    plain = KMeans(3, random_state=0).fit(x)
    np.testing.assert_array_equal(given.cluster_centers_, plain.cluster_centers_)


# Breaks when "auto" is one poor seeding where scikit-learn takes the best of several.
@pytest.mark.parametrize(("estimator", "several"), [(KMeans, 10), (MiniBatchKMeans, 3)])
def test_n_init_auto_is_scikit_learn_s(estimator: type, several: int) -> None:
    x = load_iris().data
    calls = []

    def init(rows: Any, n_clusters: int, random_state: Any) -> Any:
        calls.append(n_clusters)
        return rows[random_state.permutation(len(rows))[:n_clusters]]

    estimator(3, init=init).fit(x)
    assert len(calls) == several
    auto = estimator(3, init="random", random_state=0).fit(x)
    named = estimator(3, init="random", n_init=several, random_state=0).fit(x)
    np.testing.assert_array_equal(auto.cluster_centers_, named.cluster_centers_)


# Breaks when many passes are made to their end where scikit-learn's stop after a few.
def test_several_passes_stop_early_unless_told(rng: np.random.Generator) -> None:
    x = rng.normal(size=(5000, 2))
    settings: dict[str, Any] = {"random_state": 0, "batch_size": 500, "max_iter": 100}
    assert MiniBatchKMeans(4, **settings).fit(x).n_iter_ < 20
    assert cluster.MiniBatchKMeans(4, n_init=1, **settings).fit(x).n_iter_ < 20
    settings["max_no_improvement"] = None
    assert MiniBatchKMeans(4, min_gain=0, **settings).fit(x).n_iter_ == 100
    # Passes in which rows are forgotten are not compared.
    assert 11 < MiniBatchKMeans(4, **settings).fit(x).n_iter_ < 50
    assert 1 < MiniBatchKMeans(4, rate="mean", min_gain=0.01, **settings).fit(x).n_iter_ < 10
    # One pass is made to its end, as ever.
    one = MiniBatchKMeans(4, random_state=0, batch_size=20).fit(x)
    assert one.n_steps_ == 250
