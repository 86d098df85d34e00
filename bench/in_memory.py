"""Compare fits and assignment in memory with scikit-learn's and faiss's.

Each contender has a process of its own, begins from the same centroids and makes the same number
of passes. The processes live side by side and take turns, so that what else the machine does
meets all alike. The result is the ratio of the medians, of the clock and of the processor's time.
``--together`` gives all contenders one process instead, as in a notebook, where threads of one
may wait by spinning on cores that another needs.

Run it by ``python -m bench.in_memory OUT.json``; faiss is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.report import environment

if TYPE_CHECKING:
    from collections.abc import Callable


class Case(NamedTuple):
    """What every contender does: a fit of `n_passes` passes, or without passes an assignment."""

    n_rows: int
    n_features: int
    k: int
    n_passes: int
    dtype: str = "float32"
    rows: str = "mixture"

    @property
    def name(self) -> str:
        """How tables call it."""
        what = f"fit, {self.n_passes} passes" if self.n_passes else "assign"
        return f"{what}: {self.n_rows:,} x {self.n_features} {self.dtype}, k={self.k}, {self.rows}"


CASES = [
    Case(200_000, 16, 64, 20),
    Case(200_000, 64, 256, 10),
    Case(100_000, 128, 1024, 10),
    Case(50_000, 768, 1024, 5),
    Case(30_000, 768, 4096, 3),
    Case(32_768, 768, 1024, 0),
    Case(16_384, 768, 10_000, 0),
    Case(16_384, 128, 10_000, 0),
    Case(32_768, 32, 20_000, 0),
    Case(32_768, 128, 1024, 0, "uint8"),
    Case(65_536, 128, 1024, 0, "float64"),
]


@cache
def points(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Rows, and centroids that are some of them."""
    rng = np.random.default_rng(0)
    rows: np.ndarray
    means: np.ndarray
    noise: np.ndarray
    if case.rows != "mixture":
        found = np.load(case.rows, mmap_mode="r").astype(np.float32)
        rows = found[rng.integers(len(found), size=case.n_rows)]
        rows = rows + rng.normal(0, 0.01, rows.shape).astype(np.float32)
    elif case.dtype == "uint8":
        means = rng.integers(0, 256, (case.k, case.n_features))
        noise = rng.normal(0, 40, (case.n_rows, case.n_features))
        rows = np.clip(means[rng.integers(case.k, size=case.n_rows)] + noise, 0, 255)
    else:
        means = rng.standard_normal((case.k, case.n_features), dtype=np.float32)
        noise = rng.standard_normal((case.n_rows, case.n_features), dtype=np.float32)
        rows = 0.7 * means[rng.integers(case.k, size=case.n_rows)] + noise
    rows = np.ascontiguousarray(rows.astype(case.dtype))
    return rows, rows[rng.choice(case.n_rows, case.k, replace=False)].copy()


def of_streamkm(case: Case) -> Callable[[], np.ndarray]:
    """A function that makes the fit, or the assignment, and returns the labels."""
    from streamkm import KMeans

    rows, centroids = points(case)
    if case.n_passes:
        return lambda: (
            KMeans(case.k, init=centroids, n_init=1, max_iter=case.n_passes, tol=0)
            .fit(rows)
            .labels_
        )
    fitted = KMeans(case.k, init=centroids, n_init=1, max_iter=1, tol=0).fit(centroids)
    return lambda: fitted.predict(rows)


def of_sklearn(case: Case) -> Callable[[], np.ndarray]:
    """The same by scikit-learn."""
    from sklearn.cluster import KMeans

    rows, centroids = points(case)
    if case.n_passes:
        return lambda: (
            KMeans(
                case.k, init=centroids, n_init=1, max_iter=case.n_passes, tol=0, algorithm="lloyd"
            )
            .fit(rows)
            .labels_
        )
    fitted = KMeans(case.k, init=centroids, n_init=1, max_iter=1, tol=0).fit(centroids)
    return lambda: fitted.predict(rows)


