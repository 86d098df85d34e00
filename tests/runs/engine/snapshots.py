"""Snapshots of every phase of a small run, and checkpoints of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from streamkm.clustering.scaling import RunningMoments, Scaling
from streamkm.clustering.seeding.kmeans_parallel import Candidates
from streamkm.clustering.state import initial_state
from streamkm.config import ExecutionConfig, FitConfig
from streamkm.runs.engine.checkpoint_schema import check_checkpoint
from streamkm.runs.engine.snapshot import Cursor, Snapshot
from streamkm.runs.fit import plan_fit
from streamkm.runs.planning.fit_plan import FitPlan
from streamkm.runs.storage.checkpoint import (
    load_checkpoint,
    save_checkpoint,
)
from streamkm.sources import open_source


def setup_of(init: str) -> FitPlan:
    """A fit of 50 rows of 3 features in float32, two seedings of 4 clusters."""
    source = open_source(np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32))
    config = FitConfig(k=4, init=init, n_init=2, epochs=9, scale="zscore")
    return plan_fit(source, config, ExecutionConfig(device="cpu"))


def snapshots() -> dict[str, Snapshot]:
    rng = np.random.default_rng(0)
    moments = RunningMoments.empty(3, torch.device("cpu"))
    moments.update_(torch.from_numpy(rng.normal(size=(50, 3))))
    scaling = Scaling.fit("zscore", "euclidean", moments)
    state = initial_state(torch.from_numpy(rng.normal(size=(4, 3)).astype(np.float32)), 0.25)
    state.counts_K += torch.arange(4) + 2**40
    rows = torch.from_numpy(rng.normal(size=(9, 3)).astype(np.float32))
    keys = rows[:, 0].abs().double()
    masses = torch.arange(18).view(2, 9)
    candidates = Candidates(rows, masses, masses[0] - 3, rows[:8], keys[:8])
    cost = torch.tensor(2.5, dtype=torch.float64)
    best = {"best_KD": rows[:4], "best_cost": cost}
    chosen = {"chosen_K": torch.tensor([3, 1, -1, -1]), "closest_S": rows[:, 0].abs()}
    between = best | {"centroids_KD": rows[:4]}
    passes = {"centroids_KD": rows[:4], "cost": cost}
    each, index = rows[:, 0].abs(), torch.zeros(9, dtype=torch.int64)
    number = torch.tensor(1)
    breathing = passes | {
        "sq_distances_S": each, "label_S": index, "size": number, "n_refused": number,
    }  # fmt: skip
    return {
        "scale": Snapshot(Cursor("scale", 0, 1), moments, 7),
        "sample": Snapshot(Cursor("seed", 0, 0), moments, 7, scaling),
        "rounds": Snapshot(Cursor("rounds", 2, 1), moments, 8, scaling, candidates),
        "first": Snapshot(Cursor("seed", 0, 2), moments, 8, scaling, candidates, chosen),
        "breathing": Snapshot(Cursor("seed", 2, 1), moments, 9, scaling, candidates, breathing),
        "between": Snapshot(Cursor("seed", 6), moments, 9, scaling, candidates, between),
        "seed": Snapshot(Cursor("seed", 7, 3), moments, 9, scaling, candidates, best | passes),
        "train": Snapshot(Cursor("train", 3, 1), moments, 31, scaling, state=state),
    }


PHASES = list(snapshots())


def restored(folder: Path) -> Snapshot:
    setup = setup_of("k-means||")
    newest = load_checkpoint(folder, partial(check_checkpoint, plan=setup))
    assert newest is not None
    return Snapshot.from_checkpoint(newest, setup.device, setup.config)


def save_snapshot(folder: Path, snapshot: Snapshot, step: int, **others: np.ndarray) -> None:
    manifest = {**snapshot.manifest(), "environment": {"device": "cpu"}}
    save_checkpoint(folder, step, snapshot.tensors() | others, manifest, keep=9)
