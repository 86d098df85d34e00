"""Compare `streamkm partition` with copying the file that it groups.

The file is made once, and its labels are at random, so that neighbouring rows go to places far
apart. Both take turns, and both end with their output on the disk (fsync). The figure is the
partition's share of the copy's speed: of the file's bytes by the seconds of each.

Run it by ``python -m bench.grouping OUT.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench.report import environment

#: Rows that are drawn and written at a time.
AT_ONCE = 1 << 16
N_FEATURES, K = 128, 1000


def write_rows(folder: Path, n_bytes: int) -> None:
    """Write rows, labels at random, and a run of K clusters of a few of them."""
    rng = np.random.default_rng(0)
    n_rows = n_bytes // (4 * N_FEATURES)
    rows = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (n_rows, N_FEATURES))
    some = rng.standard_normal((AT_ONCE, N_FEATURES), dtype=np.float32)
    for start in range(0, n_rows, AT_ONCE):
        rows[start : start + AT_ONCE] = some[: n_rows - start]
    rows.flush()
    np.save(folder / "few.npy", some[: 4 * K])
    np.save(folder / "labels.npy", rng.integers(K, size=n_rows, dtype=np.int32))
    streamkm("fit", folder / "few.npy", "--k", K, "--init", "random", "--out", folder / "run")


def streamkm(*words: object) -> None:
    """Run the command, which must succeed."""
    command = [sys.executable, "-m", "streamkm", *map(str, words)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def copy(folder: Path) -> None:
    """Copy the file, to the disk."""
    target = folder / "copy.npy"
    shutil.copyfile(folder / "x.npy", target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())


def partition(folder: Path) -> None:
    """Group its rows."""
    streamkm(
        "partition", folder / "run", folder / "x.npy", "--labels", folder / "labels.npy",
        "--rows", "npy", "--max-host-memory", "512MiB", "--out", folder / "parts",
    )  # fmt: skip


def main() -> int:
    """Compare, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are written for a while")
    args = parser.parse_args()
    n_bytes = int(args.gigabytes * 1e9)
    times: dict[str, list[float]] = {"copy": [], "partition": []}
    with TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_rows(folder, n_bytes)
        for _ in range(args.turns):
            for contender in (copy, partition):
                began = time.perf_counter()
                contender(folder)
                times[contender.__name__].append(time.perf_counter() - began)
            shutil.rmtree(folder / "parts")
    speeds = {name: round(n_bytes / median(each) / 1e9, 3) for name, each in times.items()}
    found: dict[str, Any] = {
        "bytes": n_bytes, "k": K, "seconds": times, "gigabytes per second": speeds,
        "share of the copy's speed": round(speeds["partition"] / speeds["copy"], 2),
    }  # fmt: skip
    print({key: value for key, value in found.items() if key != "seconds"}, flush=True)
    if args.out:
        args.out.write_text(json.dumps({**environment(), **found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
