"""Figures of a sweep whose rows do not fit in memory: of the fits themselves, and of a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn import metrics

from streamkm.runs.storage.model import load_model
from streamkm.runs.sweeping import figures, measuring
from tests.runs.helpers import clusters, predicted
from tests.runs.sweeping.test_sweep import swept

if TYPE_CHECKING:
    from pathlib import Path

N_ROWS = 6000


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows of which hardly any are kept."""
    np.save(tmp_path / "x.npy", clusters(N_ROWS, 7).astype(np.float64))
    monkeypatch.setattr(measuring, "kept_bytes", lambda *_, **__: 1)
    return tmp_path / "x.npy"


def sampled(monkeypatch: pytest.MonkeyPatch, n_rows: int) -> None:
    for name in ("MOST_ROWS", "LEAST_ROWS"):
        monkeypatch.setattr(figures, name, n_rows)


# Breaks when a figure is of other rows, centroids or units: of a fit that has converged, and a
# sample of all rows, each is the one that a read of all rows gives.
@pytest.mark.parametrize(
    "settings",
    [{}, {"scale": "zscore"}, {"metric": "cosine"}, {"scale": "minmax", "nan": "drop"}],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_sample_of_all_rows(
    tmp_path: Path,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    weighted: bool,
) -> None:
    weights = None
    if weighted:
        weights = tmp_path / "w.npy"
        np.save(weights, np.random.default_rng(0).integers(0, 4, N_ROWS).astype(float))
    if "nan" in settings:
        x = np.load(path)
        x[::7, 2] = np.nan
        np.save(path, x)
    sampled(monkeypatch, N_ROWS)
    settings = {"algorithm": "lloyd", "tol": 0.0, "epochs": 500, **settings}
    out = tmp_path / "sweep"
    found = swept(path, out, (3, 6), (0, 1), weights=weights, **settings)
    whole = swept(path, out, (3, 6), (0, 1), weights=weights, resume=True, all_rows=True,
                  **settings)  # fmt: skip
    for row, of_all in zip(found.figures, whole.figures, strict=True):
        n_sampled = row.pop("sampled_rows")
        assert n_sampled == (np.count_nonzero(np.load(weights)) if weights else N_ROWS)
        # (Rows of weight 0 are not looked at.)
        if not weighted:
            assert row["dropped"] == of_all["dropped"]
        del row["dropped"], of_all["dropped"]
        assert row.keys() == of_all.keys()
        assert row == {
            name: pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
            for name, value in of_all.items()
        }
    for one, other in zip(found.stability, whole.stability, strict=True):
        assert one["pairs"] == pytest.approx(other["pairs"], abs=1e-12)


# Breaks when a figure that the fits know of all rows is guessed from the sample.
def test_what_the_fits_know_is_of_all_rows(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled(monkeypatch, 900)
    found = swept(path, tmp_path / "sweep", (3, 6), (0, 1))
    x = np.load(path)
    chosen = figures.rows_of_stretches(900, N_ROWS)
    labels = {}
    for row in found.figures:
        run = tmp_path / "sweep" / row["name"]
        model = load_model(run)
        assert row["sizes"] == model.counts_K.tolist()
        assert row["inertia"] == pytest.approx(model.inertia, rel=1e-12)
        means = model.sums_KD.numpy() / model.counts_K.numpy()[:, None]
        between = model.counts_K.numpy() @ np.square(means - x.mean(axis=0)).sum(axis=1)
        total = np.square(x - x.mean(axis=0)).sum()
        assert row["explained_variance"] == pytest.approx(between / total, rel=1e-6)
        # The sample's own silhouettes are near, those of the same rows among all rows are nearer.
        labels[row["name"]] = predicted(run, path, tmp_path / f"{row['name']}.npy")
        among_all = metrics.silhouette_samples(x, labels[row["name"]], metric="sqeuclidean")
        assert row["silhouette"] == pytest.approx(among_all[chosen].mean(), abs=0.01)
        assert (row["silhouette_rows"], row["sampled_rows"]) == (900, 900)
    for each in found.stability:
        one, other = (labels[f"k-{each['k']:04}{seed}"][chosen] for seed in ("", "-seed-1"))
        assert each["pairs"] == [pytest.approx(metrics.adjusted_rand_score(one, other), abs=1e-12)]
    assert "of the same 900 rows; all else of all rows" in str(found)


# Breaks when figures without a full pass at the end of the fit are taken for those of a partition,
# or a sample is taken that is too small for the clusters, or for which there is no memory.
@pytest.mark.parametrize(
    ("settings", "execution"),
    [({"closing_pass": False}, {}), ({}, {"max_host_memory": 1})],
    ids=["no full pass", "no memory"],
)
def test_a_read_measures_where_no_sample_can(
    tmp_path: Path,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    execution: dict[str, Any],
) -> None:
    if execution:
        monkeypatch.setattr("streamkm.runs.sweeping.planning.Group.free_bytes", 1000)
    found = swept(path, tmp_path / "sweep", (3,), **settings)
    assert "sampled_rows" not in found.figures[0]