def of_faiss(case: Case) -> Callable[[], np.ndarray]:
    """The same by faiss, which takes float32 alone."""
    import faiss

    faiss.omp_set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rows, centroids = (each.astype(np.float32) for each in points(case))
    if case.n_passes:

        def fit() -> np.ndarray:
            found = faiss.Kmeans(
                case.n_features, case.k, niter=case.n_passes,
                max_points_per_centroid=len(rows), min_points_per_centroid=1,
            )  # fmt: skip
            found.train(rows, init_centroids=centroids)
            labels: np.ndarray = found.index.search(rows, 1)[1]
            return labels

        return fit
    index = faiss.IndexFlatL2(case.n_features)
    index.add(centroids)
    return lambda: index.search(rows, 1)[1]


CONTENDERS = {"streamkm": of_streamkm, "scikit-learn": of_sklearn, "faiss": of_faiss}


def serve(names: list[str]) -> None:
    """Make what is asked for on stdin, a contender and a case a line; tell its times on stdout."""
    made: dict[tuple[str, Case], Callable[[], np.ndarray]] = {}
    for line in sys.stdin:
        name, values = json.loads(line)
        case = Case(*values)
        if name not in names:
            raise ValueError(f"this process serves {names}, not {name}")
        if (name, case) not in made:
            made[name, case] = CONTENDERS[name](case)
        began, cpu_began = time.perf_counter(), time.process_time()
        made[name, case]()
        took = {"clock": time.perf_counter() - began, "cpu": time.process_time() - cpu_began}
        print(json.dumps(took), flush=True)


class Contender:
    """A process that serves."""

    def __init__(self, names: list[str], threads: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.in_memory", "--serve", *names],
            env={**os.environ, "OMP_NUM_THREADS": threads},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, name: str, case: Case) -> dict[str, float]:
        """Seconds that `name` took for `case`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([name, case]), file=self._process.stdin, flush=True)
        took: dict[str, float] = json.loads(self._process.stdout.readline())
        return took

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(case: Case, threads: str, n_turns: int, *, together: bool) -> dict[str, Any]:
    """Seconds of each contender, in turns; the first turn of each is not counted."""
    names = [name for name in CONTENDERS if name != "faiss" or importlib.util.find_spec("faiss")]
    if together:
        one = Contender(names, threads)
        by_name = dict.fromkeys(names, one)
    else:
        by_name = {name: Contender([name], threads) for name in names}
    found: dict[str, dict[str, list[float]]] = {name: {"clock": [], "cpu": []} for name in names}
    for turn in range(n_turns + 1):
        for name, contender in by_name.items():
            took = contender.run(name, case)
            for kind, seconds in took.items():
                if turn > 0:
                    found[name][kind].append(seconds)
    for contender in set(by_name.values()):
        contender.stop()
    own = {kind: median(found["streamkm"][kind]) for kind in ("clock", "cpu")}
    return {
        "samples": found,
        "medians": {
            name: {
                kind: {"seconds": median(times), "ratio": round(median(times) / own[kind], 2)}
                for kind, times in kinds.items()
            }
            for name, kinds in found.items()
        },
    }


def main() -> int:
    """Compare, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--case", type=int, action="append", choices=range(len(CASES)))
    parser.add_argument("--threads", default=str(os.cpu_count()))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--together", action="store_true", help="all contenders in one process")
    parser.add_argument(
        "--embeddings", type=Path, help="a .npy of embeddings, for a pass at k=10,000"
    )
    parser.add_argument("--serve", nargs="+", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return 0
    cases = [CASES[number] for number in args.case or range(len(CASES))]
    if args.embeddings:
        n_features = np.load(args.embeddings, mmap_mode="r").shape[1]
        cases.append(Case(200_000, n_features, 10_000, 1, rows=str(args.embeddings)))
    described = {**environment(), "threads": args.threads, "together": args.together}
    results: dict[str, Any] = {}
    for case in cases:
        found = compare(case, args.threads, args.turns, together=args.together)
        shown = case if case.rows == "mixture" else case._replace(rows="embeddings")
        results[shown.name] = found
        for name, kinds in found["medians"].items():
            times = ", ".join(
                f"{kind} {one['seconds']:8.3f} s {one['ratio']:5.2f} x"
                for kind, one in kinds.items()
            )
            print(f"{shown.name:55} {name:12} {times}", flush=True)
        if args.out:  # After each case: the next may take long.
            args.out.write_text(json.dumps({**described, "cases": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
