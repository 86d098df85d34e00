"""Fits that differ in everything that a checkpoint must hold, on arrays of a few windows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.runs.helpers import Job, clusters

N_ROWS, N_FEATURES = 205, 3


@dataclass(frozen=True)
class Case:
    """A fit. Blocks of 20 rows, windows of 4 blocks and batches of 25 rows give stops within
    windows, at their edges, and at the edges of epochs."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    starts_far: bool = False
    """Whether three of the first centroids lie where no row is."""
    few_distinct: bool = False
    """Whether the array has 5 distinct rows."""
    weighted: bool = False
    lone: bool = False
    """Whether one of the first centroids is a lone row that a larger cluster has more use for."""
    goes_on: bool = False
    """Whether it goes on from the finished run of the first 120 rows."""

    def job(self, folder: Path) -> Job:
        """The fit, on a Zarr array in `folder`."""
        rows = clusters(N_ROWS, N_FEATURES)
        settings = {"k": 6, "batch_rows": 25, "seed": 3, **self.settings}
        if self.few_distinct:
            rows = rows[np.minimum(np.arange(N_ROWS), 4)]
        if settings.get("nan") == "drop":
            rows[[0, 77, 78, 204], [0, 1, 2, 0]] = [np.nan, np.inf, -np.inf, np.nan]
        if self.starts_far:
            far = rows[:6].astype(np.float64)
            far[2:5] += 1000.0 * np.arange(1, 4)[:, None]
            np.save(folder / "far.npy", far)
            settings["init"] = str(folder / "far.npy")
        if self.lone:
            rows[100] = rows[:20].mean(axis=0)
            rows[100, 1] += 5
            np.save(folder / "lone.npy", rows[[0, 90, 200, 100]].astype(np.float64))
            settings |= {"init": str(folder / "lone.npy"), "k": 4}
        array = zarr.create_array(
            folder / "x.zarr", shape=rows.shape, chunks=(20, N_FEATURES), dtype="f4"
        )
        array[:] = rows
        if self.goes_on:
            np.save(folder / "first.npy", rows[:120])
            first = Job(folder / "first.npy", folder / "first", {"k": 6, "batch_rows": 25})
            first.attempt()
            settings["from_run"] = str(first.run)
        weights = None
        if self.weighted:
            weights = folder / "w.npy"
            np.save(weights, np.random.default_rng(1).integers(0, 5, N_ROWS) / 3)
        return Job(folder / "x.zarr", folder / "run", settings, weights)


LLOYD = {"algorithm": "lloyd"}
CASES = [
    Case("minibatch", {"epochs": 2}),
    Case("minibatch, best of two", {"n_init": 2, "k": 3}),
    # As many clusters as `short_seeding` takes a tree for.
    Case("minibatch, tree, best of two, weighted", {"k": 45, "n_init": 2}, weighted=True),
    Case("minibatch, tree, cosine", {"k": 45, "metric": "cosine"}),
    Case("minibatch, k-means||, cosine", {"init": "k-means||", "metric": "cosine", "k": 4}),
    Case("minibatch, k-means++", {"init": "k-means++"}),
    Case("minibatch, random, cosine", {"init": "random", "metric": "cosine"}),
    Case("minibatch, z-score", {"scale": "zscore", "init": "random"}),
    Case("minibatch, min-max, drop", {"scale": "minmax", "nan": "drop"}),
    Case("minibatch, starved clusters", {"epochs": 2}, starts_far=True),
    Case("minibatch, stopped by tol", {"epochs": 9, "tol": 2e-3, "init": "random"}),
    Case("minibatch, stopped by inertia",
         {"epochs": 9, "max_no_improvement": 4, "init": "random"}),
    Case("minibatch, stopped by gain",
         {"epochs": 9, "rate": "mean", "min_gain": 0.1, "init": "random"}),
    Case("minibatch, lone row", lone=True),
    Case("minibatch, no closing pass", {"epochs": 2, "closing_pass": False}),
    # Closing passes that find ever more rows for clusters, and some that find none.
    Case("minibatch, few distinct rows", {"epochs": 1}, starts_far=True, few_distinct=True),
    Case("lloyd, few distinct rows", {**LLOYD, "epochs": 1}, starts_far=True, few_distinct=True),
    Case("minibatch, weighted, starved clusters", {"epochs": 2}, starts_far=True, weighted=True),
    Case("minibatch, weighted, z-score, drop", {"scale": "zscore", "nan": "drop"}, weighted=True),
    Case("lloyd, weighted, cosine", {**LLOYD, "epochs": 2, "metric": "cosine"}, weighted=True),
    Case("lloyd", {**LLOYD, "epochs": 2}),
    Case("tree", {"algorithm": "tree", "k": 12, "epochs": 2, "init": "random"}),
    Case("tree, weighted, starved clusters",
         {"algorithm": "tree"}, starts_far=True, weighted=True),
    Case("tree, cosine", {"algorithm": "tree", "k": 12, "branching": "3x4", "metric": "cosine"}),
    Case("from a run, half-life", {"half_life": 70, "epochs": 2, "tol": 1e-9}, goes_on=True),
    Case("from a run, weighted", {"epochs": 2, "tol": 1e-9}, goes_on=True, weighted=True),
    Case("minibatch, bounded sizes", {"max_size": "1.1x", "init": "random"}),
    Case("lloyd, bounded sizes, weighted, cosine, drop",
         {**LLOYD, "min_size": "0.9x", "max_size": 40, "metric": "cosine", "nan": "drop",
          "init": "random", "epochs": 1},
         weighted=True),
    Case("lloyd, until it stops", {**LLOYD, "init": "random", "k": 2, "tol": 0.5}),
    Case("lloyd, cosine", {**LLOYD, "epochs": 2, "metric": "cosine", "init": "random"}),
    Case("lloyd, z-score, drop", {**LLOYD, "epochs": 2, "scale": "zscore", "nan": "drop"}),
    Case("lloyd, empty clusters", {**LLOYD, "epochs": 2}, starts_far=True),
    Case("lloyd, l2", {**LLOYD, "epochs": 2, "scale": "l2", "init": "random"}),
]  # fmt: skip


def on_cases(*names: str) -> pytest.MarkDecorator:
    """Give a test the parameter `case`: those of these names, or all."""
    chosen = [case for case in CASES if not names or case.name in names]
    assert len(chosen) == (len(names) or len(CASES))
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.name)


def uninterrupted(job: Job) -> tuple[dict[str, bytes], int]:
    """Results of the whole run, and how many places it could have been stopped at."""
    whole = replace(job, run=job.run.with_name("whole"))
    looks = whole.attempt()
    return whole.results, looks
