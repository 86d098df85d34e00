"""Forked children, as multiprocessing starts them by default on Linux before Python 3.14."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import zarr

#: A parent that has used every thread there is, and a child for each thing to do. A child that
#: hangs is ended by its alarm. More than 32,768 elements, so that torch shares its operations.
PROGRAM = """
import os, signal, sys
import numpy as np
import streamkm, torch
from streamkm import BisectingKMeans, KMeans, MiniBatchKMeans

source, run = sys.argv[1:]
torch.set_num_threads(3)
x = np.random.default_rng(0).normal(size=(9000, 32)).astype("f4")
given = x[:1100].copy()
lloyd = KMeans(8, random_state=0, max_iter=2).fit(x)
torch.ones(1 << 20).add_(1).sum()
assert torch.get_num_threads() == 3

def partial(rows):
    return MiniBatchKMeans(8, random_state=0).partial_fit(rows).partial_fit(rows)

doings = {
    "fit": lambda: KMeans(8, random_state=0, max_iter=2).fit(x).cluster_centers_,
    "scaled": lambda: MiniBatchKMeans(9, random_state=0, scale="zscore").fit(x).cluster_centers_,
    "cosine": lambda: MiniBatchKMeans(9, random_state=0, metric="cosine").fit(x).cluster_centers_,
    "many clusters": lambda: KMeans(1100, init=given, max_iter=1).fit(x).cluster_centers_,
    "weighted": lambda: KMeans(4, random_state=0).fit(x, sample_weight=x[:, 0] ** 2).labels_,
    "callable": lambda: KMeans(4, init=lambda x, k, random_state: x[:k]).fit(x).labels_,
    "on disk": lambda: KMeans(8, random_state=0, max_iter=2).fit(source).cluster_centers_,
    "predict": lambda: lloyd.predict(x),
    "transform": lambda: lloyd.transform(x),
    "score": lambda: np.float64(lloyd.score(x)),
    "partial_fit": lambda: partial(x).cluster_centers_,
    "kmeans_plusplus": lambda: streamkm.kmeans_plusplus(x, 20, random_state=0)[0],
    "bisecting": lambda: BisectingKMeans(4, random_state=0).fit(x).labels_,
    "load_run": lambda: streamkm.load_run(run).predict(source),
}
KMeans(1100, init=given, max_iter=1, random_state=0, run_dir=run).fit(x)
wanted = {name: do() for name, do in doings.items()}
wrong = []
for name, do in doings.items():
    child = os.fork()
    if child == 0:
        signal.alarm(40)
        status = 1
        try:
            status = 0 if np.array_equal(do(), wanted[name]) else 3
            status = status if torch.get_num_threads() == 3 else 4
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        wrong.append((name, status))
sys.exit(str(wrong) if wrong else 0)
"""


# Breaks (hangs) when a child waits for threads of OpenMP that only its parent has.
def test_a_forked_child_gets_the_parents_results(tmp_path):
    rows = np.random.default_rng(1).normal(size=(9000, 32)).astype("f4")
    source = str(tmp_path / "x.zarr")
    zarr.create_array(source, data=rows, chunks=(3000, 32))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, source, str(tmp_path / "run")],
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
