"""Compare several processes with one: the pace of a pass, and of what follows a fit.

An array in Zarr is clustered by one process of all cores, by one of a single core, and by several
of a single core each, in turn. The figures are seconds of the phases as the runs record them, so
without start-up and seeding; those of predict and evaluate are of the whole command. Processes that
share a machine share its memory, its disk and its caches. What they say of several machines ends
there.

Run it by ``python -m bench.processes OUT.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from bench.report import environment

#: Rows of a chunk; a batch has as many at most.
CHUNK_ROWS = 16384
#: Processes and threads of each, by contender.
CONTENDERS = {"1 x 2": (1, 2), "1 x 1": (1, 1), "2 x 1": (2, 1)}
#: Passes of each fit.
PASSES = 3


def made(path: Path, n_rows: int, n_features: int) -> Path:
    """A Zarr array of Gaussians around 1000 centres, compressed by LZ4."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(1000, n_features)) * 2
    array = zarr.create_array(
        path, shape=(n_rows, n_features), chunks=(CHUNK_ROWS, n_features), dtype="float32",
        compressors=BloscCodec(cname="lz4", clevel=1),
    )  # fmt: skip
    for start in range(0, n_rows, CHUNK_ROWS):
        labels = rng.integers(1000, size=min(CHUNK_ROWS, n_rows - start))
        rows = centres[labels] + rng.normal(size=(len(labels), n_features))
        array[start : start + len(labels)] = rows.astype(np.float32)
    return path


def streamkm(contender: str, *words: object) -> float:
    """Run a command by a contender; its seconds."""
    n_processes, n_threads = CONTENDERS[contender]
    environ = {**os.environ, "OMP_NUM_THREADS": str(n_threads)}
    command = [sys.executable, "-m", "streamkm", *map(str, words)]
    began = time.perf_counter()
    subprocess.run(
        [*command, "--processes", str(n_processes)],
        env=environ, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    return time.perf_counter() - began


def once(contender: str, source: Path, k: int, folder: Path) -> dict[str, float]:
    """Seconds of each kind of pass by a contender."""
    found, run = {}, folder
    for algorithm in ("minibatch", "lloyd"):
        run = folder / algorithm
        streamkm(
            contender, "fit", source, "--k", k, "--out", run, "--init", "random",
            "--algorithm", algorithm, "--epochs", PASSES, "--tol", 0, "--no-closing-pass",
            *(("--min-gain", 0) if algorithm == "minibatch" else ()),
        )  # fmt: skip
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        found[algorithm] = last["seconds"]["train"]
    labels = folder / "labels.npy"
    found["predict"] = streamkm(contender, "predict", run, source, "--labels", labels)
    found["evaluate"] = streamkm(contender, "evaluate", run, source)
    return found


def main() -> int:
    """Run the contenders in turn, print ratios and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--k", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        source = made(Path(temporary) / "x.zarr", args.rows, args.features)
        for k in args.k:
            samples: dict[str, dict[str, list[float]]] = {}
            for _ in range(args.rounds):
                for contender in CONTENDERS:
                    folder = Path(temporary) / "runs"
                    for kind, seconds in once(contender, source, k, folder).items():
                        samples.setdefault(kind, {}).setdefault(contender, []).append(seconds)
                    shutil.rmtree(folder)
            results[f"k={k}"] = samples
            for kind, by_contender in samples.items():
                middle = {contender: median(each) for contender, each in by_contender.items()}
                print(
                    f"k={k} {kind}: {middle['1 x 2'] / middle['2 x 1']:.2f} of the pace of one "
                    f"process of two threads, {middle['1 x 1'] / middle['2 x 1']:.2f} times that "
                    "of one of one thread",
                    flush=True,
                )
        args.out.write_text(
            json.dumps({**environment(), "passes": PASSES, "seconds": results}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
