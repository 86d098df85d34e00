"""Compare a tree of clusters with a flat fit, and the fast search with the exact one.

The exact search is taken as it is, by groups of centroids where that pays, and by brute force. All
fits begin from the same rows, drawn at random, and read the array as often. Commands take
turns, each a process of its own, and their processor time is counted: it says more than the clock
where other programs run beside. Inertia is of all rows by their true nearest centroids, in per cent
above that of the flat fit.

Run it by ``python -m bench.many OUT.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from bench.report import environment

#: Rows that are drawn and written at a time.
AT_ONCE = 100_000


class Case(NamedTuple):
    """Rows around points that lie around points that lie around points."""

    n_rows: int
    n_features: int
    k: int
    n_searched: int
    """Rows that are labelled by both searches."""


CASES = [
    Case(2_000_000, 64, 16_384, 200_000),
    Case(1_000_000, 32, 65_536, 100_000),
    Case(400_000, 64, 16_384, 100_000),
    Case(200_000, 32, 65_536, 100_000),
]
#: What runs a command, and what runs one without groups.
AS_IT_IS = ("-m", "streamkm")
BRUTE = (
    "-c",
    (
        "from streamkm.kernels.ops import groups; groups.MIN_CENTROIDS = 1 << 62; "
        "from streamkm.__main__ import main; raise SystemExit(main())"
    ),
)


def write_rows(case: Case, path: Path) -> None:
    """Write the rows of a mixture on three scales: 64 groups of 32 groups of 8."""
    rng = np.random.default_rng(0)
    shape = (case.n_rows, case.n_features)
    large = rng.normal(0, 8, (64, case.n_features))
    middle = large[:, None] + rng.normal(0, 3, (64, 32, case.n_features))
    small = (middle[:, :, None] + rng.normal(0, 1, (64, 32, 8, case.n_features))).reshape(
        -1, case.n_features
    )
    rows = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    for start in range(0, case.n_rows, AT_ONCE):
        n = min(AT_ONCE, case.n_rows - start)
        noise = rng.normal(0, 0.5, (n, case.n_features))
        rows[start : start + n] = small[rng.integers(len(small), size=n)] + noise
    rows.flush()


def processor_seconds(*words: object, runs: tuple[str, str] = AS_IT_IS) -> float:
    """What the command with `words` took of the processors."""
    environment_ = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count())}
    command = [sys.executable, *runs, *map(str, words)]
    child = os.posix_spawn(
        sys.executable, command, environment_, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)]
    )
    _, status, usage = os.wait4(child, 0)
    if status != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime


def inertia(run: Path, rows: Path) -> float:
    """Of all rows, by their nearest centroids."""
    from streamkm import load_run

    fitted = load_run(run)
    array = np.load(rows, mmap_mode="r")
    total = 0.0
    for start in range(0, len(array), AT_ONCE):
        total -= fitted.score(np.asarray(array[start : start + AT_ONCE]))
    return total


def compare(case: Case, folder: Path, n_turns: int) -> dict[str, Any]:
    """Times and inertia of the fits, times of the searches, and how often both agree."""
    rows, seeds = folder / "rows.npy", folder / "seeds.npy"
    write_rows(case, rows)
    array = np.load(rows, mmap_mode="r")
    drawn = np.sort(np.random.default_rng(1).choice(case.n_rows, case.k, replace=False))
    np.save(seeds, array[drawn])
    np.save(folder / "searched.npy", array[: case.n_searched])
    fits: dict[str, list[float]] = {"minibatch": [], "brute": [], "tree": []}
    searches: dict[str, list[float]] = {"exact": [], "brute": [], "fast": []}
    for turn in range(n_turns):
        for algorithm, times in fits.items():
            times.append(
                processor_seconds(
                    "fit",
                    rows,
                    "--k",
                    case.k,
                    "--init",
                    seeds,
                    "--algorithm",
                    "minibatch" if algorithm == "brute" else algorithm,
                    "--no-closing-pass",
                    "--out",
                    folder / f"{algorithm}-{turn}",
                    runs=BRUTE if algorithm == "brute" else AS_IT_IS,
                )
            )
    tree = folder / "tree-0"
    for turn in range(n_turns):
        for search, times in searches.items():
            labels = folder / f"{search}-{turn}.npy"
            asked = "fast" if search == "fast" else "exact"
            words = ("predict", tree, folder / "searched.npy", "--search", asked)
            runs = BRUTE if search == "brute" else AS_IT_IS
            times.append(processor_seconds(*words, "--labels", labels, runs=runs))
    agree = np.load(folder / "exact-0.npy") == np.load(folder / "fast-0.npy")
    if not np.array_equal(np.load(folder / "exact-0.npy"), np.load(folder / "brute-0.npy")):
        raise RuntimeError("labels are not those of brute force")
    of = {each: inertia(folder / f"{each}-0", rows) for each in fits}
    np.save(folder / "few.npy", array[:1000])
    few = ("fit", folder / "few.npy", "--k", 2, "--init", "random", "--no-closing-pass")
    start_up = processor_seconds(*few, "--out", folder / "few")

    def ratio(times: dict[str, list[float]], one: str, other: str) -> float:
        """Of processor time, less that of a start."""
        return round((min(times[one]) - start_up) / (min(times[other]) - start_up), 2)

    return {
        "samples": {"fits": fits, "searches": searches, "start": start_up},
        "brute flat over tree": ratio(fits, "brute", "tree"),
        "flat over tree": ratio(fits, "minibatch", "tree"),
        "brute over exact search": ratio(searches, "brute", "exact"),
        "brute over fast search": ratio(searches, "brute", "fast"),
        "tree above flat, per cent": round(100 * (of["tree"] / of["minibatch"] - 1), 3),
        "fast search finds the nearest, share": float(agree.mean()),
    }


def main() -> int:
    """Compare, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--case", type=int, action="append", choices=range(len(CASES)))
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    results = {}
    for number in args.case or range(len(CASES)):
        case = CASES[number]
        name = f"{case.n_rows:,} x {case.n_features}, k={case.k:,}"
        with TemporaryDirectory() as folder:
            results[name] = found = compare(case, Path(folder), args.turns)
        print(name, {key: value for key, value in found.items() if key != "samples"}, flush=True)
    if args.out:
        args.out.write_text(json.dumps({**environment(), "cases": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
