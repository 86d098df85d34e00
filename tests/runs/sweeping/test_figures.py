"""The figures of a sweep, beside scikit-learn's from all rows."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn import metrics

from streamkm.config import ExecutionConfig
from streamkm.runs.evaluate import evaluate
from streamkm.runs.reporting.signals import StopRequest
from streamkm.runs.sweeping import figures
from streamkm.sources import open_source
from tests.runs.helpers import clusters, predicted
from tests.runs.sweeping.test_sweep import swept

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", clusters(5000, 7))
    return tmp_path / "x.npy"


# Breaks when figures belong to other labels than `predict` gives, or to rows in another space.
# In float64 they are to rounding; the sums of a batch of float32 rows are float32.
@pytest.mark.parametrize(
    ("scale", "dtype", "precision"),
    [("none", "f8", 1e-9), ("none", "f4", 1e-6), ("zscore", "f8", 1e-9)],
)
def test_figures_are_scikit_learn_s(
    tmp_path: Path, path: Path, scale: str, dtype: str, precision: float
) -> None:
    np.save(path, np.load(path).astype(dtype))
    found = swept(path, tmp_path / "sweep", (3, 6), scale=scale, algorithm="lloyd", tol=0.0)
    x = np.load(path).astype(np.float64)
    scaled = (x - x.mean(axis=0)) / x.std(axis=0) if scale == "zscore" else x
    for row in found.figures:
        run = tmp_path / "sweep" / row["name"]
        labels = predicted(run, path, tmp_path / f"labels-{row['k']}.npy")
        assert row["silhouette_rows"] == 5000
        expected = metrics.silhouette_score(scaled, labels, metric="sqeuclidean")
        assert row["silhouette"] == pytest.approx(expected, rel=1e-6)
        assert row["sizes"] == np.bincount(labels).tolist()
        assert row["calinski_harabasz"] == pytest.approx(
            metrics.calinski_harabasz_score(scaled, labels), rel=precision
        )
        assert row["davies_bouldin"] == pytest.approx(
            metrics.davies_bouldin_score(scaled, labels), rel=precision
        )
        means = np.stack([scaled[labels == j].mean(axis=0) for j in range(row["k"])])
        residual = ((scaled - means[labels]) ** 2).sum() / (
            (scaled - scaled.mean(axis=0)) ** 2
        ).sum()
        assert row["explained_variance"] == pytest.approx(1 - residual, rel=precision)


# Breaks when a sweep and `evaluate` judge the same run differently.
def test_figures_are_those_of_evaluate(tmp_path: Path, path: Path) -> None:
    found = swept(path, tmp_path / "sweep", (4,))
    source = open_source(path)
    run, execution = tmp_path / "sweep/k-0004", ExecutionConfig(device="cpu")
    alone = evaluate(run, source, execution, stop_request=StopRequest()).as_dict()
    (row,) = found.figures
    assert row["simplified_silhouette"] == alone.pop("silhouette")
    assert {name: row[name] for name in alone} == alone


# Breaks when labels of two seeds are compared at different rows.
def test_stability_is_scikit_learn_s(tmp_path: Path, path: Path) -> None:
    found = swept(path, tmp_path / "sweep", (3, 8), (0, 1, 2))
    assert [each["k"] for each in found.stability] == [3, 8]
    for each in found.stability:
        names = [row["name"] for row in found.figures if row["k"] == each["k"]]
        labels = [
            predicted(tmp_path / "sweep" / name, path, tmp_path / f"{name}.npy") for name in names
        ]
        expected = [metrics.adjusted_rand_score(a, b) for a, b in combinations(labels, 2)]
        assert each["pairs"] == pytest.approx(expected, abs=1e-12)
        assert each["least"] == min(each["pairs"])


# Breaks when a silhouette of some rows is not taken among all rows, or of rows from one place.
def test_silhouettes_of_a_sample(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = swept(path, tmp_path / "whole", (4,)).figures
    monkeypatch.setattr(figures, "MOST_ROWS", 1000)
    monkeypatch.setattr(figures, "LEAST_ROWS", 100)
    found = swept(path, tmp_path / "some", (4,))
    (row,) = found.figures
    assert row["silhouette_rows"] == 1000
    assert row["silhouette"] != whole["silhouette"]
    assert row["silhouette"] == pytest.approx(whole["silhouette"], abs=0.03)
    assert "of 1,000 rows, among all 5,000" in str(found)


# Breaks when silhouettes refuse a budget that is enough for the fits.
def test_silhouettes_of_what_the_memory_holds(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", clusters(2000, 3000))
    found = swept(tmp_path / "x.npy", None, (2, 3), execution={"max_host_memory": 220 << 20})
    assert [row["silhouette_rows"] for row in found.figures] == [1000, 1000]


# Breaks when rows that do not count speak for or against the stability of a K.
def test_rows_of_weight_0_leave_no_trace_in_stability(tmp_path: Path, path: Path) -> None:
    x, weights = np.load(path), np.ones(5000)
    weights[::2] = 0
    x[::2] = np.random.default_rng(1).normal(scale=50, size=x[::2].shape)
    np.save(path, x)
    np.save(tmp_path / "w.npy", weights)
    out = tmp_path / "sweep"
    (found,) = swept(path, out, (8,), (0, 1), weights=tmp_path / "w.npy").stability
    names = ("k-0008", "k-0008-seed-1")
    one, other = (predicted(out / name, path, tmp_path / f"{name}.npy") for name in names)
    expected = metrics.adjusted_rand_score(one[1::2], other[1::2])
    assert expected != metrics.adjusted_rand_score(one, other)
    assert found["pairs"] == [pytest.approx(expected, abs=1e-12)]


# Breaks when a row of weight 3 is not three rows, or one of weight 0 has a silhouette.
def test_silhouettes_with_weights(tmp_path: Path, path: Path) -> None:
    times = np.random.default_rng(3).integers(0, 4, 5000)
    np.save(tmp_path / "w.npy", times.astype(float))
    np.save(path, np.load(path).astype(np.float64))
    settings: dict[str, Any] = {"scale": "zscore", "algorithm": "lloyd", "tol": 0.0}
    found = swept(path, tmp_path / "sweep", (3, 6), weights=tmp_path / "w.npy", **settings)
    x, w = np.load(path), times / times.sum()
    scaled = (x - w @ x) / np.sqrt(w @ (x - w @ x) ** 2)
    for row in found.figures:
        labels = predicted(tmp_path / "sweep" / row["name"], path, tmp_path / f"{row['k']}.npy")
        expected = metrics.silhouette_score(
            scaled.repeat(times, axis=0), labels.repeat(times), metric="sqeuclidean"
        )
        assert row["silhouette"] == pytest.approx(expected, rel=1e-6)
        assert row["silhouette_rows"] == row["rows"] == np.count_nonzero(times)


# Breaks when rows that were dropped have a silhouette, or weights of 1 change it.
def test_dropped_rows_and_weights(tmp_path: Path, path: Path) -> None:
    x = np.load(path)
    x[::10, 1] = np.nan
    np.save(path, x)
    (row,) = swept(path, tmp_path / "dropped", (4,), nan="drop").figures
    assert (row["dropped"], row["rows"], row["silhouette_rows"]) == (500, 4500, 4500)
    np.save(tmp_path / "w.npy", np.ones(5000))
    weights = tmp_path / "w.npy"
    (weighted,) = swept(path, tmp_path / "weighted", (4,), nan="drop", weights=weights).figures
    assert weighted["silhouette"] == pytest.approx(row["silhouette"], rel=1e-6)
    assert weighted["silhouette_rows"] == 4500
