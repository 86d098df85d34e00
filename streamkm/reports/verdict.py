"""The verdict on a run: how large, how good, and what somebody should look at. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streamkm.reports.course import last_attempt
from streamkm.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streamkm.reports.facts import RunFacts
    from streamkm.reports.survey import Survey

__all__ = ["Figure", "Finding", "Verdict", "judge", "listed", "number", "percent", "tiny"]

#: A cluster is tiny below this share of the mean size.
TINY = 0.05
#: A cluster holds "half" from this share of the rows on, and is "large" from this multiple of the
#: mean size on.
HALF, LARGE = 0.5, 20
#: Mean size below which clusters are made of few rows: the least that faiss asks for.
FEW_ROWS = 39
#: A last pass that lowered the inertia by this share says that more passes would lower it.
GAINED = 0.01
#: Clusters that a sentence names, at most.
MOST_LISTED = 8


@dataclass(frozen=True)
class Figure:
    """One number of the verdict."""

    name: str
    value: str
    reads: str
    """How to read it, a sentence."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    is_worth_a_look: bool
    text: str
    label: str = ""
    """What stands before it, if not whether it is worth a look."""


@dataclass(frozen=True)
class Verdict:
    """The first thing in a report."""

    headline: str
    figures: list[Figure]
    findings: list[Finding]


def _look(text: str) -> Finding:
    return Finding(is_worth_a_look=True, text=text)


def _fine(text: str) -> Finding:
    return Finding(is_worth_a_look=False, text=text)


def number(value: float) -> str:
    """`value` to four digits, with thousands apart."""
    if value and not 1e-4 <= abs(value) < 1e12:
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(share: float) -> str:
    """`share` in per cent, with a digit more where it is small."""
    if 0 < share < 0.0001:
        return "less than 0.01 %"
    digits = 0 if share >= 0.1 else 1 if share >= 0.01 else 2
    said = f"{100 * share:.{digits}f}"
    # All but a few is not all.
    return "more than 99 %" if said == "100" and share < 1 else f"{said} %"


def tiny(sizes_K: np.ndarray) -> np.ndarray:
    """Which clusters have rows, but less than `TINY` of the mean size."""
    is_tiny_K: np.ndarray = (sizes_K > 0) & (sizes_K < TINY * sizes_K.mean())
    return is_tiny_K


def listed(clusters: Iterable[int]) -> str:
    """Numbers of clusters as a phrase; of many the first."""
    numbers = list(map(str, clusters))
    if len(numbers) > MOST_LISTED:
        return f"{', '.join(numbers[:MOST_LISTED])} and {len(numbers) - MOST_LISTED:,} more"
    return " and ".join(filter(None, (", ".join(numbers[:-1]), numbers[-1])))


def judge(
    facts: RunFacts, sizes_K: np.ndarray | None, explained: float | None, survey: Survey | None,
    odd_K: np.ndarray | None, *, is_other: bool = False,
) -> Verdict:  # fmt: skip
    """The verdict on a run.

    Parameters
    ----------
    facts : RunFacts
        What the run folder holds.
    sizes_K : ndarray or None
        Rows of each cluster, as the report shows them.
    explained : float or None
        Share of the variance that lies between clusters.
    survey : Survey or None
        What the pass over the rows has found.
    odd_K : ndarray or None
        Which clusters are far wider or narrower than the others.
    is_other : bool
        Whether the pass was over other data than the fit's.
    """
    findings = _state_findings(facts)
    n_rows = facts.n_rows
    if is_other and survey is not None:
        n_rows = survey.evaluation.n_rows
        fitted = counted(facts.n_rows, "row")
        findings.append(
            _look(
                f"The rows are those of {survey.source}, by their fingerprint other data than the "
                f"{fitted} of the fit. Sizes and distances are of these rows."
            )
        )
    if sizes_K is not None:
        findings += _size_findings(sizes_K)
        findings += _centroid_findings(facts, odd_K)
    findings += _row_findings(facts, survey)
    findings += _end_findings(facts)
    findings += _weight_findings(facts, survey)
    findings.sort(key=lambda finding: not finding.is_worth_a_look)
    rows, k = counted(n_rows, "row"), counted(facts.k, "cluster")
    headline = f"{rows} in {k}"
    if facts.model is None:
        headline += ", not finished"
    return Verdict(headline, _figures(facts, sizes_K, explained, survey), findings)


