"""Compare two versions of streamkm bit by bit: 40 configurations, and unfinished runs.

Each version is installed into a folder of its own, as a user installs it. It carries out every
case of `CASES` on the same files: a fit, then labels and distances of every row. The bytes of
``centroids.npy`` and of both outputs are compared. Then the second version resumes runs that the
first left after 1, 4 and 9 checkpoints, and must end with the first one's bits.

Run it by ``scripts/equal BEFORE [AFTER]``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

N_ROWS, N_FEATURES = 12_000, 24
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Case:
    """One configuration: a source, by its name in the folder of data, and options of ``fit``."""

    name: str
    source: str = "f32.npy"
    options: str = ""
    source_options: str = ""
    predict_options: str = ""

    @property
    def fit_arguments(self) -> list[str]:
        options = self.options.split()
        k = [] if "--k" in options else ["--k", "12"]
        return [self.source, *k, *self.source_options.split(), *options]

    @property
    def predict_arguments(self) -> list[str]:
        return [self.source, *self.source_options.split(), *self.predict_options.split()]


CASES = (
    Case("default"),
    Case("many-clusters", options="--k 300"),
    Case("one-cluster", options="--k 1"),
    Case("three-epochs", options="--epochs 3 --batch-rows 500"),
    Case("no-closing-pass", options="--no-closing-pass --epochs 2"),
    Case("minibatch-tol", options="--tol 0.01 --epochs 4 --batch-rows 256"),
    Case("no-improvement", options="--max-no-improvement 3 --epochs 6 --batch-rows 256"),
    Case("lloyd", options="--algorithm lloyd --epochs 9"),
    Case("lloyd-to-the-end", options="--algorithm lloyd --tol 0"),
    Case("lloyd-empty", options="--algorithm lloyd --k 64 --init far.npy --epochs 3"),
    Case("lloyd-no-closing", options="--algorithm lloyd --epochs 2 --no-closing-pass"),
    Case("init-random", options="--init random"),
    Case("init-plusplus", options="--init k-means++ --k 40"),
    Case("init-parallel", options="--init k-means|| --k 20"),
    Case("init-file", options="--init first.npy"),
    Case("best-of-three", options="--n-init 3"),
    Case("best-of-random", options="--init random --n-init 2 --seed 5"),
    Case("zscore", options="--scale zscore"),
    Case("minmax", options="--scale minmax --algorithm lloyd --epochs 4"),
    Case("l2", options="--scale l2 --epochs 2"),
    Case("cosine", options="--metric cosine"),
    Case("cosine-lloyd", options="--metric cosine --algorithm lloyd --epochs 5"),
    Case("cosine-zeros", "zeros.npy", "--metric cosine --k 9"),
    Case("weights", options="--weights w.npy"),
    Case("weights-lloyd", options="--weights w.npy --algorithm lloyd --scale zscore --epochs 4"),
    Case("weights-cosine", options="--weights w.npy --metric cosine --init k-means++"),
    Case("nan-drop", "nan.npy", "--nan drop --epochs 2"),
    Case("nan-drop-zscore-weights", "nan.npy", "--nan drop --scale zscore --weights w.npy"),
    Case("fast", options="--precision fast --k 50"),
    Case("reference", options="--kernel reference --k 30"),
    Case("reference-lloyd-f64", "f64.npy", "--kernel reference --algorithm lloyd --epochs 3"),
    Case("float16", "f16.npy", "--epochs 2"),
    Case("uint8-zscore", "u8.zarr", "--scale zscore --k 20"),
    Case("int16-lloyd", "i16.npy", "--algorithm lloyd --epochs 3"),
    Case("float64-weights", "f64.npy", "--weights w.npy --epochs 2"),
    Case("bfloat16", "bf16.raw", "", "--dtype bfloat16 --features 24"),
    Case("sharded-zarr", "sharded.zarr", "--k 33"),
    Case("cube", "cube.zarr", "--scale minmax --epochs 2"),
    Case("shards", "shards", "--k 17 --epochs 2"),
    Case("few-features", "pixels.npy", "--k 16 --epochs 2 --batch-rows 3000"),
)

#: Cases whose runs the first version leaves after 1, 4 and 9 checkpoints, and the second resumes.
RESUMED = (
    "three-epochs", "lloyd", "init-parallel", "best-of-three", "zscore", "weights-lloyd",
    "many-clusters",
)  # fmt: skip


def make_data(folder: Path) -> None:
    """Write every source of `CASES`."""
    import zarr

    rng = np.random.default_rng(20)
    centres_KD = rng.normal(size=(15, N_FEATURES)) * 3
    labels_N = np.sort(rng.integers(15, size=N_ROWS))
    x = (centres_KD[labels_N] + rng.normal(size=(N_ROWS, N_FEATURES))).astype(np.float32)
    np.save(folder / "f32.npy", x)
    np.save(folder / "f64.npy", x.astype(np.float64) + 1000)
    np.save(folder / "f16.npy", x.astype(np.float16))
    np.save(folder / "i16.npy", np.round(x * 100).astype(np.int16))
    np.save(folder / "first.npy", x[:: N_ROWS // 12][:12])
    np.save(folder / "far.npy", np.concatenate((x[:40], x[:24] + 1e4)))
    np.save(folder / "pixels.npy", x[:, :3].copy())
    zeros, nan = x.copy(), x.copy()
    zeros[::97] = 0
    nan[5::301, 3], nan[9::607, 0] = np.nan, np.inf
    np.save(folder / "zeros.npy", zeros)
    np.save(folder / "nan.npy", nan)
    weights_N = rng.exponential(size=N_ROWS)
    weights_N[::50] = 0
    np.save(folder / "w.npy", weights_N)
    (x.view(np.uint32) >> 16).astype(np.uint16).tofile(folder / "bf16.raw")
    u8 = np.clip(x * 8 + 128, 0, 255).astype(np.uint8)
    zarr.create_array(folder / "u8.zarr", data=u8, chunks=(1000, N_FEATURES))
    zarr.create_array(
        folder / "sharded.zarr", data=x, chunks=(250, N_FEATURES), shards=(2000, N_FEATURES)
    )
    cube = x.reshape(100, 120, N_FEATURES)
    zarr.create_array(folder / "cube.zarr", data=cube, chunks=(10, 120, N_FEATURES))
    (folder / "shards").mkdir()
    for number, part in enumerate(np.array_split(x, 5)):
        np.save(folder / "shards" / f"part-{number}.npy", part)


# ---- in the process of one version -------------------------------------------


def carry_out(runs: Path) -> None:
    """Every case, by the streamkm on the path, with the folder of data as the working directory."""
    main = _main()
    for case in CASES:
        run = str(runs / case.name)
        _must(main(["fit", *case.fit_arguments, "--out", run]), case, 0)
        _predict(main, case, runs)


def stop_early(runs: Path) -> None:
    """Leave runs of `RESUMED` that are stopped after 1, 4 and 9 checkpoints."""
    main = _main()
    for case in CASES:
        for n_checkpoints in (1, 4, 9) if case.name in RESUMED else ():
            run = runs / f"{case.name}-{n_checkpoints}"
            watcher = threading.Thread(target=_stop_after, args=(run, n_checkpoints))
            watcher.start()
            status = main(
                ["fit", *case.fit_arguments, "--out", str(run), "--checkpoint-every", "1"]
            )
            watcher.join()
            if status == 0:  # It ended before the signal.
                shutil.rmtree(run)
            else:
                _must(status, case, 75)


def take_up(runs: Path) -> None:
    """Resume the runs that `stop_early` left."""
    main = _main()
    for case in CASES:
        for run in sorted(runs.glob(f"{case.name}-[0-9]")):
            arguments = ["fit", *case.fit_arguments, "--out", str(run), "--resume"]
            _must(main(arguments), case, 0)


def _main() -> Callable[[list[str]], int]:
    logging.disable(logging.INFO)
    from streamkm.cli import main

    return main


def _predict(main: Callable[[list[str]], int], case: Case, runs: Path) -> None:
    outputs = [
        "--labels", str(runs / f"{case.name}-labels.npy"),
        "--distances", str(runs / f"{case.name}-distances.npy"),
    ]  # fmt: skip
    arguments = ["predict", str(runs / case.name), *case.predict_arguments, *outputs]
    _must(main(arguments), case, 0)


def _stop_after(run: Path, n_checkpoints: int) -> None:
    """Send SIGTERM to this process once it has saved `n_checkpoints` checkpoints."""
    seen: set[str] = set()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (run / "model.safetensors").exists():
        if (run / "checkpoints").is_dir():
            seen.update(path.name for path in (run / "checkpoints").glob("step-*"))
        if len(seen) >= n_checkpoints:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        time.sleep(0.0005)


def _must(status: int, case: Case, expected: int) -> None:
    if status != expected:
        raise SystemExit(f"{case.name}: status {status}, not {expected}")


# ---- in the process that compares ----------------------------------------------


def install(revision: str | None, target: Path) -> None:
    """Install streamkm at `revision` (None: as it lies here) in `target`, compiling its kernel."""
    tree = ROOT
    if revision is not None:
        tree = target.parent / f"{target.name}-tree"
        command = ["git", "-C", str(ROOT), "archive", "--prefix", f"{tree.name}/", revision]
        archive = subprocess.run(command, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(tree.parent)], input=archive, check=True)
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(tree)], check=True)


def work(what: str, version: Path, data: Path, runs: Path) -> None:
    """Run a function of this module, `what`, with the streamkm in `version`."""
    runs.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(version), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--work", what, str(runs)]
    log = runs.parent / f"{version.name}-{what}.log"
    with log.open("w") as stderr:
        done = subprocess.run(command, cwd=data, env=environment, stderr=stderr, check=False)
    if done.returncode:
        raise SystemExit(f"{version.name}: {what} failed\n{log.read_text()[-4000:]}")


def digests(runs: Path) -> dict[str, str]:
    """sha256 of every result under `runs`, by its path in it."""
    paths = sorted([*runs.glob("*.npy"), *runs.glob("*/centroids.npy")])
    return {
        str(path.relative_to(runs)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    }


def compare(before: str, after: str | None, folder: Path) -> int:
    """Print which files differ; return how many do."""
    data = folder / "data"
    data.mkdir()
    make_data(data)
    versions = {"before": before, "after": after}
    for name, revision in versions.items():
        install(revision, folder / name)
        work("carry_out", folder / name, data, folder / f"{name}-runs")
    found = {name: digests(folder / f"{name}-runs") for name in versions}
    names = sorted(found["before"].keys() | found["after"].keys())
    differing = [name for name in names if found["before"].get(name) != found["after"].get(name)]
    work("stop_early", folder / "before", data, folder / "stopped")
    work("take_up", folder / "after", data, folder / "stopped")
    resumed = digests(folder / "stopped")
    for name, digest in resumed.items():
        if found["before"][f"{name.rsplit('-', 1)[0]}/centroids.npy"] != digest:
            differing.append(f"resumed {name}")
    report = {
        "cases": len(CASES),
        "files": len(names),
        "resumed": len(resumed),
        "differing": differing,
    }
    print(json.dumps(report, indent=1))
    return len(differing)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/equal", description=__doc__)
    parser.add_argument("before", nargs="?", help="a commit")
    parser.add_argument("after", nargs="?", help="another (default: the files as they lie here)")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        what, runs = arguments.work
        {"carry_out": carry_out, "stop_early": stop_early, "take_up": take_up}[what](Path(runs))
        return 0
    if arguments.before is None:
        parser.error("name a commit to compare with")
    with tempfile.TemporaryDirectory() as folder:
        return 1 if compare(arguments.before, arguments.after, Path(folder)) else 0


if __name__ == "__main__":
    sys.exit(main())
