"""k-means||: which rows become candidates, and how much each of them counts."""

from __future__ import annotations

import numpy as np
import torch

from streamkm.clustering.seeding.kmeans_parallel import Candidates, first_candidate
from streamkm.clustering.seeding.plan import CANDIDATES_PER_CLUSTER, N_ROUNDS
from streamkm.clustering.seeding.sample import Sample
from streamkm.kernels.reference import ReferenceKernel
from tests.clustering.streams import CPU, batch_of, cut


def one_pass(candidates: Candidates, batches, epoch: int, seed: int = 0) -> None:
    kernel = ReferenceKernel(64, len(candidates.rows_CD), candidates.rows_CD.dtype, CPU)
    for index, batch in enumerate(batches):
        candidates.update_(batch, kernel, seed, epoch=epoch, index=index)


def found(rows: np.ndarray, k: int, seed: int = 0) -> Candidates:
    candidates = first_candidate(Sample(torch.as_tensor(rows)), k, seed)
    for epoch in range(N_ROUNDS):
        one_pass(candidates, cut(rows, 50), epoch, seed)
        candidates.finish_round_()
    one_pass(candidates, cut(rows, 50), N_ROUNDS, seed)
    return candidates


def masses(candidates: Candidates) -> list[float]:
    weights_S = candidates.as_sample().weights_S
    assert weights_S is not None
    return list(weights_S.tolist())


# Breaks when a round draws fewer or more, a row twice, or counts leave rows out.
def test_candidates_are_distinct_rows_with_all_rows_counted(rng) -> None:
    rows = rng.normal(size=(400, 3))
    candidates = found(rows, 4)
    assert len(candidates.rows_CD) == 1 + N_ROUNDS * CANDIDATES_PER_CLUSTER * 4
    same = (candidates.rows_CD[:, None] == torch.as_tensor(rows)).all(dim=2)
    assert same.any(dim=1).all()
    assert len(candidates.rows_CD.unique(dim=0)) == len(candidates.rows_CD)
    labels = torch.cdist(torch.as_tensor(rows), candidates.rows_CD).argmin(dim=1)
    expected = torch.bincount(labels, minlength=len(candidates.rows_CD)).double()
    assert masses(candidates) == expected.tolist()


# Breaks when keys are not by the squared distance, or batches before have an advantage.
def test_drawn_in_proportion_to_the_squared_distance() -> None:
    n_draws, counts = 2000, np.zeros(6)
    for seed in range(n_draws):
        candidates = first_candidate(Sample(torch.zeros(1, 1, dtype=torch.float64)), 1, seed)
        one_pass(candidates, [batch_of([[1.0], [2.0]]), batch_of([[3.0], [0.0]])], 0, seed)
        counts[int(candidates.drawn_RD[0, 0])] += 1  # The least key: what is drawn first.
    expected = n_draws * np.array([0, 1, 4, 9, 0, 0]) / 14
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected)).all()


# Breaks when rows of no use take places: on a candidate, not finite, or without a direction.
def test_rows_of_no_use_are_not_drawn_nor_counted() -> None:
    candidates = first_candidate(Sample(torch.ones(1, 2, dtype=torch.float64)), 3, 0)
    one_pass(candidates, [batch_of([[1.0, 1.0], [np.nan, 1.0]])], 0)
    candidates.finish_round_()
    assert candidates.rows_CD.tolist() == [[1.0, 1.0]]
    one_pass(candidates, [batch_of([[0.0, 0.0], [1.0, 0.0]], unit=True)], 1)
    candidates.finish_round_()
    assert candidates.rows_CD.tolist() == [[1.0, 1.0], [1.0, 0.0]]
    one_pass(candidates, [batch_of([[1.0, 0.1], [0.0, 0.0], [np.inf, 0.0]], unit=True)], N_ROUNDS)
    assert masses(candidates) == [0.0, 1.0]


def test_the_seed_decides(rng) -> None:
    rows = rng.normal(size=(200, 2))
    one, same, other = (found(rows, 3, seed).rows_CD for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
