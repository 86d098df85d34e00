"""Which of several K stands out, and why; or that none does.

The elbow of the inertia is found by Kneedle (Satopää, Albrecht, Irwin and Raghavan 2011): of the
points of a curve, the one farthest above the straight line between its ends. Here the curve is that
of the logarithms. Without clusters the inertia falls as a power of K, as ``K^(-2/d)`` for uniform
rows in d dimensions. That is a straight line of logarithms, which has no elbow, while any convex
curve has one. The curve begins at K = 1, whose inertia is the dispersion of all rows: so two
clusters can be an elbow too.

An elbow alone is not believed. The silhouette must not contradict it, nor the agreement of fits
from different seeds. Nor is a K at which all rows but some outliers are in one cluster: a few rows
far from all others bend the curve, and have the best of silhouettes, whatever else there is. The
bounds below were set on sets of known K and on noise, and hold on others
(``bench/choosing.py``).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, field
from math import ceil, log
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "APART",
    "Elbow",
    "Recommendation",
    "find_elbow",
    "recommended",
    "recommended_by_space",
    "space_of",
]

#: An elbow is at least this far above the line between the ends, in units of the curve's extents,
#: and the curve is this number of times as steep before it as beyond it. Noise had heights up to
#: 0.003 and ratios up to 1.6; Gaussian clusters that overlap had 0.03 and 2.0 at least.
LEAST_HEIGHT, LEAST_RATIO = 0.02, 2.0
#: A cluster of outliers has less than the first share of the rows, and less than the second of the
#: mean size: of many clusters each has a small share of the rows.
FEW_ROWS, FEW_OF_MEAN = 0.01, 0.05
#: A silhouette this much below the greatest does not contradict.
NEAR_SILHOUETTE = 0.02
#: Fits whose adjusted Rand index is at least the first agree; below the second they do not.
STABLE, UNSTABLE = 0.9, 0.7
#: An inertia of less than this share of the greatest is the rounding of float64: it counts as 0.
ROUNDING = 1e-24
#: The slopes of a curve that falls faster and faster: more clusters than were tried.
STEEPER_BEYOND = 1.5
#: A K whose logarithm is nearer than this share to that of the greatest K has no height to be an
#: elbow of the least ratio.
LEAST_ROOM = LEAST_HEIGHT / (1 - 1 / LEAST_RATIO)
#: Indices of which one K may have the best of all: what they are called, and which value is best.
INDICES = {
    "silhouette": ("silhouette", max),
    "simplified_silhouette": ("simplified silhouette", max),
    "calinski_harabasz": ("Calinski-Harabasz", max),
    "davies_bouldin": ("Davies-Bouldin", min),
}
#: Why figures of several scales or metrics stand apart.
APART = "figures of different scales or metrics are of other distances: they cannot be compared"


@dataclass(frozen=True)
class Elbow:
    """The point of a curve that is farthest above the line between its ends."""

    k: int
    height: float
    """How far above, where both ends are at distance 1; at most 0 if the curve has no elbow."""
    ratio: float
    """How many times as steep it is before it as beyond it."""

    @property
    def stands_out(self) -> bool:
        """Whether it is more than noise would have."""
        return self.height >= LEAST_HEIGHT and self.ratio >= LEAST_RATIO


@dataclass
class Recommendation:
    """What a sweep says of K."""

    k: int | None = None
    """The K that stands out; None if none does, or if the figures contradict each other."""
    verdict: str = ""
    """The same in words."""
    reasons: list[str] = field(default_factory=list)
    """What elbow, silhouette and stability say."""
    elbow: Elbow | None = None
    """None with fewer than two K whose inertia is not 0."""
    silhouette_k: int | None = None
    """The K of the greatest silhouette."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def find_elbow(ks: Sequence[int], inertias: Sequence[float]) -> Elbow | None:
    """The elbow of the inertias of `ks`, which ascend; None for fewer than three that are not 0."""
    # Where every row lies on its centroid there is no logarithm.
    positive = [(k, inertia) for k, inertia in zip(ks, inertias, strict=True) if inertia > 0]
    ks, inertias = [k for k, _ in positive], [inertia for _, inertia in positive]
    if len(ks) < 3 or inertias[-1] >= inertias[0]:
        return None
    x = [log(k) for k in ks]
    y = [log(inertia) for inertia in inertias]
    across, down = x[-1] - x[0], y[0] - y[-1]
    heights = [(y[0] - y[i]) / down - (x[i] - x[0]) / across for i in range(1, len(ks) - 1)]
    at = max(range(len(heights)), key=heights.__getitem__) + 1
    before = (y[0] - y[at]) / (x[at] - x[0])
    beyond = (y[at] - y[-1]) / (x[-1] - x[at])
    # A curve that rises again beyond it, by seeds that were unlucky, is flat.
    ratio = before / max(beyond, 1e-9)
    return Elbow(ks[at], heights[at - 1], ratio)


