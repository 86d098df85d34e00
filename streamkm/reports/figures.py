"""Figures of the clusters of one run: their sizes, their spread, and a map of the centroids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from streamkm.reports.measures import outliers
from streamkm.reports.theme import (
    ACCENT,
    INK,
    MUTED,
    SEQUENTIAL,
    SURFACE,
    WARN,
    make_logarithmic,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from streamkm.reports.measures import Projection

__all__ = ["VECTOR_POINTS", "draw_map", "draw_sizes", "draw_spread", "uneven"]

#: Clusters up to which each has a bar with its number.
MOST_BARS = 40
#: Points up to which each is a mark of its own; more are pixels.
VECTOR_POINTS = 1500
#: Steps of the curve of sizes, at most.
MOST_STEPS = 1500
#: Names of clusters within a figure, at most.
MOST_NAMED = 12
#: Sizes are on a logarithmic axis if the largest is this multiple of the median or of the least.
UNEVEN, MOST_UNEVEN = 12, 100
#: Width of a digit and height of a name within a figure, in points.
DIGIT, LINE = 5.2, 9.0


def uneven(sizes_K: np.ndarray) -> bool:
    """Whether sizes need a logarithmic axis."""
    present = sizes_K[sizes_K > 0]
    if not len(present):
        return False
    largest = present.max()
    return bool(largest >= min(UNEVEN * np.median(present), MOST_UNEVEN * present.min()))


def draw_sizes(sizes_K: np.ndarray, is_tiny_K: np.ndarray) -> Figure:
    """Rows of each cluster, largest first; tiny clusters stand out."""
    order = np.argsort(-sizes_K, kind="stable")
    sizes, tiny = sizes_K[order], is_tiny_K[order]
    with new_figure(height=2.9) as figure:
        axes = figure.add_subplot()
        places = np.arange(len(sizes))
        mean = sizes.mean()
        if len(sizes) <= MOST_BARS and not uneven(sizes):
            colours = [WARN if each else ACCENT for each in tiny]
            axes.bar(places, sizes, color=colours, width=0.82)
            axes.grid(visible=False, axis="x")
        elif not uneven(sizes):
            # Where there are more clusters than pixels, one cluster of each pixel.
            steps = np.unique(np.linspace(0, len(sizes), MOST_STEPS + 1).astype(int))
            axes.stairs(sizes[steps[:-1]], steps, fill=True, color=ACCENT)
        else:
            has_rows = sizes > 0
            shown: Any = {
                "ls": "",
                "marker": "o",
                "ms": 3,
                "rasterized": len(sizes) > VECTOR_POINTS,
            }
            for chosen, colour in ((has_rows & ~tiny, ACCENT), (has_rows & tiny, WARN)):
                axes.plot(places[chosen], sizes[chosen], color=colour, **shown)
            axes.set_yscale("log")
        axes.axhline(mean, color=MUTED, lw=1, ls=(0, (4, 3)))
        axes.annotate(
            f"mean {mean:,.0f}", (1, mean), xycoords=("axes fraction", "data"),
            xytext=(0, 3), textcoords="offset points", ha="right", color=MUTED, fontsize=8.5,
        )  # fmt: skip
        axes.set_ylabel("rows")
        if axes.get_yscale() == "log":
            make_logarithmic(axes.yaxis)
        else:
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        if len(sizes) <= MOST_BARS:
            style = {"fontsize": 8.5} if len(sizes) <= 24 else {"fontsize": 8, "rotation": 90}
            axes.set_xticks(places, [str(cluster) for cluster in order], **style)
            axes.set_xlabel("cluster, largest first")
        else:
            axes.set_xlim(-0.005 * len(sizes), len(sizes) * 1.005)
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("clusters, largest first")
    return figure


def draw_spread(sizes_K: np.ndarray, distances_K: np.ndarray) -> tuple[Figure, np.ndarray]:
    """Mean distance of each cluster against its size, and which clusters are outliers in it."""
    shown_K = (sizes_K > 0) & np.isfinite(distances_K)
    odd_K = outliers(np.where(shown_K, distances_K, np.nan))
    clusters = np.flatnonzero(shown_K)
    with new_figure(height=3.3) as figure:
        axes = figure.add_subplot()
        colours = np.where(odd_K[clusters], WARN, ACCENT)
        points = axes.scatter(
            sizes_K[clusters], distances_K[clusters], c=colours.tolist(),
            s=_area(len(clusters)), alpha=0.8, linewidths=0.5, edgecolors=SURFACE,
            rasterized=len(clusters) > VECTOR_POINTS,
        )  # fmt: skip
        points.set_gid("points")
        if len(clusters) and uneven(sizes_K):
            axes.set_xscale("log")
            make_logarithmic(axes.xaxis)
        else:
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set_xlabel("rows")
        axes.set_ylabel("mean distance to the centroid")
        # A margin of a tight range would cut the highest dot off.
        axes.set_ylim(0, 1.08 * distances_K[clusters].max(initial=0.0) or 1.0)
        if len(clusters):
            median = float(np.median(distances_K[clusters]))
            axes.axhline(median, color=MUTED, lw=1, ls=(0, (4, 3)))
            odd = np.flatnonzero(odd_K)
            furthest = odd[np.argsort(-np.abs(distances_K[odd] - median), kind="stable")]
            few = clusters if len(clusters) <= MOST_NAMED else furthest[:MOST_NAMED]
            radii_K = np.full(len(sizes_K), np.sqrt(_area(len(clusters))) / 2)
            radii_K[~shown_K] = np.nan
            _name(axes, few, sizes_K, distances_K, radii_K)
    return figure, odd_K


def draw_map(projection: Projection, sizes_K: np.ndarray, distances_K: np.ndarray | None) -> Figure:
    """The centroids on their principal plane: area by size, colour by mean distance."""
    at_KA, k = projection.at_KA, len(sizes_K)
    with new_figure(height=4.6) as figure:
        axes = figure.add_subplot()
        # The largest first, so that small ones lie on top.
        order = np.argsort(-sizes_K, kind="stable")
        largest = max(int(sizes_K.max(initial=0)), 1)
        areas = np.maximum(_area(k) * 8 * sizes_K / largest, 2.5)
        has_colour = distances_K is not None and bool(np.isfinite(distances_K).any())
        style: Any = {"alpha": 0.85, "linewidths": 0.5, "edgecolors": INK}
        if has_colour:
            assert distances_K is not None
            style |= {"c": distances_K[order], "cmap": SEQUENTIAL, "plotnonfinite": True}
        else:
            style |= {"color": ACCENT, "edgecolors": SURFACE}
        points = axes.scatter(
            at_KA[order, 0], at_KA[order, 1], s=areas[order], rasterized=k > VECTOR_POINTS, **style
        )  # fmt: skip
        points.set_gid("points")
        if has_colour:
            bar = figure.colorbar(points, ax=axes, shrink=0.75, pad=0.02, aspect=28)
            bar.set_label("mean distance to the centroid")
            bar.outline.set_visible(False)
        axes.set_aspect("equal", adjustable="datalim")
        for axis, share, place in zip(
            (axes.xaxis, axes.yaxis), projection.shares, ("first", "second"), strict=True
        ):
            axis.set_label_text(f"{place} component, {share:.0%} of the variance between clusters")
        named = order[: k if k <= 2 * MOST_NAMED else MOST_NAMED]
        radii = np.sqrt(areas) / 2
        _name(axes, named, at_KA[:, 0], at_KA[:, 1], radii)
        axes.margins(0.08)
    return figure


def _area(n_points: int) -> float:
    """Area of a mark in square points: less of many."""
    return float(np.clip(6000 / max(n_points, 1), 9, 60))


def _name(
    axes: Axes, clusters: np.ndarray, x_K: np.ndarray, y_K: np.ndarray, radii_K: np.ndarray
) -> None:
    """Write the numbers of `clusters` beside their marks, where there is room for them.

    `radii_K` are those of all marks, in points; NaN where there is none. A number covers neither
    another one nor the middle of another mark; one that finds no place is left out.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # It decides the limits and the place of the axes.
    to_points = axes.transData + figure.dpi_scale_trans.inverted()
    there_K = np.flatnonzero(np.isfinite(radii_K))
    at_KA = to_points.transform(np.column_stack([x_K[there_K], y_K[there_K]])) * 72
    written: list[tuple[np.ndarray, np.ndarray]] = []
    for cluster in clusters.tolist():
        own = int(np.searchsorted(there_K, cluster))
        size = np.array([DIGIT * len(str(cluster)), LINE])
        off = 2 + 0.72 * radii_K[cluster]
        for side in np.array([[1, 1], [-1, 1], [1, -1], [-1, -1]]):
            middle = at_KA[own] + side * (off + size / 2)
            # (Distances of boxes along their axes: they overlap if both are too short.)
            is_over = (np.abs(at_KA - middle) < size / 2 + 1).all(axis=1)
            is_over[own] = False
            if is_over.any() or any((np.abs(middle - each) < half + size / 2).all()
                                    for each, half in written):  # fmt: skip
                continue
            written.append((middle, size / 2))
            axes.annotate(
                str(cluster), (x_K[cluster], y_K[cluster]), xytext=tuple(side * (off + size / 2)),
                textcoords="offset points", fontsize=8, color=INK, annotation_clip=False,
                ha="center", va="center",
            )  # fmt: skip
            break
