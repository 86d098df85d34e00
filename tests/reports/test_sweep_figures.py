"""Figures of a sweep, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from streamkm.reports.facts import Clusters
from streamkm.reports.sweep_facts import SweepFacts
from streamkm.reports.sweep_figures import draw_comparison, draw_tree, levels_of


def clusters_at(points: list[float], sizes: list[int]) -> Clusters:
    points_KD, sizes_K = np.array(points, np.float32)[:, None], np.array(sizes)
    return Clusters(points_KD, points_KD, sizes_K, sizes_K.astype(float), None, None)


def test_a_cluster_hangs_below_the_nearest_of_the_level_before() -> None:
    first = clusters_at([0, 10], [30, 70])
    second = clusters_at([9, -1, 1, 12], [40, 10, 20, 30])
    third = clusters_at([1.2, 8.8], [33, 67])
    one, two, three = levels_of([first, second, third])
    assert one.order == [1, 0]  # The largest first.
    assert two.parents_K.tolist() == [1, 0, 0, 1]
    # Those of one parent together, in the order of the parents, the largest of them first.
    assert two.order == [0, 3, 2, 1]
    assert three.parents_K.tolist() == [2, 0]
    assert three.branches_K.tolist() == [0, 1]
    assert draw_tree([one, two, three], [2, 4, 2]).axes


def test_clusters_without_rows_are_drawn() -> None:
    levels = levels_of([clusters_at([0, 1], [0, 0]), clusters_at([0, 1, 2], [0, 5, 0])])
    assert draw_tree(levels, [2, 3]).axes


# Breaks when the largest K has no number on the axis, because the one before stands close to it.
def test_the_last_k_has_its_number() -> None:
    ks = range(2, 31)
    runs = [{"name": f"k-{k}", "k": k, "seed": 0} for k in ks]
    figures = [{"k": k, "seed": 0, "inertia_per_row": 1 / k, "silhouette": 0.5} for k in ks]
    ticks = draw_comparison(SweepFacts(Path(), {}, runs, figures, {}, {})).axes[-1].get_xticks()
    assert (ticks[0], ticks[-1]) == (2, 30)
    assert np.diff(np.log(ticks)).min() > np.log(30 / 2) / 15
