"""`to_sklearn` gives the same model, and one that goes on learning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import cluster
from sklearn.datasets import load_digits
from sklearn.pipeline import Pipeline

from streamkm import KMeans, MiniBatchKMeans
from tests.estimators.comparison import assert_close


# Breaks when the estimator that is handed over is fitted otherwise, or not at all.
@pytest.mark.parametrize("dtype", ["float64", "float32", "uint8"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"scale": "zscore"}, {"scale": "minmax"}, {"scale": "l2"}, {"metric": "cosine"}],
    ids=str,
)
@pytest.mark.parametrize("estimator", [KMeans, MiniBatchKMeans])
def test_to_sklearn_agrees(estimator: type, settings: dict[str, Any], dtype: str) -> None:
    x = load_digits().data.astype(dtype)
    ours = estimator(10, random_state=0, **settings).fit(x[:1000])
    theirs = ours.to_sklearn()
    assert type(theirs).__module__.startswith("sklearn.")
    agreed = np.mean(theirs.predict(x) == ours.predict(x))
    # Sums of small integers are exact; distances in between are rounded both here and there.
    assert agreed == 1 if dtype != "float32" else agreed > 0.998
    last = theirs[-1] if isinstance(theirs, Pipeline) else theirs
    assert type(last) is getattr(cluster, estimator.__name__)
    assert last.inertia_ == ours.inertia_
    np.testing.assert_array_equal(last.labels_, ours.labels_)
    assert last.n_iter_ == ours.n_iter_
    np.testing.assert_allclose(theirs.transform(x), ours.transform(x), rtol=1e-3, atol=1e-3)
    if last is theirs:
        assert theirs.score(x) == pytest.approx(ours.score(x), rel=1e-5)


def test_to_sklearn_goes_on_with_partial_fit() -> None:
    x = load_digits().data
    ours = MiniBatchKMeans(10, init=x[:10])
    for start in range(0, 1000, 100):
        ours.partial_fit(x[start : start + 100])
    theirs = ours.to_sklearn().set_params(reassignment_ratio=0)
    np.testing.assert_array_equal(theirs.cluster_centers_, ours.cluster_centers_)
    for start in range(1000, len(x), 100):
        ours.partial_fit(x[start : start + 100])
        theirs.partial_fit(x[start : start + 100])
    assert_close(theirs.cluster_centers_, ours.cluster_centers_)
    assert theirs.n_steps_ == ours.n_steps_
