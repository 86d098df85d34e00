"""The plan of a tree: its levels, and its cost against the budget."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from streamkm.clustering.seeding.tree_plan import MAX_EXCHANGES, TreePlan, plan_tree


def planned(rows: int, k: int, budget: int = 10**18) -> TreePlan:
    found = plan_tree(rows, 32, k, budget=budget, epoch=rows * k * 96, pair=96)
    assert found is not None
    return found


# Breaks when levels do not lead to k, or a row is compared with more clusters than there are.
@given(st.integers(2, 10**6), st.integers(1, 100))
def test_levels_grow_to_k(k, rows_per_cluster) -> None:
    plan = planned(rows_per_cluster * k, k)
    assert plan.levels[-1] == k
    assert 2 <= plan.levels[0] <= 24
    assert all(below > 10 * above for above, below in pairwise(plan.levels))
    assert all(1 <= near <= n for near, n in zip(plan.near, plan.levels, strict=True))
    assert min(plan.batches) >= 1


# Breaks when the budget is not used, or not kept; exchanges are worth less than a tree at all.
def test_a_budget_is_used_and_kept() -> None:
    products, before = 64_000 * 1000 * 96, (0, 0)
    budgets = [int(1.02**i * 1e9) for i in range(400)]
    trees = [plan_tree(64_000, 32, 1000, budget=b, epoch=products, pair=96) for b in budgets]
    assert trees[0] is None
    for budget, tree in zip(budgets, trees, strict=True):
        if tree is not None:
            assert tree.epochs * products <= budget * (1 + 1e-9)
            now = (tree.near[-1], tree.exchanges)
            assert now[0] > before[0] or now >= before
            before = now
    assert before == (252, MAX_EXCHANGES)
    found = {(tree.near[-1], tree.exchanges) for tree in trees if tree is not None}
    assert {(126, 0), (126, 1), *((252, n) for n in range(1, 9))} <= found


def test_the_steps_in_order() -> None:
    plan = TreePlan((4, 60), (4, 60), (1, 1), 2, 0.0)
    assert plan.steps() == [
        (0, "divide"), (0, "forget"), (0, "mean"),
        (1, "divide"), (1, "forget"), (1, "exchange"), (1, "exchange"), (1, "mean"),
    ]  # fmt: skip
