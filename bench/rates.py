"""Compare the rates of mini-batches: how far above the best known inertia fits end.

Every fit is a run of streamkm with its defaults, but for the rate and the number of epochs, and
ends with its closing pass. Each seed is another fit. Figures are per cent above the best known
inertia: that of ``--best``, or the least that any fit of the study reached. Beside them stand
scikit-learn's ``MiniBatchKMeans`` and Lloyd's algorithm to convergence from streamkm's own seeding.

Run it by ``python -m bench.rates OUT.json``, with ``--case NAME`` for some of the arrays, or with
``--embeddings X.npy --k K --best INERTIA`` for the rows of a file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.cluster import MiniBatchKMeans

from bench.clusters import (
    LAYOUTS,
    Mixture,
    digits,
    heavy_tailed,
    overlapping,
    patches,
    separated,
    three_scales,
    unbalanced,
)
from bench.report import environment
from bench.test_quality import streamkm_centroids

if TYPE_CHECKING:
    from collections.abc import Callable

#: Arrays by name, and the numbers of epochs that are compared on them.
CASES: dict[str, tuple[Callable[[], Mixture], tuple[int, ...]]] = {
    "digits": (digits, (1, 2, 4, 10)),
    "separated": (separated, (1, 4)),
    "overlapping 1": (lambda: overlapping(1.0), (1, 2, 4, 10)),
    "overlapping 1.5": (lambda: overlapping(1.5), (1, 4)),
    "unbalanced": (unbalanced, (1, 4)),
    "patches": (patches, (1, 3)),
    "three scales": (three_scales, (1, 3)),
    "heavy tails": (heavy_tailed, (1,)),
}
#: Arrays with more numbers than this get fewer seeds.
LARGE, FEW_SEEDS = 10_000_000, 3


def inertias(mixture: Mixture, layout: str, n_seeds: int, **settings: Any) -> list[float]:
    """Inertia of a fit for each seed."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        location = mixture.write(folder / "x", layout)
        return [
            mixture.inertia(
                streamkm_centroids(location, mixture.k, seed, folder / str(seed), **settings)
            )
            for seed in range(n_seeds)
        ]


def study(mixture: Mixture, epochs: tuple[int, ...], n_seeds: int) -> dict[str, list[float]]:
    """Inertia by contender."""
    found = {}
    for layout in LAYOUTS if mixture.rows.size <= LARGE else LAYOUTS[:1]:
        for rate in ("annealed", "mean"):
            for n in epochs:
                name = f"{rate}, epochs {n}" + (f", {layout}" if layout != LAYOUTS[0] else "")
                found[name] = inertias(mixture, layout, n_seeds, rate=rate, epochs=n)
                print(f"    {name}: {median(found[name]):.9g}", flush=True)
    if mixture.rows.size <= LARGE * 2:
        found["lloyd"] = inertias(mixture, LAYOUTS[0], n_seeds, algorithm="lloyd", tol=0.0)
        rows = mixture.rows.astype(np.float32)
        found["scikit-learn MiniBatchKMeans"] = [
            mixture.inertia(
                MiniBatchKMeans(mixture.k, random_state=seed).fit(rows).cluster_centers_
            )
            for seed in range(n_seeds)
        ]
    return found


def _same(mixture: Mixture) -> Mixture:
    return mixture


def main() -> int:
    """Run the study, print its table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("out", type=Path)
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--embeddings", type=Path)
    parser.add_argument("--k", type=int, action="append")
    parser.add_argument("--best", type=float, action="append")
    parser.add_argument("--seeds", type=int, default=11)
    parser.add_argument("--epochs", type=int, nargs="+")
    args = parser.parse_args()
    cases = {name: CASES[name] for name in args.case or ([] if args.embeddings else CASES)}
    if args.embeddings and not args.k:
        parser.error("--embeddings needs --k")
    best = {}
    if args.embeddings:
        rows = np.load(args.embeddings)
        for k, known in zip(args.k, args.best or [np.inf] * len(args.k), strict=True):
            mixture = Mixture(f"embeddings, k={k}", rows, np.zeros(len(rows), np.int64), k)
            cases[mixture.name] = (partial(_same, mixture), (1, 2, 4, 10))
            best[mixture.name] = known
    results: dict[str, Any] = {}
    for name, (make, epochs) in cases.items():
        mixture = make()
        print(f"{name}: {mixture.rows.shape[0]:,} x {mixture.rows.shape[1]}, k={mixture.k}")
        n_seeds = args.seeds if mixture.rows.size <= LARGE * 2 else FEW_SEEDS
        found = study(mixture, args.epochs or epochs, n_seeds)
        least = min(best.get(name, np.inf), *(min(values) for values in found.values()))
        known = best.get(name, np.inf)
        base = known if known < np.inf else least
        results[name] = {"best_known": base, "least_found": least, "inertia": found}
        for contender, values in found.items():
            excess = [100 * (value / base - 1) for value in values]
            print(f"  {contender:40} {median(excess):7.3f} (worst {max(excess):.3f})", flush=True)
        args.out.write_text(json.dumps({**environment(), "cases": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
