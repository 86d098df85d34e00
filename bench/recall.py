"""Compare an inverted file of faiss on centroids of streamkm with one that faiss trains itself.

Both hold the same rows in as many lists, and answer the same queries, rows that neither has seen.
Recall is the share of the true ten nearest rows that a search finds which looks into so many lists
(probes). Lists of unequal length make a search read more: how many rows it compares is told, too.

Run it by ``python -m bench.recall ROWS.npy OUT.json``.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np

from bench.grouping import streamkm as command
from bench.report import environment

#: Rows that are asked for, and found for each, and the lists that a search looks into.
N_QUERIES, N_NEAREST, PROBES = 1000, 10, (1, 2, 4, 8, 16, 32)


def trained(rows: np.ndarray, k: int, seed: int) -> Any:
    """An index that faiss has trained as it does by itself."""
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(rows.shape[1]), rows.shape[1], k)
    index.cp.seed = seed + 1
    index.train(rows)
    return index


def exported(rows: np.ndarray, k: int, seed: int) -> Any:
    """An index on centroids of `fit`, as `export` writes it."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "x.npy", rows)
        command(
            "fit", folder / "x.npy", "--k", k, "--seed", seed, "--no-closing-pass",
            "--out", folder / "run",
        )  # fmt: skip
        command("export", folder / "run", "--to", "faiss", "--out", folder / "x.index")
        return faiss.read_index(str(folder / "x.index"))


def recalls(index: Any, queries: np.ndarray, true: np.ndarray) -> dict[str, list[float]]:
    """Recall, and rows compared for a query, by `PROBES`."""
    # (The types that faiss carries do not know it.)
    variables: Any = faiss.cvar
    stats = variables.indexIVF_stats
    found: dict[str, list[float]] = {"recall": [], "rows compared": []}
    for index.nprobe in PROBES:
        stats.reset()
        _, numbers = index.search(queries, N_NEAREST)
        hits = [np.isin(a, b).sum() for a, b in zip(numbers, true, strict=True)]
        found["recall"].append(round(float(np.mean(hits)) / N_NEAREST, 4))
        found["rows compared"].append(round(stats.ndis / len(queries), 1))
    return found


def main() -> int:
    """Compare, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--k", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    all_rows = np.load(args.rows).astype(np.float32)
    np.random.default_rng(0).shuffle(all_rows)
    queries, rows = all_rows[:N_QUERIES], all_rows[N_QUERIES:].copy()
    exact = faiss.IndexFlatL2(rows.shape[1])
    exact.add(rows)
    true = exact.search(queries, N_NEAREST)[1]
    found = []
    for k in args.k:
        for seed in range(args.seeds):
            for make in (exported, trained):
                cpu, children = time.process_time(), _of_children()
                index = make(rows, k, seed)
                took = time.process_time() - cpu + _of_children() - children
                index.add(rows)
                one = {"k": k, "seed": seed, "index": make.__name__, "cpu_s": round(took, 2)}
                found.append(one | recalls(index, queries, true))
                print(found[-1], flush=True)
    if args.out:
        about = {**environment(), "faiss": faiss.__version__}
        what = {"rows": rows.shape, "nearest": N_NEAREST, "probes": PROBES, "found": found}
        args.out.write_text(json.dumps({**about, **what}, indent=1) + "\n")
    return 0


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    raise SystemExit(main())
