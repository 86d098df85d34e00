"""Arrays to judge clusterings by: their rows, and the cluster that each row comes from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, load_sample_images

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "LAYOUTS",
    "Mixture",
    "digits",
    "gauss_mixture",
    "heavy_tailed",
    "overlapping",
    "patches",
    "separated",
    "three_scales",
    "unbalanced",
]

#: How the rows lie on disk: as they come, by true cluster, or in shards of different mixtures.
LAYOUTS = ("mixed", "sorted", "16 shards")
N_SHARDS = 16
#: Parts of the photographs, which stand for clusters when rows are put into shards.
N_STRIPS = 30
#: Converged runs of Lloyd's algorithm; the best of them stands for the best clustering there is.
N_BEST_OF = 30


@dataclass(frozen=True, eq=False)
class Mixture:
    """Rows, and which cluster each was drawn from."""

    name: str
    rows: np.ndarray
    labels: np.ndarray
    k: int
    centres: np.ndarray | None = None

    @cache  # noqa: B019  # a few arrays live as long as the process
    def best(self, n_runs: int = N_BEST_OF) -> float:
        """Least inertia of `n_runs` converged Lloyd runs, and of one from the centres, if known."""
        runs = KMeans(self.k, n_init=n_runs, tol=0, random_state=0).fit(self.rows)
        found = [float(runs.inertia_)]
        if self.centres is not None:
            start = self.centres.astype(self.rows.dtype)
            found.append(float(KMeans(self.k, init=start, n_init=1, tol=0).fit(self.rows).inertia_))
        return min(found)

    def inertia(self, centroids_KD: np.ndarray) -> float:
        """Sum of squared distances of the rows to the nearest centroids, float64."""
        centroids_KD = centroids_KD.astype(np.float64)
        c_sq_K, total = np.square(centroids_KD).sum(axis=1), 0.0
        for start in range(0, len(self.rows), 8192):
            x_BD = self.rows[start : start + 8192].astype(np.float64)
            scores_BK = c_sq_K - 2 * x_BD @ centroids_KD.T
            total += float((scores_BK.min(axis=1) + np.square(x_BD).sum(axis=1)).sum())
        return total

    def write(self, folder: Path, layout: str) -> str:
        """Write the rows to `folder` in one of `LAYOUTS`, and return their location."""
        folder.mkdir(parents=True)
        rng = np.random.default_rng(5)
        if layout == "16 shards":
            # A few shards hold most of each cluster.
            shares = rng.dirichlet(np.full(N_SHARDS, 0.2), size=self.labels.max() + 1)
            edges = shares.cumsum(axis=1)[self.labels]
            shards = (
                (rng.random(len(self.rows))[:, None] > edges).sum(axis=1).clip(max=N_SHARDS - 1)
            )
            for shard in range(N_SHARDS):
                np.save(folder / f"{shard:02}.npy", self.rows[shards == shard])
            return str(folder / "*.npy")
        rows = (
            self.rows[np.argsort(self.labels, kind="stable")] if layout == "sorted" else self.rows
        )
        np.save(folder / "x.npy", rows)
        return str(folder / "x.npy")


def _drawn(
    name: str,
    rng: np.random.Generator,
    centres: np.ndarray,
    shares: np.ndarray,
    n_rows: int,
    k: int,
) -> Mixture:
    labels = rng.choice(len(centres), size=n_rows, p=shares)
    rows = centres[labels] + rng.normal(size=(n_rows, centres.shape[1]))
    known = centres if len(centres) == k else None
    return Mixture(name, rows.astype(np.float32), labels, k, known)


@cache
def digits() -> Mixture:
    """1,797 images of 8 x 8 pixels."""
    found = load_digits()
    return Mixture("digits", found.data, found.target, 10)


@cache
def separated(n_rows: int = 100_000) -> Mixture:
    """50 Gaussians in 16 dimensions, centres of variance 10, unit noise."""
    rng = np.random.default_rng(1)
    centres = rng.normal(scale=10**0.5, size=(50, 16))
    return _drawn("separated Gaussians", rng, centres, np.full(50, 1 / 50), n_rows, 50)


@cache
def overlapping(spread: float, n_rows: int = 100_000) -> Mixture:
    """100 Gaussians in 16 dimensions, Dirichlet sizes, centres of standard deviation `spread`."""
    rng = np.random.default_rng(2)
    centres = rng.normal(scale=spread, size=(100, 16))
    name = f"overlapping, spread {spread:g}"
    return _drawn(name, rng, centres, rng.dirichlet(np.ones(100)), n_rows, 100)


def gauss_mixture(spread: float, seed: int) -> Mixture:
    """GaussMixture of Bahmani et al. (2012): 10,000 rows, 50 centres, `spread` is their R."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(scale=spread, size=(50, 15))
    return _drawn(f"GaussMixture, R={spread:g}", rng, centres, np.full(50, 1 / 50), 10_000, 50)


@cache
def patches(k: int = 256) -> Mixture:
    """Every 8 x 8 patch of two photographs, as in scripts/demo, labelled by strip."""
    parts = []
    for image in load_sample_images().images:
        windows = np.lib.stride_tricks.sliding_window_view(image, (8, 8, 3))
        parts.append(windows.reshape(-1, 192))
    rows = np.concatenate(parts)
    labels = np.arange(len(rows)) * N_STRIPS // len(rows)
    return Mixture("image patches", rows, labels, k)


@cache
def unbalanced(n_rows: int = 100_000) -> Mixture:
    """One Gaussian with half of the rows, and 100 with the others, in 16 dimensions."""
    rng = np.random.default_rng(7)
    centres = rng.normal(scale=3, size=(101, 16))
    shares = np.array([0.5] + [0.005] * 100)
    return _drawn("unbalanced Gaussians", rng, centres, shares, n_rows, 101)


@cache
def three_scales(n_rows: int = 300_000, k: int = 4096) -> Mixture:
    """16 groups of 16 groups of 16 Gaussians in 48 dimensions."""
    rng = np.random.default_rng(3)
    scales = [rng.normal(size=(16**level, 48)) * 0.3 ** (level - 1) for level in (1, 2, 3)]
    labels = rng.integers(4096, size=n_rows)
    rows = scales[0][labels // 256] + scales[1][labels // 16] + scales[2][labels]
    rows += rng.normal(size=rows.shape) * 0.07
    return Mixture("three scales", rows.astype(np.float32), labels, k)


@cache
def heavy_tailed(n_rows: int = 2_000_000) -> Mixture:
    """100 groups in 24 dimensions whose centres and rows follow Student's t."""
    rng = np.random.default_rng(4)
    centres = rng.standard_t(3, size=(100, 24))
    labels = rng.integers(100, size=n_rows)
    rows = centres[labels] + rng.standard_t(4, size=(n_rows, 24)) * 0.7
    return Mixture("heavy tails", rows.astype(np.float32), labels, 100)
