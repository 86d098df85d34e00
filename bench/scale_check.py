"""Compares the model of `bench.scaling` with what several processes do on this machine.

Processes of one thread each fit an array in Zarr. Before each run, the stages are timed by as many
processes at once, without a run (see `bench.scale_stages`); so the cores and their caches are as
busy as in the run, but nobody waits for anybody. The model adds what processes wait for.

The runs are short, and how long they take depends on what else the machine does. So each is noted
with the cores that other programs took while its rows streamed, and a run counts if they took few.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
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
#: Cores of others beside which a run still counts.
QUIET = 0.1
#: Runs that count, after which a contender is done.
ENOUGH = 3
#: The target: the share by which a prediction may be off.
NEAR = 0.15


class Load:
    """Samples all the while what the cores do, and what a process and its children take of them."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        #: (time, seconds that all cores have worked, seconds of them that are the process's)
        self._samples: list[tuple[float, float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def of_others(self, begin: float, end: float) -> float:
        """Cores that others took between two times, on average."""
        within = [sample for sample in self._samples if begin <= sample[0] <= end]
        (first, all_first, own_first), (last, all_last, own_last) = within[0], within[-1]
        return (all_last - all_first - own_last + own_first) / (last - first)

    def _watch(self) -> None:
        while not self._over.wait(0.04):
            own = sum(map(_seconds_of, _family(self._pid)))
            self._samples.append((time.time(), _busy_s(), own))


def wait_for_quiet(until: float) -> None:
    """Return when other programs leave the cores alone, or when the time is up."""
    while time.monotonic() < until:
        before = _busy_s()
        time.sleep(1)
        if _busy_s() - before <= QUIET:
            return


def _busy_s() -> float:
    """Seconds that all cores have worked so far."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().split(maxsplit=11)[1:11]
    )
    return float(user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _family(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:  # it has ended
            continue
    return found


def _seconds_of(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def environ(**more: object) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in more.items()}}


def time_stages(source: Path, job: Job, n_processes: int) -> dict[str, Any]:
    """Rates of the stages while as many processes time theirs, and of reductions among them."""
    words = [sys.executable, "-m", "bench.scale_stages", source, job.k, job.algorithm]
    command = [*map(str, words), str(job.reduced_bytes)]
    shared: dict[str, object] = {}
    if n_processes > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": n_processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in range(n_processes):
        own = {"RANK": rank, "LOCAL_RANK": rank, **shared} if shared else {}
        started.append(
            subprocess.Popen(command, env=environ(**own), stdout=subprocess.PIPE, text=True)
        )
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("the stages could not be timed: see above")
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    return {
        "rates": {
            name: median(each["rates"][name] for each in found) for name in found[0]["rates"]
        },
        "reductions_s": found[0].get("reductions_s"),
    }


def run(source: Path, job: Job, n_processes: int, n_passes: int, out: Path) -> dict[str, float]:
    """Rows/s of a run, and the cores that others took meanwhile."""
    words = [
        "fit", source, "--k", job.k, "--out", out, "--init", "random", "--tol", 0,
        "--algorithm", job.algorithm, "--epochs", n_passes, "--no-closing-pass",
        *(("--min-gain", 0) if job.in_steps else ()), "--processes", n_processes,
    ]  # fmt: skip
    command = [sys.executable, "-m", "streamkm", *map(str, words)]
    with (
        subprocess.Popen(command, env=environ(), stderr=subprocess.DEVNULL) as process,
        Load(process.pid) as load,
    ):
        process.wait()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: status {process.returncode}")
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    train_s = last["seconds"]["train"]
    return {
        "rows_per_s": n_passes * job.n_rows / train_s,
        "others_cores": load.of_others(last["time"] - train_s, last["time"]),
    }


def predicted(job: Job, timed: dict[str, Any], n_processes: int, n_cores: int) -> Prediction:
    """By the model, from what `time_stages` has found."""
    network = Network(0.0, 1.0)
    if n_processes > 1:
        small_s, whole_s = timed["reductions_s"]
        sent = 2 * (n_processes - 1) / n_processes * job.reduced_bytes
        network = Network(small_s, sent / max(whole_s - small_s, 1e-9))
    machine = Machine(readers=max(n_cores // n_processes, 1), cores=n_cores)
    return predict(job, Rates(**timed["rates"]), machine, network, n_local=n_processes)


class Contender:
    """A fit by a number of processes: its runs, and the model's rates beside each."""

    def __init__(self, job: Job, n_processes: int, n_passes: int) -> None:
        self.job, self.n_processes, self.n_passes = job, n_processes, n_passes
        self.runs: list[dict[str, float]] = []
        self.timed: list[dict[str, Any]] = []

    def __str__(self) -> str:
        job = self.job
        return f"{job.algorithm}, k={job.k}, {self.n_processes} x 1"

    @property
    def counted(self) -> list[dict[str, float]]:
        """The quietest runs, quiet or not."""
        return sorted(self.runs, key=lambda run: run["others_cores"])[:ENOUGH]

    @property
    def is_done(self) -> bool:
        return len(self.runs) >= ENOUGH and self.counted[-1]["others_cores"] <= QUIET

    def turn(self, source: Path, folder: Path, until: float) -> None:
        """One more run, and the stages before it."""
        wait_for_quiet(until)
        if len(self.timed) < ENOUGH:
            self.timed.append(time_stages(source, self.job, self.n_processes))
            wait_for_quiet(until)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            out = Path(place) / "run"
            self.runs.append(run(source, self.job, self.n_processes, self.n_passes, out))

    def result(self, n_cores: int) -> dict[str, Any]:
        """Predicted and measured rows/s, and all that they come from."""
        models = [predicted(self.job, each, self.n_processes, n_cores) for each in self.timed]
        models.sort(key=lambda prediction: prediction.rows_per_s)
        model = models[len(models) // 2]
        measured = median(run["rows_per_s"] for run in self.counted)
        return {
            "predicted_rows_per_s": round(model.rows_per_s),
            "measured_rows_per_s": round(measured),
            "ratio": round(model.rows_per_s / measured, 3),
            "bound": model.bound,
            "is_quiet": self.is_done,
            "stages_s": model.seconds,
            "runs": self.runs,
            "timed": self.timed,
        }


def check(out: Path, n_rows: int, ks: dict[int, int], minutes: float) -> int:
    """Run and predict all contenders in turn, as often as it takes; 1 if a prediction is far off.

    `ks` are numbers of clusters, with the passes of a run.
    """
    until, n_cores = time.monotonic() + 60 * minutes, os.cpu_count() or 1
    contenders = []
    for k, n_passes in ks.items():
        for algorithm in ("lloyd", "minibatch"):
            job = Job.usual(algorithm, k, N_FEATURES, n_rows, CHUNK_ROWS * 4 * N_FEATURES)
            contenders += [Contender(job, n, n_passes) for n in PROCESSES]
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = made(folder / "x.zarr", n_rows, N_FEATURES)
        while left := [each for each in contenders if not each.is_done]:
            for contender in left:
                contender.turn(source, folder, until)
                print(contender, contender.runs[-1], file=sys.stderr)
            loads.append(os.getloadavg()[0])
            if time.monotonic() > until:
                break
    results = {str(each): each.result(n_cores) for each in contenders}
    described = {
        "load": {"least": min(loads), "most": max(loads)},
        "counts_if_others_cores_at_most": QUIET,
        "rows": n_rows, "features": N_FEATURES, "passes": ks, "array": "Zarr, LZ4, 8 MiB blocks",
    }  # fmt: skip
    content = {**environment(), **described, "results": results}
    out.write_text(json.dumps(content, indent=1) + "\n")
    for name, result in results.items():
        print(
            f"{name:<26}{result['predicted_rows_per_s']:>12,} predicted"
            f"{result['measured_rows_per_s']:>12,} measured {result['ratio']:>6.2f}"
            f"   {result['bound']}{'' if result['is_quiet'] else '; beside other programs'}"
        )
    return int(any(abs(result["ratio"] - 1) > NEAR for result in results.values()))
