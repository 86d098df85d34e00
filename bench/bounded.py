"""Measure what bounds on the sizes of clusters cost in inertia, and whether they hold.

Each pair of bounds is fitted beside the same fit without, on the shared embeddings. Sizes are those
of the labels that `streamkm predict` writes; the cost is the inertia of these labels above that of
the fit without bounds.

Run it by ``python -m bench.bounded EMBEDDINGS.npy OUT.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench.report import environment
from streamkm.cli import main

K, SEED = 200, 0
BOUNDS = (
    (),
    ("--max-size", "1.2x"),
    ("--max-size", "1.1x"),
    ("--max-size", "1x"),
    ("--min-size", "0.5x"),
    ("--max-size", "1.2x", "--min-size", "0.8x"),
)


def measured(x: Path, bounds: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Sizes and inertia of the labels of one fit, and the processor's time of the fit."""
    run, labels = folder / "run", folder / "labels.npy"
    begin = time.process_time()
    words = ["fit", x, "--k", K, "--seed", SEED, "--out", run, *bounds]
    if main([str(word) for word in words]):
        sys.exit("a fit has failed")
    taken = time.process_time() - begin
    if main(["predict", str(run), str(x), "--labels", str(labels)]):
        sys.exit("predict has failed")
    found, rows = np.load(labels), np.load(x).astype(np.float64)
    centroids_KD = np.load(run / "centroids.npy").astype(np.float64)
    sizes = np.bincount(found, minlength=K)
    return {
        "bounds": " ".join(bounds),
        "least": int(sizes.min()),
        "most": int(sizes.max()),
        "variation": round(float(sizes.std() / sizes.mean()), 4),
        "inertia": float(np.square(rows - centroids_KD[found]).sum()),
        "processor seconds": round(taken, 2),
    }


def compare(x: Path) -> list[dict[str, Any]]:
    """All bounds, each with its cost in per cent."""
    found = []
    for bounds in BOUNDS:
        with TemporaryDirectory() as folder:
            found.append(measured(x, bounds, Path(folder)))
        free = found[0]["inertia"]
        found[-1]["cost in per cent"] = round(100 * (found[-1]["inertia"] / free - 1), 3)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("x", type=Path, help="the shared embeddings")
    parser.add_argument("out", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    result = {**environment(), "k": K, "fits": compare(arguments.x)}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
