"""Compares the model of `bench.scaling` with what several processes do on this machine.

Processes of one thread each time their stages and then fit an array in Zarr (see
`bench.scale_stages`). What the stages take is measured with the cores and caches as busy as in the
fit, but nobody waits for anybody; the model adds what processes wait for.

Two things are compared: the rows/s, for which a sample of some passes counts if other programs took
few of the cores, and the processor time of a row, of all processes together, which they hardly
change.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench.processes import CHUNK_ROWS, made
from bench.report import environment
from bench.scaling import Job, Machine, Network, Prediction, Rates, predict

__all__ = ["check"]

N_FEATURES = 128
PROCESSES = (1, 2, 4)
#: Cores of others beside which a sample still counts.
QUIET = 0.15
#: Seconds that a contender waits for that.
PATIENCE_S = 60.0
#: Samples that count, after which a contender is done.
ENOUGH = 6
#: The target: the share by which a prediction may be off.
NEAR = 0.15


def environ(**more: object) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in more.items()}}


def processes(source: Path, job: Job, n: int, n_passes: int, patience_s: float) -> dict[str, Any]:
    """What `n` processes have measured: rates, reductions and passes."""
    words = [
        "-m", "bench.scale_stages", source, job.k, job.algorithm, n_passes,
        "--reduced-bytes", job.reduced_bytes, "--patience", patience_s,
        "--most-cores", QUIET,
    ]  # fmt: skip
    command = [sys.executable, *map(str, words)]
    shared: dict[str, object] = {}
    if n > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in range(n):
        own = {"RANK": rank, "LOCAL_RANK": rank, **shared} if shared else {}
        environ = {**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in own.items()}}
        started.append(subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{' '.join(command)} failed")
    found: list[dict[str, Any]] = [json.loads(output.splitlines()[-1]) for output in outputs]
    rates = {name: median(each["rates"][name] for each in found) for name in found[0]["rates"]}
    return {**found[0], "rates": rates}


def predicted(job: Job, timed: dict[str, Any], n_processes: int, n_cores: int) -> Prediction:
    """By the model, from what `time_stages` has found."""
    network = Network(0.0, 1.0)
    if n_processes > 1:
        small_s, whole_s = timed["reductions_s"]
        sent = 2 * (n_processes - 1) / n_processes * job.reduced_bytes
        bandwidth = sent / max(whole_s - small_s, 1e-9)
        network = Network(small_s, bandwidth, core_s=timed["reduction_core_s"])
    machine = Machine(readers=max(n_cores // n_processes, 1), cores=n_cores)
    return predict(job, Rates(**timed["rates"]), machine, network, n_local=n_processes)


class Contender:
    """A fit by a number of processes, and what was measured of it so far."""

    def __init__(self, job: Job, n_processes: int, n_passes: int) -> None:
        self.job, self.n_processes, self.n_passes = job, n_processes, n_passes
        self.turns: list[dict[str, Any]] = []

    def __str__(self) -> str:
        return f"{self.job.algorithm}, k={self.job.k}, {self.n_processes} x 1"

    def samples(self, most_cores: float = math.inf) -> list[dict[str, float]]:
        """Samples beside which others took at most this number of cores."""
        every = [sample for turn in self.turns for sample in turn["passes"]]
        return [sample for sample in every if sample["others_cores"] <= most_cores]

    def turn(self, source: Path, patience_s: float) -> None:
        found = processes(source, self.job, self.n_processes, self.n_passes, patience_s)
        self.turns.append(found)

    def result(self, n_cores: int) -> dict[str, Any]:
        """What is predicted and what was measured, and all that they come from."""
        models = [predicted(self.job, turn, self.n_processes, n_cores) for turn in self.turns]
        # Of turns with quiet samples, if there are some: caches were the fit's own.
        quiet = [any(each["others_cores"] <= QUIET for each in t["passes"]) for t in self.turns]
        models = [
            m for m, is_quiet in zip(models, quiet, strict=True) if is_quiet or not any(quiet)
        ]
        model = sorted(models, key=lambda each: each.rows_per_s)[len(models) // 2]
        core_s = n_cores * model.seconds["cores"] / self.job.rows
        counted = self.samples(QUIET) or self.samples()
        spent = median(sample["core_s_per_row"] for sample in counted)
        rows_per_s = median(sample["rows_per_s"] for sample in counted)
        return {
            "is_quiet": any(quiet),
            "predicted_rows_per_s": round(model.rows_per_s),
            "measured_rows_per_s": round(rows_per_s),
            "predicted_over_measured": round(model.rows_per_s / rows_per_s, 3),
            "predicted_core_s_per_row": core_s,
            "measured_core_s_per_row": spent,
            "core_s_predicted_over_measured": round(core_s / spent, 3),
            "bound": model.bound,
            "samples": len(counted),
            "stages_s": model.seconds,
            "turns": self.turns,
        }


def check(out: Path, n_rows: int, passes: dict[int, int], minutes: float) -> int:
    """Run and predict all contenders in turn; 1 if the rows/s of one are far off.

    `passes` are those of a run, by k. Who has fewest samples is next, until all have enough or the
    time is up. Each has a turn at least, on a busy machine beside other programs.
    """
    until, n_cores = time.monotonic() + 60 * minutes, os.cpu_count() or 1
    contenders = []
    for k, n_passes in passes.items():
        for algorithm in ("lloyd", "minibatch"):
            job = Job.usual(algorithm, k, N_FEATURES, n_rows, CHUNK_ROWS * 4 * N_FEATURES)
            contenders += [Contender(job, n, n_passes) for n in PROCESSES]
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        source = made(Path(folder) / "x.zarr", n_rows, N_FEATURES)
        while following := _following(contenders, is_late=time.monotonic() > until):
            patience_s = min(PATIENCE_S, max(until - time.monotonic(), 0))
            following.turn(source, patience_s)
            loads.append(os.getloadavg()[0])
    results = {str(each): each.result(n_cores) for each in contenders}
    described = {
        "array": f"Zarr, LZ4, {n_rows} x {N_FEATURES} float32, blocks of {CHUNK_ROWS} rows",
        "load_average": {"least": min(loads), "median": median(loads), "most": max(loads)},
        "samples_count_beside_cores_of_others": QUIET,
        "target": f"within {NEAR:.0%}",
    }
    out.write_text(json.dumps({**environment(), **described, "results": results}, indent=1) + "\n")
    for name, result in results.items():
        print(
            f"{name:<26}{result['predicted_rows_per_s']:>11,} rows/s predicted"
            f"{result['measured_rows_per_s']:>11,} measured"
            f"{result['predicted_over_measured']:>6.2f}"
            f"{'' if result['is_quiet'] else ' (beside other programs)'}; processor time"
            f"{result['core_s_predicted_over_measured']:>6.2f}; {result['bound']}"
        )
    ratios = [result["predicted_over_measured"] for result in results.values()]
    return int(any(abs(ratio - 1) > NEAR for ratio in ratios))


def _following(contenders: list[Contender], *, is_late: bool) -> Contender | None:
    """Whose turn it is: who has the fewest samples that count, and of these the fewest turns."""
    left = [each for each in contenders if len(each.samples(QUIET)) < ENOUGH]
    left = [each for each in left if not (is_late and each.turns)]
    return min(left, key=lambda each: (len(each.samples(QUIET)), len(each.turns)), default=None)
