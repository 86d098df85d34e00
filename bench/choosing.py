"""What `sweep` says about K of sets whose K is known, and of noise, which has none.

    python -m bench.choosing [--draw N] [--embeddings FILE.npy] [--curves FILE] [--out FILE]

Each set is swept over the same K, 2 to 48, with three seeds. The curves can be kept in a file, so
that a change of the rule is judged in a second. Printed and written is what was said of each set,
and in what share of each kind it was right, said that it cannot tell, or was wrong. The bounds of
the rule were set on draw 0; other draws are other sets of the same kinds.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn import datasets

from bench.report import environment
from streamkm.clustering.choosing import recommended
from streamkm.config import ExecutionConfig, FitConfig
from streamkm.runs.reporting.signals import StopRequest
from streamkm.runs.sweeping.sweep import sweep
from streamkm.sources.memory import MemorySource

if TYPE_CHECKING:
    from collections.abc import Iterator

KS, SEEDS = range(2, 49), (0, 1, 2)
N_ROWS = 2000


@dataclass(frozen=True)
class Set:
    """Rows whose number of clusters is known; None for noise, and where nobody knows it."""

    kind: str
    name: str
    rows: np.ndarray
    k: int | None


def gaussians(k: int, n_features: int, apart: float, seed: int) -> np.ndarray:
    """`k` Gaussians of variance 1, the nearest centres at least `apart`."""
    rng = np.random.default_rng(seed)
    scale = apart
    while True:
        centres = rng.normal(scale=scale, size=(k, n_features))
        gaps = np.linalg.norm(centres[:, None] - centres, axis=2)
        np.fill_diagonal(gaps, np.inf)
        if gaps.min() >= apart:
            break
        scale *= 1.02
    labels = rng.integers(k, size=N_ROWS)
    return (centres[labels] + rng.normal(size=(N_ROWS, n_features))).astype(np.float32)


def all_sets(draw: int, embeddings: Path | None) -> Iterator[Set]:
    """The sets, about 60; `draw` is the number of their draw."""
    more = 1000 * draw
    ks = (3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40)
    for number, k in enumerate(ks):
        for n_features in (2, 8) if number % 2 else (4, 16):
            rows = gaussians(k, n_features, 8.0, more + 100 + k + n_features)
            yield Set("separated", f"separated {k} x {n_features}", rows, k)
        for n_features in (3, 10):
            rows = gaussians(k, n_features, 3.0 if k % 2 else 4.0, more + 200 + k + n_features)
            yield Set("overlapping", f"overlapping {k} x {n_features}", rows, k)
    for n_features in (1, 2, 3, 5, 8, 16, 32):
        rng = np.random.default_rng(more + n_features)
        rows = rng.random((N_ROWS, n_features), np.float32)
        yield Set("uniform", f"uniform x {n_features}", rows, None)
    for n_features in (2, 6, 20):
        rows = np.random.default_rng(more + 50 + n_features).normal(size=(N_ROWS, n_features))
        yield Set("one Gaussian", f"one Gaussian x {n_features}", rows.astype(np.float32), None)
    iris, wine, digits = datasets.load_iris(), datasets.load_wine(), datasets.load_digits()
    scaled = (wine.data - wine.data.mean(axis=0)) / wine.data.std(axis=0)
    yield Set("real", "iris", iris.data.astype(np.float32), 3)
    yield Set("real", "wine, z-scores", scaled.astype(np.float32), 3)
    yield Set("real", "digits", digits.data.astype(np.float32), 10)
    if embeddings is not None:
        rows = np.load(embeddings, mmap_mode="r")
        chosen = rows[:: max(len(rows) // 8000, 1)].astype(np.float32)
        yield Set("embeddings", f"embeddings {len(chosen)} x {chosen.shape[1]}", chosen, None)


def curves(each: Set) -> dict[str, Any]:
    """Figures and stability of a set, as sweep.json has them."""
    source = MemorySource(each.rows)
    found = sweep(
        source,
        FitConfig(k=2),
        [k for k in KS if k < len(each.rows) // 3],
        SEEDS,
        ExecutionConfig(device="cpu"),
        None,
        resume=False,
        stop_request=StopRequest(),
        quiet=True,
    )
    return {
        "kind": each.kind,
        "name": each.name,
        "k": each.k,
        "figures": found.figures,
        "stability": found.stability,
    }


def judged(said: int | None, k: int | None) -> str:
    """Whether what was said of a set of `k` clusters is right."""
    if said is None:
        return "right" if k is None else "cannot tell"
    if k is None:
        return "wrong"
    return "right" if said == k else "within one" if abs(said - k) <= 1 else "wrong"


def main() -> None:
    """Sweep the sets, or take their curves from a file, and print what is said."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", type=int, default=0)
    parser.add_argument("--embeddings", type=Path)
    parser.add_argument("--curves", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.curves is not None and arguments.curves.exists():
        known = json.loads(arguments.curves.read_text())
    else:
        known = [curves(each) for each in all_sets(arguments.draw, arguments.embeddings)]
        if arguments.curves is not None:
            arguments.curves.write_text(json.dumps(known))
    rows = []
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for each in known:
        found = recommended(each["figures"], each["stability"])
        is_known = each["kind"] != "embeddings"
        verdict = judged(found.k, each["k"]) if is_known else "nobody knows"
        counts[each["kind"]][verdict] += 1
        row = {name: each[name] for name in ("kind", "name", "k")}
        rows.append({**row, "said": found.k, "judged": verdict, "reasons": found.reasons})
        truth = "-" if each["k"] is None else each["k"]
        print(f"{each['name']:24} K {truth!s:>3}  said {found.k!s:>4}  {verdict}")
    for kind, found_of in counts.items():
        said = ", ".join(f"{n} {verdict}" for verdict, n in found_of.items())
        print(f"{kind}: of {sum(found_of.values())}, {said}")
    if arguments.out is not None:
        summary = {kind: dict(found_of) for kind, found_of in counts.items()}
        content = {**environment(), "draw": arguments.draw, "summary": summary, "sets": rows}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