def space_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """The scale and the metric of a fit in sweep.json; empty in a sweep that has one of each."""
    return row.get("scale", ""), row.get("metric", "")


def recommended_by_space(
    figures: Sequence[Mapping[str, Any]], stability: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """`recommended`, for each scale and metric by itself; plain values, for JSON.

    A sweep in several spaces (see `Space`) has the parts of each under ``spaces``. It recommends a
    K only if all of them do.
    """
    parts = {}
    for space in dict.fromkeys(map(space_of, figures)):
        of_one = ([row for row in rows if space_of(row) == space] for rows in (figures, stability))
        parts[space] = recommended(*of_one)
    if len(parts) == 1:
        return next(iter(parts.values())).as_dict()
    ks = {part.k for part in parts.values()}
    found = Recommendation(k=ks.pop() if len(ks) == 1 else None)
    found.verdict = "no k is recommended for every scale and metric"
    if found.k is not None:
        found.verdict = f"recommended: k {found.k:,}, for every scale and metric"
    for (scale, metric), part in parts.items():
        found.reasons.append(f"scale {scale}, metric {metric}: {part.verdict}")
        found.reasons += [f"  {reason}" for reason in part.reasons]
    found.reasons.append(APART)
    spaces = [
        {"scale": scale, "metric": metric, **part.as_dict()}
        for (scale, metric), part in parts.items()
    ]
    return {**found.as_dict(), "spaces": spaces}


def recommended(
    figures: Sequence[Mapping[str, Any]], stability: Sequence[Mapping[str, Any]]
) -> Recommendation:
    """What the figures of the fits, and how well the seeds of each K agree, say of K.

    Where figures have ``sizes``, the rows of each cluster, outliers are told from groups.

    Parameters
    ----------
    figures : sequence of mapping
        ``k``, ``inertia``, ``explained_variance``, ``silhouette`` and ``simplified_silhouette`` of
        each fit, with its ``seed``, K ascending. Where no fit has the exact silhouette the
        simplified one is taken. Of several seeds the least inertia counts, and the mean silhouette.
    stability : sequence of mapping
        ``k`` and ``mean``, the mean adjusted Rand index; empty with one seed.
    """
    inertias, silhouettes = _by_k(figures)
    ks = sorted(inertias)
    found = Recommendation()
    curve_ks, curve = ks, [inertias[k] for k in ks]
    if ks[0] > 1 and (whole := _dispersion(figures[0])) is not None:
        curve_ks, curve = [1, *ks], [whole, *curve]
    curve = [each if each > ROUNDING * max(curve) else 0.0 for each in curve]
    exact = [k for k, inertia in zip(curve_ks, curve, strict=True) if not inertia]
    found.elbow = find_elbow(curve_ks, curve)
    agreed = {each["k"]: each["mean"] for each in stability}
    apart = _outliers(figures)
    # (A few rows far away have the greatest silhouette whatever the others are.)
    silhouettes = {k: each for k, each in silhouettes.items() if not _is_no_grouping(k, apart)}
    if silhouettes:
        found.silhouette_k = max(silhouettes, key=silhouettes.__getitem__)
        greatest = silhouettes[found.silhouette_k]
        if len(silhouettes) > 1:
            name = "silhouette" if _is_exact(figures) else "simplified silhouette"
            of_seeds = ", mean of its seeds" if len(figures) > len(ks) else ""
            found.reasons.append(
                f"{name}: greatest at k {found.silhouette_k:,}, {greatest:.3f}{of_seeds}"
            )
    several = {row["k"] for row in figures if row["seed"] != figures[0]["seed"]}
    if found.elbow is not None and found.elbow.stands_out and _is_no_grouping(found.elbow.k, apart):
        _say_outliers(found, apart[found.elbow.k], max(sum(figures[0]["sizes"]), 1))
    else:
        _judge(found, ks, silhouettes, agreed, exact=exact, several=several)
        if found.elbow is None or not found.elbow.stands_out:
            _say_best(found, figures, apart)
    if found.k in apart:
        found.reasons.append(_with_outliers(apart[found.k]))
    if exact:
        found.reasons.append(f"from k {exact[0]:,} on every row lies on its centroid")
    return found


def _is_exact(figures: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any fit has the exact silhouette."""
    return any(row["silhouette"] is not None for row in figures)


def _by_k(figures: Sequence[Mapping[str, Any]]) -> tuple[dict[int, float], dict[int, float]]:
    """The least inertia and the mean silhouette of each K."""
    inertias, silhouettes = defaultdict(list), defaultdict(list)
    key = "silhouette" if _is_exact(figures) else "simplified_silhouette"
    for row in figures:
        inertias[row["k"]].append(row["inertia"])
        silhouette = row[key]
        if silhouette is not None:
            silhouettes[row["k"]].append(silhouette)
    means = {k: fmean(values) for k, values in silhouettes.items()}
    return {k: min(values) for k, values in inertias.items()}, means


def _say_best(
    found: Recommendation, figures: Sequence[Mapping[str, Any]], apart: Mapping[int, list[int]]
) -> None:
    """Name in `found`, which has no elbow, the K that is the best by every index, if one is."""
    best: dict[str, int] = {}
    for key, (name, best_of) in INDICES.items():
        known = [(row[key], row["k"]) for row in figures if row.get(key) is not None]
        if len({k for _, k in known}) > 1:
            best[name] = best_of(known)[1]
    ks = set(best.values())
    if len(best) < 2 or len(ks) > 1 or _is_no_grouping(k := ks.pop(), apart):
        return
    found.verdict = (
        f"k {k:,} is the best of these by every index, but no elbow: no k is recommended"
    )
    found.reasons.append(f"best at k {k:,}: {', '.join(best)}")


def _outliers(figures: Sequence[Mapping[str, Any]]) -> dict[int, list[int]]:
    """By K, the sizes of the clusters of outliers in its fit of the least inertia."""
    found: dict[int, list[int]] = {}
    best = {row["k"]: row for row in sorted(figures, key=lambda row: -row["inertia"])}
    for k, row in best.items():
        sizes = row.get("sizes") or []
        limit = min(FEW_ROWS, FEW_OF_MEAN / max(len(sizes), 1)) * sum(sizes)
        if few := sorted(size for size in sizes if 0 < size < limit):
            found[k] = few
    return found


def _is_no_grouping(k: int, apart: Mapping[int, list[int]]) -> bool:
    """Whether all rows but outliers are in one cluster."""
    return k > 1 and k - len(apart.get(k, [])) <= 1


def _say_outliers(found: Recommendation, sizes: list[int], n_rows: int) -> None:
    """Complete `found` where its elbow only sets clusters of these sizes apart."""
    assert found.elbow is not None
    n, k = sum(sizes), found.elbow.k
    found.verdict = f"k {k:,} only sets outliers apart: no k is recommended"
    found.reasons.insert(
        0,
        f"elbow: at k {k:,}, which sets {_rows(n)} of {n_rows:,} apart ({n / n_rows:.2%}), and "
        "leaves all others in one cluster",
    )
    found.reasons.append(
        "outliers hide what else there is; look at them (the report of that fit lists them), leave "
        "them out if they are errors, and sweep again"
    )


def _with_outliers(sizes: list[int]) -> str:
    clusters = (
        "1 of its clusters has" if len(sizes) == 1 else f"{len(sizes):,} of its clusters have"
    )
    return f"outliers: {clusters} only {_rows(sum(sizes))}"


def _rows(n: int) -> str:
    return "1 row" if n == 1 else f"{n:,} rows"


def _dispersion(row: Mapping[str, Any]) -> float | None:
    """The inertia of one cluster, from the inertia of several and the share that they explain."""
    explained = row["explained_variance"]
    if explained is None or explained >= 1:
        return None
    dispersion: float = row["inertia"] / (1 - explained)
    return dispersion


def _judge(
    found: Recommendation,
    ks: list[int],
    silhouettes: dict[int, float],
    agreed: dict[int, float],
    *,
    exact: list[int],
    several: set[int],
) -> None:
    """Complete `found` from its elbow.

    `exact` are the K whose inertia is 0, `several` those of several seeds.
    """
    elbow = found.elbow
    if elbow is None or not elbow.stands_out:
        found.verdict = "nothing stands out: no k is recommended"
        if len(ks) == 1:
            found.verdict = "one k alone has nothing to stand out from: no k is recommended"
        found.reasons.insert(0, _no_elbow(elbow, ks, exact))
        if len(agreed) > 1:
            best = max(agreed, key=agreed.__getitem__)
            found.reasons.append(f"stability: greatest at k {best:,}, {agreed[best]:.3f}")
        return
    k, other = elbow.k, found.silhouette_k
    found.reasons.insert(
        0,
        f"elbow: at k {k:,}: up to it the inertia falls {_times(elbow.ratio)} as steeply as beyond "
        "(Kneedle, of the logarithms)",
    )
    if k in agreed:
        found.reasons.append(_how_stable(k, agreed[k]))
    elif k in several:
        found.reasons.append("stability: not known above 4,096 clusters")
    else:
        found.reasons.append("stability: not known of one seed; sweep with several to know it")
    places = {each: place for place, each in enumerate(ks)}
    is_beside = other is None or abs(places[other] - places[k]) <= 1
    if not is_beside and silhouettes[k] < max(silhouettes.values()) - NEAR_SILHOUETTE:
        found.verdict = (
            f"elbow and silhouette disagree, k {k:,} and k {other:,}: no k is recommended"
        )
        found.reasons.append("both may be right, where clusters consist of smaller ones")
        return
    if agreed.get(k, 1.0) < STABLE and other is not None and agreed.get(other, 0.0) >= STABLE:
        found.reasons.append(_how_stable(other, agreed[other]))
        k = other
    if agreed.get(k, 1.0) < UNSTABLE:
        found.verdict = f"k {k:,} is the elbow, but not stable: no k is recommended"
        return
    found.k, found.verdict = k, f"recommended: k {k:,}"
    found.reasons += _untried(ks, places[k])


def _no_elbow(elbow: Elbow | None, ks: list[int], exact: list[int]) -> str:
    if elbow is None and len(ks) < 3:
        return "elbow: too few k to see one"
    if elbow is None:
        return "elbow: none can be seen, the inertia is 0 at most k or does not fall"
    if elbow.height < 0 and elbow.ratio * STEEPER_BEYOND < 1:
        if exact:
            return (
                f"elbow: none, the inertia falls faster and faster until it is 0 at k {exact[0]:,}"
            )
        return f"elbow: none up to k {ks[-1]:,}, where the inertia still falls faster; try larger k"
    unseen = "elbow: none that these k can show"
    if elbow.ratio >= LEAST_RATIO:
        further = max(ceil(elbow.k ** (1 / (1 - LEAST_ROOM))), ks[-1] + 1)
        return (
            f"{unseen}: up to k {elbow.k:,} the inertia falls {_times(elbow.ratio)} as steeply as "
            f"beyond, but k {ks[-1]:,} is too near to tell; sweep on to k {further:,} or more"
        )
    if log(ks[0]) > (1 - LEAST_ROOM) * log(ks[-1]):
        return f"{unseen}, which are too near each other; sweep smaller and larger k too"
    return "elbow: none, the inertia falls evenly: it singles out no k, and speaks for none"


def _how_stable(k: int, index: float) -> str:
    word = "stable" if index >= STABLE else "fairly stable" if index >= UNSTABLE else "not stable"
    return f"stability: k {k:,} is {word}, the adjusted Rand index of its seeds is {index:.3f}"


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio < 1000 else "a thousand times"


def _untried(ks: list[int], place: int) -> list[str]:
    """A hint if K beside the one at `place` were left out."""
    low, high = ks[max(place - 1, 0)], ks[min(place + 1, len(ks) - 1)]
    if high - low <= 2:
        return []
    # (Alone they may be too few to show the elbow: see `LEAST_ROOM`.)
    between = f"of the k from {low:,} to {high:,} only {ks[place]:,} was tried"
    return [f"{between}; sweep those between along with these"]
