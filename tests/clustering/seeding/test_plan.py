"""The cost of seeding stays within its budget, for arrays of every shape."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkm.clustering.seeding.plan import (
    EPOCH_SHARE,
    FIRST_PASSES,
    FREE_PRODUCTS,
    MIN_SAMPLE_ROWS,
    SAMPLE_ROWS_PER_CLUSTER,
    SCORE_PRODUCTS,
    TREE_CLUSTERS,
    TREE_PRODUCTS,
    greedy_trials,
    plan_seeding,
)

shapes = st.tuples(st.integers(1, 10**10), st.integers(1, 10**5), st.integers(1, 10**6))
inits = st.sampled_from(["auto", "random", "k-means++", "k-means||"])


# Breaks when a fit of many epochs gets the seeds of one, or spends more than 10 on them.
def test_a_tree_for_many_epochs_may_take_longer() -> None:
    trees = [plan_seeding(48_000, 384, 1000, "auto", 1, epochs).tree for epochs in (1, 10, 300)]
    assert None not in trees
    one, ten, many = (tree for tree in trees if tree is not None)
    assert one.exchanges < ten.exchanges
    assert ten == many
    assert ten.epochs <= 10 * EPOCH_SHARE


# Breaks when a sample has fewer rows than clusters, or more than there are.
@given(shapes, inits, st.integers(1, 20))
def test_there_are_enough_rows(shape, init, n_init) -> None:
    n_rows, n_features, k = shape
    k = min(k, n_rows)
    plan = plan_seeding(n_rows, n_features, k, init, n_init)
    assert k <= plan.sample_rows <= n_rows
    assert plan.sample_rows + plan.judged_rows <= n_rows
    assert (plan.judged_rows > 0) == (n_init > 1 and plan.sample_rows < n_rows)
    if init != "auto":
        least = max(MIN_SAMPLE_ROWS, SAMPLE_ROWS_PER_CLUSTER * k)
        assert plan.sample_rows == min(n_rows, least)


# Breaks when seeding costs more than an epoch where an epoch costs anything to speak of.
@given(shapes)
def test_auto_costs_less_than_an_epoch(shape) -> None:
    n_rows, n_features, k = shape
    k = min(k, n_rows)
    plan = plan_seeding(n_rows, n_features, k, "auto", 1)
    epoch = n_rows * k * (n_features + SCORE_PRODUCTS)
    if plan.tree is not None:
        most = max(EPOCH_SHARE * epoch, TREE_PRODUCTS)
        assert plan.tree.epochs * epoch <= most * (1 + 1e-9)
    if (refinement := plan.refinement) is None:
        return
    assert refinement.epochs * epoch <= max(EPOCH_SHARE * epoch, FREE_PRODUCTS) * (1 + 1e-9)
    assert refinement.final_passes >= 0
    assert refinement.breaths >= 0


@pytest.mark.parametrize("k", [16, 1000, 100_000])
def test_auto_refines_at_every_k(k: int) -> None:
    plan = plan_seeding(100 * k, 32, k, "auto", 1)
    assert (plan.tree is None) == (k < TREE_CLUSTERS)
    if (refinement := plan.refinement) is not None:
        assert (refinement.breaths > 0) * FIRST_PASSES + refinement.final_passes >= 2


def test_small_data_gets_the_full_treatment() -> None:
    for shape in ((150, 4, 3), (1797, 64, 10)):
        plan = plan_seeding(*shape, "auto", 1)
        assert plan.sample_rows == shape[0]
        assert plan.refinement is not None
        assert plan.refinement.breaths >= 4


# Breaks when seeding may take half a second however few the rows are. A start is greedy k-means++
# and 20 passes; what 60 steps cost on the host, 10 MiB of products each, comes on top.
@pytest.mark.parametrize("shape", [(150, 4, 3), (1797, 64, 10), (10_000, 16, 8), (10_000, 16, 50)])
def test_small_data_costs_no_more_than_ten_starts(shape: tuple[int, int, int]) -> None:
    n_rows, n_features, k = shape
    refinement = plan_seeding(*shape, "auto", 1).refinement
    assert refinement is not None
    greedy = n_rows * k * greedy_trials(k) * (7 * n_features + 100)
    one_pass = n_rows * k * (n_features + SCORE_PRODUCTS)
    limit = 10 * (greedy + 20 * one_pass) + 60 * (10 << 20)
    assert 0.8 * limit <= refinement.epochs * one_pass <= min(limit, FREE_PRODUCTS)


# Breaks when auto falls to random rows as soon as a sample with passes takes too long.
@pytest.mark.parametrize("k", [300_000, 400_000])
def test_many_clusters_of_few_rows_get_k_means_plus_plus(k: int) -> None:
    plan = plan_seeding(10**6, 32, k, "auto", 1)
    assert plan.refinement is not None
    assert plan.sample_rows > k
    assert plan.refinement.epochs <= EPOCH_SHARE
    assert plan.refinement.breaths >= 0


# k-means|| has more rows to work on than are affordable; best of several costs several times.
def test_what_seeding_costs_is_told_as_a_whole() -> None:
    plan = plan_seeding(100_000, 8, 10_000, "k-means||", 1)
    assert plan.refinement is not None
    assert min(plan.refinement.breaths, plan.refinement.final_passes) >= 0
    assert plan.epochs(10_000, 1) > 30
    for k in (10, 1000):
        one = plan_seeding(10**6, 64, k, "auto", 1)
        assert one.epochs(k, 3) == pytest.approx(3 * one.epochs(k, 1))


# A cluster of one or two rows is found by no sample: comparing would cost more than it brings.
def test_nearly_as_many_clusters_as_rows() -> None:
    assert plan_seeding(10**6, 32, 700_000, "auto", 1).refinement is None


# One cluster has nothing to add to.
def test_one_cluster() -> None:
    refinement = plan_seeding(1000, 3, 1, "auto", 1).refinement
    assert refinement is not None
    assert refinement.breaths == 0
