"""Exchanges of clusters: what they cost by brute force, and which of them are made."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamkm.clustering.reservoir import step_generator
from streamkm.clustering.seeding.exchange import (
    Part,
    choose_exchanges,
    choose_handovers,
    cost_of_joining,
    draw_of_each,
)
from tests.clustering.streams import CPU


def cost(rows: torch.Tensor, weights: torch.Tensor, *, spherical: bool) -> float:
    centre = (weights[:, None] * rows).sum(dim=0) / weights.sum()
    if spherical:
        centre = torch.nn.functional.normalize(centre, dim=0)
    return float((weights * (rows - centre).square().sum(dim=1)).sum())


# Breaks when masses or sums of the halves are mixed up, or the centre of both is not a mean. Far
# from zero, a difference of squared sums would lose most digits.
@pytest.mark.parametrize("spherical", [False, True])
def test_the_cost_of_joining_is_that_of_all_rows(rng, spherical) -> None:
    rows = torch.as_tensor(rng.normal(size=(40, 3)) + (1 if spherical else 1e5))
    if spherical:
        rows = torch.nn.functional.normalize(rows)
    weights = torch.as_tensor(rng.uniform(0.5, 3, size=40))
    parts = [(rows[:9], weights[:9]), (rows[9:], weights[9:])]
    expected = cost(rows, weights, spherical=spherical)
    expected -= sum(cost(*part, spherical=spherical) for part in parts)
    halves = [Part((w[:, None] * x).sum(dim=0)[None], w.sum()[None]) for x, w in parts]
    found = cost_of_joining(*halves, spherical=spherical)
    assert float(found) == pytest.approx(expected, rel=1e-6)


# Breaks when masses are multiplied, which overflows.
def test_the_cost_of_joining_huge_masses() -> None:
    one, other = (
        Part(
            torch.tensor([[sum_]], dtype=torch.float64), torch.tensor([1e200], dtype=torch.float64)
        )
        for sum_ in (3e200, 0.0)
    )
    assert float(cost_of_joining(one, other, spherical=False)) == pytest.approx(4.5e200)


# Breaks when an empty half is 0 / 0.
@pytest.mark.parametrize("spherical", [False, True])
def test_nothing_is_lost_with_an_empty_half(spherical) -> None:
    full, empty = (
        Part(torch.ones(1, 2).double(), torch.ones(1)),
        Part(torch.zeros(1, 2), torch.zeros(1)),
    )
    assert float(cost_of_joining(full, empty, spherical=spherical)) == 0


# Breaks when rows of another cluster are drawn, or not by their weights.
def test_a_row_of_each_cluster_is_drawn_by_weight() -> None:
    labels = torch.tensor([0, 2, 0, 2, 3, 0])
    weights = torch.tensor([1.0, 0.0, 3.0, 5.0, 0.0, 0.0])
    firsts = 0
    for seed in range(2000):
        drawn = draw_of_each(labels, weights, 4, step_generator(CPU, seed)).tolist()
        assert drawn[0] in (0, 2)
        assert drawn[1:] == [0, 3, 0]  # No rows; the only one that weighs; none that weighs.
        firsts += drawn[0] == 0
    assert abs(firsts - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75)


# By hand: 0 gains most and takes the place of 3, whose heir 2 then takes no part; 1 gains more than
# 4 loses; 5 gains less than what is left.
def test_the_exchanges_that_pay_are_made() -> None:
    gains = [9.0, 5.0, 7.0, 0.0, 1.0, 2.0, 0.5]
    losses = [8.0, 8.0, 8.0, 0.1, 3.0, 8.0, 6.0]
    heirs = [1, 0, 3, 2, 6, 4, 5]
    assert choose_exchanges(gains, losses, heirs) == [(0, 3), (1, 4)]


def test_no_exchange_where_none_pays() -> None:
    assert choose_exchanges([1.0, 2.0, 0.0], [2.0, 3.0, 2.0], [1, 2, 0]) == []
    assert choose_exchanges([5.0, 0.0], [5.0, 1.0], [1, 0]) == []  # The heir would be halved.


class Read(list[int]):
    """Heirs that count how often one is looked up."""

    n_read = 0

    def __getitem__(self, index):
        self.n_read += 1
        return super().__getitem__(index)


# Breaks when the steps grow with the square of the clusters: 20,000 took 19 s.
def test_many_exchanges_take_few_steps() -> None:
    k = 60_000
    heirs = Read(cluster ^ 1 for cluster in range(k))
    pairs = choose_exchanges([2.0] * (k // 2) + [0.0] * (k // 2), [3.0, 1.0] * (k // 2), heirs)
    assert heirs.n_read < 3 * k
    assert len(pairs) == k // 6  # 0 for 3, 1 for 5; 6 for 9, 7 for 11; and so on.


# By hand: a half of 3 gains most; 0 has no part then, as the heir of 3. Of the halves of 1 the
# second gains more. 4 is taken, 2 would join one that is, and 5 has no other cluster.
def test_the_handovers_that_pay_are_made() -> None:
    nets = [[4.0, 1.0, 3.0, 5.0, 9.0, 2.0, 0.0], [0.0, 2.0, 0.0, 0.0, 0.0, 0.0, -1.0]]
    heirs = [[1, 6, 4, 0, 3, 5, 0], [1, 2, 0, 0, 0, 0, 0]]
    assert choose_handovers(nets, heirs, {4}) == [[3], [1]]
    assert choose_handovers(nets, heirs, {4, 0, 2}) == [[1], []]
