"""The figures of a fit's result: for the model file, for metrics.jsonl and for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from streamkm.tables import ALGORITHMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamkm.clustering.scaling import Scaling
    from streamkm.clustering.state import KMeansState
    from streamkm.config import ResolvedFitConfig
    from streamkm.runs.engine.snapshot import Snapshot
    from streamkm.stream.plan import ReadingPlan

__all__ = ["Spread", "bounds_line", "final_figures", "median_size", "model_figures", "result_lines"]

#: A last pass that lowered the inertia by this share of it, or more, is worth a note.
WORTH_SAYING = 0.001


def model_figures(
    state: KMeansState,
    scaling: Scaling,
    reading: ReadingPlan,
    config: ResolvedFitConfig,
    dtype: str,
) -> dict[str, Any]:
    """`Model.figures` of a run on an array of the stored `dtype`."""
    n_steps = int(state.n_steps)
    return {
        # By steps, not by the cursor: what was read after the last update changed nothing.
        "n_iter": min(-(-n_steps // reading.n_batches(0)), config.epochs),
        "n_steps": n_steps,
        "epoch_inertia": float(state.inertia) / scaling.unit**2,
        "dtype": dtype,
    }


def final_figures(now: Snapshot) -> dict[str, Any]:
    """`Snapshot.figures`, and those of the saved centroids where the run has them.

    It has them after a pass that ended with a move of all centroids (lloyd, or a closing pass):
    the inertia of its clusters about the moved centroids, and their sizes. Where rows have
    weights, "per row" means per unit of weight.
    """
    figures, state = now.figures(), now.state
    inertia = now.settled_inertia()
    if state is None or inertia is None:
        return figures
    sizes = sorted(state.counts_K.tolist())
    return {
        **figures,
        "inertia": inertia,
        # `state.inertia` is about the centroids before the last pass moved them.
        "last_gain": max(1 - inertia / (float(state.inertia) or 1), 0.0) if inertia else 0.0,
        "inertia_per_row": inertia / (float(state.whole_mass_K.sum()) or 1),
        "empty": sizes.count(0),
        "least_rows": sizes[0],
        "median_rows": median_size(sizes),
        "most_rows": sizes[-1],
    }


def median_size(ordered_K: Sequence[int]) -> int | float:
    """Median of sorted sizes: an int, or a float that ends in .5 where it lies between two."""
    twice = int(ordered_K[(len(ordered_K) - 1) // 2]) + int(ordered_K[len(ordered_K) // 2])
    return twice / 2 if twice % 2 else twice // 2


def bounds_line(sizes: dict[str, Any], inertia: float | None) -> str:
    """What bounds on sizes are and have cost, from ``figures["sizes"]``: a phrase."""
    free, now = sizes["free_inertia"], inertia or 0.0
    cost = f"{now / free - 1:+.2%}" if free else f"{now:.6g} instead of 0"
    return f"{sizes['least']:,} to {sizes['most']:,} rows; inertia {cost} by them"


class Spread(NamedTuple):
    """How uneven sizes are."""

    variation: float
    """Coefficient of variation: the standard deviation over the mean."""
    largest_over_mean: float
    percentile_99: float
    """Of sizes, between two by proportion."""

    @classmethod
    def of(cls, ordered_K: Sequence[int]) -> Self:
        """The spread of sorted sizes, all 0 where no cluster has a row."""
        k, total = len(ordered_K), sum(ordered_K)
        if not total:
            return cls(0.0, 0.0, 0.0)
        # In whole numbers as far as possible: equal sizes have the variation 0.
        sq_deviation = sum((k * size - total) ** 2 for size in ordered_K) / k
        place, part = divmod(99 * (k - 1), 100)
        low, high = ordered_K[place], ordered_K[min(place + 1, k - 1)]
        percentile = low + (high - low) * part / 100
        return cls(math.sqrt(sq_deviation) / total, k * ordered_K[-1] / total, percentile)

    def __str__(self) -> str:
        return (
            f"coefficient of variation {self.variation:.3f}, largest over mean "
            f"{self.largest_over_mean:.2f}, 99th percentile {self.percentile_99:,.6g}"
        )


def result_lines(
    figures: dict[str, Any], config: ResolvedFitConfig, phase: str, *, all_on_centroids: bool
) -> list[str]:
    """The result for people, from `final_figures` and the last `phase`.

    `all_on_centroids` says whether the last pass was offered no row off its centroid.
    """
    k = config.k
    per_row = f"result: inertia per row {figures['inertia_per_row'] or 0:.6g}"
    empty = f"{figures['empty']:,} of {k:,} clusters"
    if "least_rows" not in figures:
        exact = "no closing pass: `evaluate` gives the exact figures"
        return [f"{per_row} over the last epoch as it went, {empty} without a row in it ({exact})"]
    sizes = (
        f"clusters of {figures['least_rows']:,} to {figures['most_rows']:,} rows, "
        f"{figures['median_rows']:,} in the median"
    )
    lines = [f"{per_row} ({figures['inertia']:.9g} in all), each row in its cluster; {sizes}"]
    # Centroids that have forgotten rows carry noise: what a closing pass gains by taking it away
    # does not tell whether more passes would gain anything.
    if figures["last_gain"] >= WORTH_SAYING and config.rate != "annealed":
        closes = ALGORITHMS[config.algorithm].closes
        more = "the passes of algorithm lloyd" if closes else "more epochs"
        lines.append(
            f"note: the last pass lowered the inertia by {figures['last_gain']:.1%}; {more} may "
            "lower it further (`evaluate` gives it by nearest centroids)"
        )
    if figures["empty"]:
        # Only a closing pass offers every row to empty clusters; it is repeated while that helps.
        if config.is_bounded:
            why = "the bounds on sizes allow it; min-size 1 gives each of them one"
        elif phase != "close":
            why = "more epochs may give them some, and a closing pass would"
        elif all_on_centroids:
            why = f"the data has fewer than {k:,} distinct rows"
        else:
            why = (
                "each row that is off its centroid is the only row of its cluster, or holds nearly "
                "all of its weight"
            )
        lines.append(f"note: {empty} have no row: {why}")
    return lines
