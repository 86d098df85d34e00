"""The adjusted Rand index of labels that come in parts."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from streamkm.clustering import agreement
from streamkm.clustering.agreement import RunningAgreement, adjusted_rand_index, agreement_of


# Breaks when rows of one clustering are compared with other rows of another, or dropped rows count.
def test_indices_are_scikit_learn_s(rng) -> None:
    labels = [rng.integers(6, size=1000) for _ in range(3)]
    labels[1] = np.where(rng.random(1000) < 0.8, labels[0], labels[1])
    for each in labels:
        each[::50] = -1
    found = RunningAgreement(6, 3)
    # The last one is behind the others by two batches.
    batches = [slice(start, start + 128) for start in range(0, 1000, 128)]
    for number in range(len(batches) + 2):
        for clustering, behind in ((0, 0), (1, 0), (2, 2)):
            if 0 <= number - behind < len(batches):
                rows = batches[number - behind]
                found.add_(clustering, rows.start, torch.from_numpy(labels[clustering][rows]))
    counted = labels[0] >= 0
    expected = [
        adjusted_rand_score(one[counted], other[counted]) for one, other in combinations(labels, 2)
    ]
    assert found.indices() == pytest.approx(expected, abs=1e-12)


# Breaks when rows without a label count, or clusters are taken for those of other numbers.
def test_labels_that_are_all_there(rng) -> None:
    one, other = rng.integers(9, size=500), rng.integers(9, size=500)
    other = np.where(rng.random(500) < 0.7, one, other)
    one[::50], other[::30] = -1, -1
    counted = (one >= 0) & (other >= 0)
    found = agreement_of(torch.from_numpy(one), torch.from_numpy(other), 9)
    assert found == pytest.approx(adjusted_rand_score(one[counted], other[counted]), abs=1e-12)


# Breaks when squares of more than three billion rows wrap.
def test_billions_of_rows() -> None:
    n = 3_100_000_000
    counts = [[n, 500_000], [700_000, 40_000_000]]
    small = [[each // 100_000 for each in row] for row in counts]
    expected = adjusted_rand_index(torch.tensor(small))
    assert adjusted_rand_index(torch.tensor(counts)) == pytest.approx(expected, abs=1e-6)


# Breaks when numbers of clusters matter, or one cluster for all rows divides by 0.
def test_the_same_clusters_agree() -> None:
    assert adjusted_rand_index(torch.tensor([[0, 5], [3, 0]])) == 1.0
    assert adjusted_rand_index(torch.tensor([[8]])) == 1.0
    assert adjusted_rand_index(torch.tensor([[2, 2], [2, 2]])) == pytest.approx(
        adjusted_rand_score([0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 1, 1])
    )


# Breaks when squares of the number of rows wrap round.
def test_more_rows_than_squares_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = torch.tensor([[70, 3], [5, 40]])
    expected = adjusted_rand_index(counts)
    monkeypatch.setattr(agreement, "EXACT_ROWS", 10)
    assert adjusted_rand_index(counts) == pytest.approx(expected, rel=1e-12)
    assert adjusted_rand_index(counts * 10**8) == pytest.approx(expected, rel=0.1)
