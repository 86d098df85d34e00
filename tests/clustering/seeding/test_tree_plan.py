"""The plan of a tree: its levels, and its cost against the budget."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkm.clustering.seeding.tree_plan import MAX_EXCHANGES, TreePlan, deal, plan_tree


def planned(rows: int, k: int, budget: int = 10**18) -> TreePlan:
    found = plan_tree(rows, 32, k, exchanges=1, budget=budget, epoch=rows * k * 96, pair=96)
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


# Breaks when the budget is not used, or not kept, or a tree has fewer exchanges than it must.
@pytest.mark.parametrize("exchanges", [0, 2])
def test_a_budget_is_used_and_kept(exchanges: int) -> None:
    products, found = 64_000 * 1000 * 96, list[tuple[int, int]]()
    for budget in (int(1.02**i * 1e9) for i in range(400)):
        tree = plan_tree(
            64_000, 32, 1000, exchanges=exchanges, budget=budget, epoch=products, pair=96
        )
        if tree is None:
            assert not found
            continue
        assert tree.epochs * products <= budget * (1 + 1e-9)
        found.append((tree.near[-1], tree.exchanges))
    near, made = zip(*found, strict=True)
    assert list(near) == sorted(near)
    assert set(near) == {126, 252}
    for width in (126, 252):
        of_width = [n for n, w in zip(made, near, strict=True) if w == width]
        assert of_width == sorted(of_width)
        assert of_width[0] == exchanges
    assert made[-1] == MAX_EXCHANGES


def test_the_steps_in_order() -> None:
    plan = TreePlan((4, 60), (4, 60), (1, 1), 2, 0.0)
    assert plan.steps() == [
        (0, "divide"), (0, "forget"), (0, "mean"),
        (1, "divide"), (1, "forget"), (1, "exchange"), (1, "exchange"), (1, "mean"),
    ]  # fmt: skip


# Breaks when clusters are lost or made up, or a cluster gets more children than rows.
@given(st.lists(st.tuples(st.floats(0, 1e9), st.integers(0, 40)), min_size=1), st.data())
def test_all_children_are_dealt(clusters, data) -> None:
    costs, rows = [c for c, _ in clusters], [n for _, n in clusters]
    least = sum(n > 0 for n in rows)
    k = data.draw(st.integers(least, sum(rows)))
    dealt = deal(costs, rows, k, 10)
    assert sum(dealt) == k
    assert all(min(n, 1) <= children <= n for children, n in zip(dealt, rows, strict=True))


# By hand: with 2 features, the shares are the square roots of the costs.
def test_children_by_cost() -> None:
    assert deal([100.0, 4.0, 0.0], [99, 99, 99], 14, 2) == [11, 2, 1]
    assert deal([100.0, 4.0], [3, 99], 14, 2) == [3, 11]
