"""Compare the speed of two versions of streamkm, which are both installed and take turns.

Each round starts one process of each version; their order changes from round to round. A process
warms up, then carries out every workload of `WORKLOADS` `N_TIMES` times and keeps the least time.
The result is the ratio of the medians of these. The file of results names the machine and its
processor too.

Run it by ``scripts/equal --pace BEFORE [AFTER]``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.equality import install
from bench.report import environment

N_ROUNDS = 9
#: Times that a process carries out each workload; the least time is its sample.
N_TIMES = 5
#: Commands that are timed as whole processes, which mostly import.
WHOLE = {"streamkm --help": ["--help"], "streamkm info": ["info", "wide.npy"]}


@dataclass(frozen=True)
class Workload:
    """Arguments of one command.

    ``RUN`` stands for a folder that does not exist, ``MODEL`` for a run of k=256 on wide.npy.
    """

    name: str
    arguments: str


WORKLOADS = (
    Workload(
        "epoch, 1,000,000 x 32, k=64",
        "fit long.zarr --k 64 --init k-means++ --no-closing-pass --out RUN",
    ),
    Workload("fit, 200,000 x 128, k=1024", "fit wide.npy --k 1024 --out RUN"),
    Workload(
        "lloyd, 200,000 x 128, k=64, 8 passes",
        "fit wide.npy --k 64 --algorithm lloyd --tol 0 --epochs 8 --out RUN",
    ),
    Workload("z-score, 1,000,000 x 32, k=16", "fit long.zarr --k 16 --scale zscore --out RUN"),
    Workload("pixels, 4,000,000 x 3, k=16", "fit pixels.npy --k 16 --out RUN"),
    Workload("predict, 200,000 x 128, k=256", "predict MODEL wide.npy --labels RUN.npy"),
    Workload("small, 2,000 x 32, k=8, 20 epochs", "fit small.npy --k 8 --epochs 20 --out RUN"),
)


def make_data(folder: Path) -> None:
    """Write every source of `WORKLOADS` and `WHOLE`."""
    import zarr

    rng = np.random.default_rng(3)
    centres_KD = rng.normal(size=(200, 128)).astype(np.float32) * 2
    wide = centres_KD[rng.integers(200, size=200_000)]
    wide += rng.normal(size=wide.shape).astype(np.float32)
    np.save(folder / "wide.npy", wide)
    np.save(folder / "small.npy", wide[:2000, :32])
    long = np.ascontiguousarray(np.tile(wide[:, :32], (5, 1)))
    long += rng.normal(size=long.shape).astype(np.float32)
    zarr.create_array(folder / "long.zarr", data=long, chunks=(16384, 32))
    np.save(folder / "pixels.npy", rng.integers(0, 256, size=(4_000_000, 3)).astype(np.float32))


def time_all(folder: Path) -> dict[str, float]:
    """Seconds of every workload, by the streamkm on the path."""
    logging.disable(logging.INFO)
    from streamkm.cli import main

    def seconds(arguments: str, number: int, n_times: int) -> float:
        run = folder / f"run-{number}"
        words = {"RUN": str(run), "MODEL": str(folder / "run-0")}
        for word, path in words.items():
            arguments = arguments.replace(word, path)
        least = float("inf")
        for _ in range(n_times):
            shutil.rmtree(run, ignore_errors=True)
            run.with_name(run.name + ".npy").unlink(missing_ok=True)
            began = time.perf_counter()
            status = main(arguments.split())
            least = min(least, time.perf_counter() - began)
            if status:
                raise SystemExit(f"{arguments}: status {status}")
        return least

    seconds("fit wide.npy --k 256 --init random --out RUN", 0, 1)
    return {w.name: seconds(w.arguments, i, N_TIMES) for i, w in enumerate(WORKLOADS, start=1)}


def round_of(version: Path, data: Path) -> dict[str, float]:
    """Seconds of every workload in one process of a version, and of every command of `WHOLE`."""
    variables = {**os.environ, "PYTHONPATH": str(version), "PYTHONSAFEPATH": "1"}
    found: dict[str, float] = {}
    for name, arguments in WHOLE.items():
        began = time.perf_counter()
        command = [sys.executable, "-m", "streamkm", *arguments]
        subprocess.run(command, cwd=data, env=variables, check=True, capture_output=True)
        found[name] = time.perf_counter() - began
    root = str(Path(__file__).resolve().parents[1])
    with tempfile.TemporaryDirectory(dir=data) as folder:
        script = (
            f"import sys; sys.path.append({root!r}); from pathlib import Path; import json\n"
            f"from bench.pace import time_all; print(json.dumps(time_all(Path({folder!r}))))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=data, env=variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{version.name}: {done.stderr[-3000:]}")
    timed: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found | timed


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/equal --pace", description=__doc__)
    parser.add_argument("before", help="a commit")
    parser.add_argument("after", nargs="?", help="another (default: the files as they lie here)")
    parser.add_argument("--rounds", type=int, default=N_ROUNDS, help="rounds (%(default)s)")
    parser.add_argument("--out", type=Path, help="file of results")
    arguments = parser.parse_args()
    samples: dict[str, dict[str, list[float]]] = {"before": {}, "after": {}}
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), Path(name) / "data"
        data.mkdir()
        make_data(data)
        install(arguments.before, folder / "before")
        install(arguments.after, folder / "after")
        for number in range(arguments.rounds):
            versions = ["before", "after"] if number % 2 else ["after", "before"]
            for version in versions:
                for what, spent in round_of(folder / version, data).items():
                    samples[version].setdefault(what, []).append(spent)
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    result = {
        what: {
            "before_s": round(statistics.median(samples["before"][what]), 4),
            "after_s": round(statistics.median(samples["after"][what]), 4),
            "ratio": round(
                statistics.median(samples["after"][what])
                / statistics.median(samples["before"][what]),
                3,
            ),
            "least_ratio": round(min(samples["after"][what]) / min(samples["before"][what]), 3),
        }
        for what in samples["before"]
    }
    report = {
        **environment(), "before": arguments.before, "after": arguments.after or "as it lies here",
        "rounds": arguments.rounds, "medians": result, "samples": samples,
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
