"""Figures of a sweep: how K compare, and how the clusters of one K divide in the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

from streamkm.reports.theme import ACCENT, INK, MUTED, OTHER, THIRD, WARN, new_figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from streamkm.reports.facts import Clusters
    from streamkm.reports.sweep_facts import SweepFacts

__all__ = ["MOST_IN_TREE", "Level", "draw_comparison", "draw_tree", "levels_of"]

#: Clusters of one K that a tree can show.
MOST_IN_TREE = 64
#: Colours of the branches of a tree: those of the clusters of the least K, in turn.
BRANCHES = (ACCENT, WARN, THIRD, OTHER)


def draw_comparison(facts: SweepFacts) -> Figure:
    """Inertia, silhouette and stability of each K, one above the other."""
    ks = facts.ks
    has_stability = bool(facts.stability)
    with new_figure(height=6.0 if has_stability else 4.4) as figure:
        panels = figure.subplots(3 if has_stability else 2, 1, sharex=True)
        chosen = facts.recommendation.get("k")
        inertia, silhouette = panels[0], panels[1]
        _seeds(inertia, facts, [row["inertia_per_row"] for row in facts.figures])
        least = [min(row["inertia_per_row"] for row in facts.by_k(k)) for k in ks]
        inertia.plot(ks, least, color=ACCENT, lw=1.6, marker="o", ms=4)
        inertia.set_ylabel("inertia per row")
        found = [facts.silhouette_of(row) for row in facts.figures]
        _seeds(silhouette, facts, [np.nan if value is None else value for value in found])
        means = [np.nan if s is None else s for s in map(facts.mean_silhouette, ks)]
        silhouette.plot(ks, means, color=THIRD, lw=1.6, marker="o", ms=4)
        silhouette.set_ylabel("silhouette")
        if has_stability:
            known = [k for k in ks if k in facts.stability]
            mean = [facts.stability[k]["mean"] for k in known]
            low = [facts.stability[k]["least"] for k in known]
            panels[2].fill_between(known, low, mean, color=OTHER, alpha=0.3, lw=0)
            panels[2].plot(known, mean, color=OTHER, lw=1.6, marker="o", ms=4)
            panels[2].set_ylim(0, 1.03)
            panels[2].set_ylabel("stability")
        for axes in panels:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(_apart(ks)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_minor_formatter(NullFormatter())
            if chosen is not None:
                axes.axvline(chosen, color=WARN, lw=1.2, ls=(0, (4, 3)))
        if chosen is not None:
            inertia.annotate(
                f"k = {chosen:,}", (chosen, 1), xycoords=("data", "axes fraction"), xytext=(4, -10),
                textcoords="offset points", color=INK, fontsize=8.5,
            )  # fmt: skip
        panels[-1].set_xlabel("clusters")
    return figure


def _seeds(axes: Axes, facts: SweepFacts, values: Sequence[float]) -> None:
    """A faint mark for each seed, where there are several."""
    if facts.n_seeds > 1:
        ks = [row["k"] for row in facts.figures]
        axes.plot(ks, values, ls="", marker="o", ms=3, color=MUTED, alpha=0.55)


def _apart(ks: list[int]) -> list[int]:
    """Those of `ks` whose numbers have room on a logarithmic axis, the first and the last first."""
    first, last = ks[0], ks[-1]
    width = np.log(last / first) / 14
    shown = [first]
    for k in ks[1:-1]:
        if min(np.log(k / shown[-1]), np.log(last / k)) >= width:
            shown.append(k)
    return shown if last == first else [*shown, last]


# ---- the tree ----------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """The clusters of one K in a tree."""

    sizes_K: np.ndarray
    parents_K: np.ndarray
    """The cluster of the level before whose centroid is nearest; 0 in the first level."""
    order: list[int]
    """The clusters from top to bottom: those of one parent together."""
    branches_K: np.ndarray
    """The cluster of the first level that each descends from."""


def levels_of(found: Sequence[Clusters]) -> list[Level]:
    """The levels of a tree of fits, K ascending.

    A cluster hangs below the one whose centroid is nearest to its own. Centroids are compared in
    the space of the input, which all fits share.
    """
    levels: list[Level] = []
    for place, clusters in enumerate(found):
        sizes_K = clusters.sizes_K
        if not levels:
            order = np.argsort(-sizes_K, kind="stable").tolist()
            everybody = np.arange(clusters.k)
            levels.append(Level(sizes_K, np.zeros(clusters.k, int), order, everybody))
            continue
        above, before = levels[-1], found[place - 1].points_KD.astype(np.float64)
        own_KD = clusters.points_KD.astype(np.float64)
        apart = np.square(own_KD[:, None] - before[None]).sum(axis=2)
        parents_K = apart.argmin(axis=1)
        rank = {cluster: at for at, cluster in enumerate(above.order)}
        order = sorted(range(clusters.k), key=lambda c: (rank[int(parents_K[c])], -sizes_K[c]))
        levels.append(Level(sizes_K, parents_K, order, above.branches_K[parents_K]))
    return levels


def draw_tree(levels: Sequence[Level], ks: Sequence[int]) -> Figure:
    """A column of clusters for each K, their heights by rows, joined to those that they are of."""
    most = max(len(level.order) for level in levels)
    with new_figure(height=float(np.clip(1.6 + 0.1 * most, 3, 6.5))) as figure:
        axes = figure.add_subplot()
        gap = 0.25 / most
        places = []
        for column, level in enumerate(levels):
            total = float(level.sizes_K.sum()) or 1.0
            spaces = gap * (len(level.order) - 1)
            at, spans = 1.0, {}
            for cluster in level.order:
                height = level.sizes_K[cluster] / total * (1 - spaces)
                spans[cluster] = (at - height, at)
                at -= height + gap
                colour = BRANCHES[int(level.branches_K[cluster]) % len(BRANCHES)]
                box = Rectangle(
                    (column - 0.03, spans[cluster][0]), 0.06, height, color=colour, lw=0
                )
                axes.add_patch(box)
                if len(level.order) <= 24 and height > 0.02:
                    axes.annotate(
                        str(cluster), (column + 0.04, at + gap + height / 2), va="center",
                        fontsize=7.5, color=INK,
                    )  # fmt: skip
            places.append(spans)
            if column:
                _join(axes, column, level, places)
        axes.set_xlim(-0.15, len(levels) - 0.75)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xticks(range(len(levels)), [f"k = {k:,}" for k in ks])
        axes.set_yticks([])
        axes.grid(visible=False)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0)
    return figure


def _join(
    axes: Axes, column: int, level: Level, places: list[dict[int, tuple[float, float]]]
) -> None:
    """Bands from the clusters of a column to those of the column before that they hang below."""
    before, now = places[-2], places[-1]
    for parent, (bottom, top) in before.items():
        children = [c for c in level.order if level.parents_K[c] == parent]
        total = sum(int(level.sizes_K[c]) for c in children)
        at = top
        for child in children:
            share = (top - bottom) * (level.sizes_K[child] / total if total else 0)
            low, high = now[child]
            left, right = column - 0.97, column - 0.03
            middle = (left + right) / 2
            outline = Outline(
                [(left, at), (middle, at), (middle, high), (right, high), (right, low),
                 (middle, low), (middle, at - share), (left, at - share), (left, at)],
                [Outline.MOVETO, *[Outline.CURVE4] * 3, Outline.LINETO, *[Outline.CURVE4] * 3,
                 Outline.CLOSEPOLY],
            )  # fmt: skip
            colour = BRANCHES[int(level.branches_K[child]) % len(BRANCHES)]
            axes.add_patch(PathPatch(outline, facecolor=colour, alpha=0.28, lw=0))
            at -= share