def _figures(
    facts: RunFacts, sizes_K: np.ndarray | None, explained: float | None, survey: Survey | None
) -> list[Figure]:
    found = []
    if explained is not None:
        found.append(
            Figure(
                "variance explained", percent(explained),
                "Of the variance of the rows, this share lies between clusters, the rest within "
                "them. It grows with the number of clusters, so compare it at the same number.",
            )
        )  # fmt: skip
    silhouette = None if survey is None else survey.evaluation.silhouette
    if silhouette is not None:
        found.append(
            Figure(
                "silhouette", f"{silhouette:.3f}",
                "The average row is nearer to its own centroid than to the next one by this share "
                "of the distance (simplified silhouette, from 0 to 1; near 0 clusters touch).",
            )
        )  # fmt: skip
    inertia = _inertia_per_row(facts)
    if inertia is not None:
        found.append(
            Figure(
                "inertia per row" + ("" if facts.model else ", so far"), number(inertia),
                "The mean squared distance of a row to its centroid. What counts as small depends "
                "on the data: compare runs on the same rows.",
            )
        )  # fmt: skip
    if sizes_K is not None and len(sizes_K):
        found.append(
            Figure(
                "rows in a cluster", f"{number(float(np.median(sizes_K)))}",
                f"The median; from {sizes_K.min():,} to {sizes_K.max():,}. These are the "
                f"{facts.sizes_are if survey is None else 'rows nearest to each centroid'}.",
            )
        )  # fmt: skip
    return found


def _inertia_per_row(facts: RunFacts) -> float | None:
    """Of the last pass, or the latest that is recorded."""
    clusters = facts.clusters
    if clusters is not None and clusters.inertia is not None:
        return clusters.inertia / (float(clusters.masses_K.sum()) or 1.0)
    recorded = [r.get("inertia_per_row") for r in facts.metrics]
    numbers = [float(value) for value in recorded if isinstance(value, int | float)]
    return numbers[-1] if numbers else None


def _state_findings(facts: RunFacts) -> list[Finding]:
    """Whether the run is finished."""
    if facts.model is not None:
        return []
    now = f"The run is not finished: it stands at {facts.stands}."
    if facts.owner is not None:
        return [_look(f"{now} {facts.owner} is working on it; make the report again "
                              "to see how far it has come.")]  # fmt: skip
    return [_look(f"{now} No process works on it; repeat its fit with --resume.")]


def _size_findings(sizes_K: np.ndarray) -> list[Finding]:
    """Empty, tiny and huge clusters."""
    total, mean = int(sizes_K.sum()), float(sizes_K.mean())
    if not total:
        return []
    found = []
    empty = np.flatnonzero(sizes_K == 0).tolist()
    if empty:
        have = "has" if len(empty) == 1 else "have"
        found.append(_look(f"{counted(len(empty), 'cluster')} {have} no row: {listed(empty)}."))
    small = np.flatnonzero(tiny(sizes_K))
    if len(small):
        small = small[np.argsort(sizes_K[small], kind="stable")]
        are = "is" if len(small) == 1 else "are"
        found.append(
            _look(
                f"{counted(len(small), 'cluster')} {are} tiny, below {percent(TINY)} of the "
                f"mean size: {listed(small.tolist())}. Outliers and duplicates often make such "
                "clusters.",
            )
        )
    if not len(empty) and not len(small):
        found.append(_fine("No cluster is empty, and none is tiny."))
    largest = int(sizes_K.argmax())
    share = sizes_K[largest] / total
    if len(sizes_K) > 2 and share >= HALF:
        found.append(
            _look(
                f"Cluster {largest} holds {percent(share)} of the rows: more clusters "
                "may divide it, or most rows are alike.",
            )
        )
    elif sizes_K[largest] >= LARGE * mean:
        found.append(
            _look(
                f"Cluster {largest} is {sizes_K[largest] / mean:.0f} times the mean "
                f"size, with {percent(share)} of the rows.",
            )
        )
    else:
        found.append(_fine(f"The largest cluster, {largest}, holds {percent(share)} of the rows."))
    if mean < FEW_ROWS:
        found.append(
            _look(
                f"A cluster has {mean:.3g} rows in the mean: with fewer than {FEW_ROWS} "
                "its centroid follows single rows.",
            )
        )
    return found


