"""Compare sparse rows of an ``.h5ad`` file with the same rows dense: reading alone, and a fit.

20,000 rows of 2,000 float32, 5 % of them not 0, lie in two files as anndata writes them: CSR, and
in one dense piece. Both are in the page cache. The two take turns, and their order changes from
round to round; a sample is the time of one epoch without a closing pass. The fits have a budget of
512 MiB.

Run it by ``python -m bench.sparse OUT.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import h5py
import numpy as np
import scipy.sparse

from bench.measure import take_turns
from bench.report import environment
from streamkm import MiniBatchKMeans
from streamkm.sources import RowRange, open_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.sources import SourceOptions

N_ROWS, N_FEATURES, FILLED = 20_000, 2_000, 0.05
N_ROUNDS = 9
K = 16
BUDGET = "512MiB"


def make_files(folder: Path) -> dict[str, Path]:
    """The two files, by how their rows are stored."""
    rng = np.random.default_rng(0)
    matrix = scipy.sparse.random_array(
        (N_ROWS, N_FEATURES), density=FILLED, format="csr", dtype=np.float32, rng=rng
    )
    paths = {"csr": folder / "csr.h5ad", "dense": folder / "dense.h5ad"}
    with h5py.File(paths["csr"], "w") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "shape": matrix.shape})
        for member in ("data", "indices", "indptr"):
            group[member] = getattr(matrix, member)
    with h5py.File(paths["dense"], "w") as file:
        x = file.create_dataset("X", matrix.shape, matrix.dtype)
        for start in range(0, N_ROWS, 1000):
            x[start : start + 1000] = matrix[start : start + 1000].toarray()
    return paths


def read_all(path: Path, **options: Unpack[SourceOptions]) -> None:
    """Read every block into one buffer."""
    source = open_source(path, **options)
    spec = source.spec
    buffer = np.empty((spec.block_rows, spec.n_features), spec.storage)
    for rows in RowRange(0, spec.n_rows).split(spec.block_rows):
        source.read(rows, buffer[: len(rows)])
    source.close()


def fit(path: Path) -> None:
    """One epoch, with seeding."""
    MiniBatchKMeans(
        K, init="random", compute_labels=False, random_state=0, max_host_memory=BUDGET
    ).fit(path)


def grown_mib(path: Path) -> int:
    """MiB that the largest memory of this process grows by in a fit, after a first small one."""
    MiniBatchKMeans(2).fit(np.eye(9, dtype=np.float32))
    before = _largest_mib()
    fit(path)
    return _largest_mib() - before


def _largest_mib() -> int:
    # Not of getrusage: there a process begins with the largest of the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def main() -> int:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    works: dict[str, Callable[[Path], None]] = {"read": read_all, "fit": fit}
    samples: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = make_files(Path(folder))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            grown = pool.submit(grown_mib, paths["csr"]).result()
        for name, work in works.items():
            actions = {kind: partial(work, path) for kind, path in paths.items()}
            samples[name] = take_turns(actions, N_ROUNDS)
    medians = {
        name: {kind: N_ROWS / statistics.median(seconds) for kind, seconds in by_kind.items()}
        for name, by_kind in samples.items()
    }
    result = {
        **environment(),
        "rows_per_s": medians,
        "csr_of_dense": {name: rates["csr"] / rates["dense"] for name, rates in medians.items()},
        "csr_fit_grown_mib": grown,
        "seconds": samples,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
