"""The plan of a tree: its levels, and its cost against the budget."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from streamkm.clustering.seeding.tree_plan import MAX_EXCHANGES, TreePlan, plan_tree


def planned(rows: int, k: int, budget: int = 0, n_features: int = 32) -> TreePlan:
    pair = n_features + 64
    return plan_tree(rows, n_features, k, budget=budget, epoch=rows * k * pair, pair=pair)


# Breaks when levels do not lead to k, or a row is compared with more clusters than there are.
@given(st.integers(2, 10**6), st.integers(1, 100))
def test_levels_grow_to_k(k, rows_per_cluster) -> None:
    plan = planned(rows_per_cluster * k, k)
    assert plan.levels[-1] == k
    assert 2 <= plan.levels[0] <= 24
    assert all(below > 10 * above for above, below in pairwise(plan.levels))
    assert all(1 <= near <= n for near, n in zip(plan.near, plan.levels, strict=True))
    assert min(plan.batches) >= 1


# Breaks when the budget is not used, or not kept: from one exchange on, each costs the same.
def test_exchanges_are_what_the_budget_leaves() -> None:
    least, most = planned(64_000, 1000), planned(64_000, 1000, 10**15)
    assert (least.exchanges, most.exchanges) == (1, MAX_EXCHANGES)
    products = 64_000 * 1000 * 96
    each = (most.epochs - least.epochs) / (MAX_EXCHANGES - 1)
    for n in (2, 5):
        enough = int((least.epochs + (n - 1) * each) * products) + 1
        assert planned(64_000, 1000, enough).exchanges == n
        assert planned(64_000, 1000, enough - 10**6).exchanges == n - 1
        assert planned(64_000, 1000, enough).epochs * products <= enough


def test_the_steps_in_order() -> None:
    plan = TreePlan((4, 60), (4, 60), (1, 1), 2, 0.0)
    assert plan.steps() == [
        (0, "divide"), (0, "forget"), (0, "mean"),
        (1, "divide"), (1, "forget"), (1, "exchange"), (1, "exchange"), (1, "mean"),
    ]  # fmt: skip