def _centroid_findings(facts: RunFacts, odd_K: np.ndarray | None) -> list[Finding]:
    """Centroids that coincide, and clusters of another width than most."""
    found = []
    if facts.clusters is not None:
        distinct = len(np.unique(facts.clusters.centroids_KD, axis=0))
        if distinct < facts.clusters.k:
            n_same = facts.clusters.k - distinct
            are = "is" if n_same == 1 else "are"
            found.append(
                _look(
                    f"{counted(n_same, 'centroid')} {are} equal to another one: the "
                    f"data may have only {distinct:,} distinct rows.",
                )
            )
    if odd_K is not None and odd_K.any():
        odd = np.flatnonzero(odd_K).tolist()
        are = "is" if len(odd) == 1 else "are"
        found.append(
            _look(
                f"{counted(len(odd), 'cluster')} {are} far wider or narrower than the "
                f"others: {listed(odd)}.",
            )
        )
    return found


def _row_findings(facts: RunFacts, survey: Survey | None) -> list[Finding]:
    """Rows that were dropped, and rows far from everything."""
    found = []
    dropped = survey.evaluation.n_dropped if survey else last_attempt(facts.metrics).get("dropped")
    if isinstance(dropped, int) and dropped:
        found.append(
            _look(
                f"{counted(dropped, 'row')} with NaN or infinity "
                f"{'was' if dropped == 1 else 'were'} dropped.",
            )
        )
    if survey is not None and survey.n_far is not None:
        if survey.n_far:
            share = survey.n_far / max(survey.evaluation.n_rows, 1)
            lie = "lies" if survey.n_far == 1 else "lie"
            found.append(
                _look(
                    f"{counted(survey.n_far, 'row')} ({percent(share)}) {lie} far from every "
                    "centroid, at 3 times the root mean square distance or more; "
                    "the examples name the farthest.",
                )
            )
        else:
            found.append(_fine("No row lies far from every centroid."))
    return found


def _end_findings(facts: RunFacts) -> list[Finding]:
    """What the end of training says."""
    found = []
    gain = last_attempt(facts.metrics).get("last_gain")
    if isinstance(gain, float) and gain >= GAINED:
        found.append(
            _look(
                f"The last pass still lowered the inertia by {percent(gain)}: more "
                "epochs may lower it further.",
            )
        )
    if facts.model is not None and not facts.sizes_are_exact:
        found.append(
            _look(
                "There was no closing pass, so exact sizes and the exact inertia are "
                "not in the run folder.",
            )
        )
    return found


def _weight_findings(facts: RunFacts, survey: Survey | None) -> list[Finding]:
    """Whether rows count in the figures of the pass as they did in the fit."""
    in_fit = facts.record["data"].get("weights")
    if survey is None:
        return [_fine("The fit counted rows by weights.")] if in_fit else []
    if survey.weights == in_fit:
        return [_fine("Rows count by their weights, as in the fit.")] if in_fit else []
    if survey.weights is None:
        return [
            _look(
                "The fit counted rows by weights. Silhouette, distances and sizes here count every "
                "row once; give the weights of the fit (--weights) for its own figures."
            )
        ]
    fit = "by other weights" if in_fit else "every row once"
    return [
        _look(
            f"The fit counted {'rows ' if in_fit else ''}{fit}; silhouette, distances and sizes "
            "here are by the weights that were given."
        )
    ]
