"""Batches by hand, for tests that go through several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from streamkm.clustering.batch import Batch
from streamkm.clustering.lloyd import Lloyd
from streamkm.clustering.minibatch import MiniBatch
from streamkm.clustering.state import RUNNING, KMeansState, initial_state
from streamkm.kernels.reference import ReferenceKernel

if TYPE_CHECKING:
    import numpy as np

    from streamkm.clustering.algorithm import Algorithm

CPU = torch.device("cpu")


def state_from(
    centroids: np.ndarray | list[list[float]], tolerance: float = 0.0, dtype=torch.float64
) -> KMeansState:
    """Before the first row, with a copy of `centroids`."""
    return initial_state(torch.as_tensor(centroids).to(dtype, copy=True), tolerance)


def batch_of(
    rows: torch.Tensor | np.ndarray | list[list[float]], dtype=torch.float64, *, unit=False
) -> Batch:
    """A batch of `rows`; those that are not finite are dropped."""
    x_BD = torch.as_tensor(rows).to(dtype, copy=True)
    dropped_B = ~x_BD.isfinite().all(dim=1)
    x_BD[dropped_B] = 0
    norms_B = x_BD.square().sum(dim=1)
    return Batch(x_BD, norms_B, dropped_B if dropped_B.any() else None, unit)


def minibatch(k: int, n_rows: int, dtype=torch.float64, **options) -> MiniBatch:
    return MiniBatch(
        ReferenceKernel(n_rows, k, dtype, CPU), n_rows, options.pop("seed", 0), **options
    )


def lloyd(k: int, n_rows: int, dtype=torch.float64, **options) -> Lloyd:
    return Lloyd(ReferenceKernel(n_rows, k, dtype, CPU), options.pop("seed", 0), **options)


def run_epoch(algorithm: Algorithm, state: KMeansState, batches: list[Batch], epoch: int) -> None:
    algorithm.begin_epoch_(state)
    for index, batch in enumerate(batches):
        algorithm.update_(state, batch, epoch=epoch, index=index)
    algorithm.finish_epoch_(state)


def run_lloyd(
    state: KMeansState, batches: list[Batch], passes: int = 300, **options
) -> list[float]:
    """Passes until the state stops; returns the inertia before each."""
    n_rows = max(len(batch.x_BD) for batch in batches)
    algorithm = lloyd(state.k, n_rows, state.centroids_KD.dtype, **options)
    inertias = []
    for epoch in range(passes):
        run_epoch(algorithm, state, batches, epoch)
        inertias.append(float(state.inertia))
        if int(state.stop) != RUNNING:
            break
    return inertias


def cut(rows: np.ndarray, size: int, dtype=torch.float64, *, unit=False) -> list[Batch]:
    """`rows` in file order, `size` to a batch."""
    return [batch_of(rows[i : i + size], dtype, unit=unit) for i in range(0, len(rows), size)]


def inertia_of(rows: np.ndarray, state: KMeansState) -> float:
    x_ND = torch.as_tensor(rows).double()
    return float(torch.cdist(x_ND, state.centroids_KD.double()).min(dim=1).values.square().sum())


def bits(state: KMeansState) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in state.tensors().items()}
