"""Processor time of passes, predict, evaluate and start-up: two processes beside two threads.

``python -m bench.processor_time OUT.json`` compares the contenders of `bench.processes` where other
programs take the cores, so that times by the clock tell little: what counts is what all processes
and threads of a contender have worked. A contender that takes 1.1 times as much has 0.9 of the pace
at most where it keeps all cores busy, and less where it waits. Seconds by the clock stand beside
it, with the cores that others took meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.processes import CHUNK_ROWS, CONTENDERS, made
from bench.report import environment
from bench.scale_stages import fitted
from streamkm.config import ExecutionConfig, FitConfig
from streamkm.distributed.joining import joined
from streamkm.sources import open_source

#: Passes of a fit, by k; the first is left out.
PASSES = {64: 13, 1024: 4}
#: Rows of the array by which the processor time of a start is told from that of its rows.
FEW_ROWS = 1000


def worker(source: Path, k: int, algorithm: str) -> None:
    """One process of a fit; number 0 prints what its passes took."""
    config = FitConfig(
        k=k, algorithm=algorithm, init="random", epochs=PASSES[k], tol=0.0,
        min_gain=0.0 if algorithm == "minibatch" else None, closing_pass=False,
        batch_rows=CHUNK_ROWS,  # As of 1,000,000 rows, which are not waited for here.
    )  # fmt: skip
    with joined("cpu") as world:
        samples = fitted(open_source(source), config, ExecutionConfig(device="cpu"), world)
    if world.is_first:
        print(json.dumps(samples))


def passes(contender: str, source: Path, k: int, algorithm: str) -> list[dict[str, float]]:
    """Samples of a fit by a contender."""
    n, n_threads = CONTENDERS[contender]
    command = [sys.executable, "-m", "bench.processor_time", str(source), "--worker"]
    command += [str(k), algorithm]
    place: dict[str, str] = {}
    if n > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        place = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in range(n):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), **place} if place else {}
        started.append(
            subprocess.Popen(
                command,
                env={**os.environ, "OMP_NUM_THREADS": str(n_threads), **own},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{' '.join(command)} failed")
    found: list[dict[str, float]] = json.loads(outputs[0].splitlines()[-1])
    return found


def command_s(contender: str, *words: object) -> dict[str, float]:
    """Processor time of a command by a contender, and its seconds by the clock."""
    n, n_threads = CONTENDERS[contender]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "streamkm", *map(str, words), "--processes", str(n)],
        env={**os.environ, "OMP_NUM_THREADS": str(n_threads)}, check=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"core_s": round(worked, 3), "clock_s": round(time.perf_counter() - began, 3)}


def main() -> int:
    """Run the contenders in turn, print ratios of medians and write all samples."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("path", type=Path, help="of the results")
    parser.add_argument("--worker", nargs=2, metavar=("K", "ALGORITHM"), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.worker:
        worker(args.path, int(args.worker[0]), args.worker[1])
        return 0
    samples: dict[str, dict[str, list[Any]]] = {}

    def note(what: str, contender: str, found: list[Any]) -> None:
        samples.setdefault(what, {}).setdefault(contender, []).extend(found)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source, few = made(folder / "x.zarr", args.rows, 128), folder / "few.npy"
        np.save(few, np.zeros((FEW_ROWS, 128), dtype=np.float32))
        for turn in range(args.rounds):
            for k in PASSES:
                run = folder / f"run-{k}"
                for contender in CONTENDERS:
                    for algorithm in ("minibatch", "lloyd"):
                        note(
                            f"k={k} {algorithm}", contender,
                            passes(contender, source, k, algorithm),
                        )  # fmt: skip
                if not turn:
                    command_s(
                        "1 x 2", "fit", source, "--k", k, "--out", run, "--init", "random",
                        "--no-closing-pass",
                    )  # fmt: skip
                for contender in CONTENDERS:
                    for verb in ("predict", "evaluate"):
                        spent = []
                        for rows in (few, source):
                            labels = folder / f"{turn}-{contender}-{k}-{rows.name}.npy"
                            more = ("--labels", labels) if verb == "predict" else ()
                            spent.append(command_s(contender, verb, run, rows, *more))
                        start, whole = spent
                        note(f"start of {verb}", contender, [start])
                        worked = (whole["core_s"] - start["core_s"]) / args.rows
                        note(f"k={k} {verb}", contender, [{"core_s_per_row": worked}])
            write(args.path, args.rows, samples)
    for what, by_contender in samples.items():
        name = "core_s_per_row" if "core_s_per_row" in by_contender["1 x 2"][0] else "clock_s"
        of = {each: median(s[name] for s in found) for each, found in by_contender.items()}
        print(f"{what}: {name} {of}, 2 x 1 over 1 x 2: {of['2 x 1'] / of['1 x 2']:.2f}")
    return 0


def write(path: Path, n_rows: int, samples: dict[str, Any]) -> None:
    described = {"rows": n_rows, "passes": PASSES, "load_average": os.getloadavg()[0]}
    path.write_text(json.dumps({**environment(), **described, "samples": samples}, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
