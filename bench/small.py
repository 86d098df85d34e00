"""Compare small fits with scikit-learn's ``KMeans(n_init=10)``: their time and their inertia.

Fits take turns, and each pair has a seed of its own. The result is the ratio of the median times,
for one thread and for two: of the clock, and of the processor, which tells more where other
programs run beside. Inertia is told in per cent above the best that any fit found.

Run it by ``python -m bench.small OUT.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.datasets import load_iris, load_wine, make_blobs

from bench.clusters import Mixture, digits, separated
from bench.report import environment

if TYPE_CHECKING:
    from collections.abc import Callable

N_PAIRS = 15
THREADS, TIMES = ("1", "2"), ("clock", "cpu")


#: Seconds, inertia and the like of each fit, by contender and name.
Samples = dict[str, dict[str, list[float]]]


def _unlabelled(name: str, rows: np.ndarray, k: int) -> Mixture:
    return Mixture(name, rows, np.zeros(len(rows), np.int64), k)


@cache
def one_gaussian() -> np.ndarray:
    """10,000 rows of 16 features without any groups."""
    return np.random.default_rng(5).normal(size=(10_000, 16)).astype(np.float32)


@cache
def eight_groups() -> np.ndarray:
    """10,000 rows of 16 features in eight groups far apart."""
    rows: np.ndarray = make_blobs(10_000, 16, centers=8, random_state=1)[0]
    return rows


@cache
def seven_groups() -> np.ndarray:
    """700 rows of 2 features in seven groups far apart."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(-50, 50, size=(7, 2))
    return (centres[rng.integers(7, size=700)] + rng.normal(size=(700, 2))).astype(np.float32)


CASES: dict[str, Callable[[], Mixture]] = {
    "iris": lambda: _unlabelled("iris", load_iris().data, 3),
    "wine": lambda: _unlabelled("wine", load_wine().data, 3),
    "digits": digits,
    "eight groups": lambda: _unlabelled("eight groups", eight_groups(), 8),
    "separated": lambda: separated(10_000),
    "one Gaussian, k=8": lambda: _unlabelled("one Gaussian", one_gaussian(), 8),
    "one Gaussian, k=50": lambda: _unlabelled("one Gaussian", one_gaussian(), 50),
    **{
        f"seven groups, k={k}": partial(_unlabelled, "seven groups", seven_groups(), k)
        for k in (5, 6, 7)
    },
}


def compare(mixture: Mixture, n_pairs: int) -> Samples:
    """Seconds and inertia of each fit by contender."""
    from streamkm import KMeans, MiniBatchKMeans

    contenders: dict[str, Callable[[int], Any]] = {
        "scikit-learn": lambda seed: SklearnKMeans(mixture.k, n_init=10, random_state=seed),
        "KMeans": lambda seed: KMeans(mixture.k, random_state=seed),
        "MiniBatchKMeans": lambda seed: MiniBatchKMeans(mixture.k, random_state=seed),
    }
    found: Samples = {name: {"clock": [], "cpu": [], "inertia": []} for name in contenders}
    for make in contenders.values():
        make(0).fit(mixture.rows)
    for seed in range(n_pairs):
        for name, make in contenders.items():
            estimator = make(seed)
            began, cpu_began = time.perf_counter(), time.process_time()
            estimator.fit(mixture.rows)
            found[name]["cpu"].append(time.process_time() - cpu_began)
            found[name]["clock"].append(time.perf_counter() - began)
            found[name]["inertia"].append(mixture.inertia(estimator.cluster_centers_))
    return found


def compare_in_process(threads: str, cases: list[str], n_pairs: int) -> dict[str, Samples]:
    """`compare` for each case, in a process of its own with this number of threads."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.small", "--here", *cases, "--pairs", str(n_pairs)],
        env={**os.environ, "OMP_NUM_THREADS": threads},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Samples] = json.loads(done.stdout)
    return found


def table(found: dict[str, Samples]) -> dict[str, Any]:
    """For each case and contender the median time, its ratio to scikit-learn's, and the excess."""
    rows: dict[str, Any] = {}
    for case, contenders in found.items():
        best = min(min(each["inertia"]) for each in contenders.values())
        other = {kind: median(contenders["scikit-learn"][kind]) for kind in TIMES}
        rows[case] = {}
        for name, each in contenders.items():
            excess = [100 * (inertia / best - 1) for inertia in each["inertia"]]
            rows[case][name] = {
                **{f"{kind}_ms": round(1e3 * median(each[kind]), 2) for kind in TIMES},
                **{f"{kind}_ratio": round(median(each[kind]) / other[kind], 2) for kind in TIMES},
                "excess_median": round(median(excess), 3),
                "excess_worst": round(max(excess), 3),
            }
    return rows


def main() -> int:
    """Time the fits, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--threads", choices=THREADS, action="append")
    parser.add_argument("--pairs", type=int, default=N_PAIRS)
    parser.add_argument("--here", nargs="+", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps({case: compare(CASES[case](), args.pairs) for case in args.here}))
        return 0
    results: dict[str, Any] = {}
    for threads in args.threads or THREADS:
        found = compare_in_process(threads, args.case or list(CASES), args.pairs)
        rows = table(found)
        results[f"{threads} threads"] = {"medians": rows, "samples": found}
        for case, contenders in rows.items():
            for name, each in contenders.items():
                print(
                    f"{threads} {case:20} {name:16} {each['clock_ms']:8.2f} ms "
                    f"{each['clock_ratio']:5.2f} x, cpu {each['cpu_ms']:8.2f} ms "
                    f"{each['cpu_ratio']:5.2f} x  {each['excess_median']:.3f} % "
                    f"(worst {each['excess_worst']:.3f})",
                    flush=True,
                )
    if args.out:
        args.out.write_text(json.dumps({**environment(), **results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
