"""The sections of the report of one run, from what is known of it."""

from __future__ import annotations

import base64
import csv
import io
import shlex
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.config import FitConfig
from streamkm.errors import Option
from streamkm.reports.course import STAGES, intervals, last_attempt
from streamkm.reports.figures import uneven
from streamkm.reports.page import Card, Link, Picture, Plot, Section, Table
from streamkm.reports.verdict import listed, number, percent
from streamkm.runs.engine.summary import Spread
from streamkm.runs.storage.metrics_file import inertia_course
from streamkm.runs.storage.run_folder import choice_of
from streamkm.stream.stages import TOO_SHORT_S
from streamkm.tables import ALGORITHMS
from streamkm.text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from streamkm.reports.examples import Example
    from streamkm.reports.facts import RunFacts
    from streamkm.reports.measures import Projection
    from streamkm.reports.profiles import Profiles
    from streamkm.reports.survey import Survey

__all__ = [
    "cluster_csv",
    "course_section",
    "examples_section",
    "images_section",
    "map_section",
    "profiles_section",
    "repeat_command",
    "settings_section",
    "sizes_section",
    "spread_section",
]

#: A map that shows less of the variance than this share comes with a warning.
LITTLE = 0.2


def sizes_section(
    facts: RunFacts, sizes_K: np.ndarray, counted_by: str, figure: Figure, links: list[Link]
) -> Section:
    """Rows of each cluster."""
    total = int(sizes_K.sum()) or 1
    order = np.argsort(-sizes_K, kind="stable").tolist()
    rows = [[str(c), f"{sizes_K[c]:,}", percent(sizes_K[c] / total)] for c in order]
    alike = float(np.median(sizes_K))
    return Section(
        "sizes",
        "Sizes",
        f"Clusters from the largest to the smallest, by their rows ({counted_by}). The dashed line "
        "is the mean size. A long low tail means many small clusters; tiny ones are orange. "
        f"In numbers: {Spread.of(sorted(sizes_K.tolist()))}."
        + (" The axis is logarithmic: a step up is a multiple." if uneven(sizes_K) else ""),
        plots=[
            Plot(
                "sizes", figure, "Rows of each cluster, largest first",
                f"{facts.k} clusters of {sizes_K.min():,} to {sizes_K.max():,} rows, "
                f"{number(alike)} in the median.",
                Table(("cluster", "rows", "share"), rows),
            )
        ],
        links=links,
    )  # fmt: skip


def spread_section(survey: Survey, odd_K: np.ndarray, figure: Figure) -> Section:
    """Mean distance against size."""
    sizes_K, distances_K = survey.sizes_K, survey.mean_distance_K
    order = np.argsort(-np.nan_to_num(distances_K, nan=-1), kind="stable").tolist()
    rows = [
        [
            str(c), f"{sizes_K[c]:,}", number(float(distances_K[c])),
            number(survey.farthest.of(c)[0][1]), "yes" if odd_K[c] else "",
        ]
        for c in order
        if sizes_K[c]
    ]  # fmt: skip
    present = np.flatnonzero((sizes_K > 0) & np.isfinite(distances_K))
    tips = [
        f"cluster {c}: {sizes_K[c]:,} rows, mean distance {number(float(distances_K[c]))}"
        for c in present.tolist()
    ]
    odd = np.flatnonzero(odd_K).tolist()
    notes = []
    if odd:
        notes.append(
            f"Orange: {listed(odd)}. Their mean distance lies more than 3.5 modified z-scores from "
            "the median (Iglewicz and Hoaglin 1993)."
        )
    return Section(
        "spread",
        "Spread",
        "Each dot is a cluster: how many rows it has, and how far they lie from its centroid on "
        "average. The dashed line is the median. A dot far above it is a loose cluster, which "
        "may be several in one; a dot far below is a tight one, often of near duplicates.",
        plots=[
            Plot(
                "spread", figure, "Mean distance of clusters against their sizes",
                f"{len(present)} clusters; {len(odd)} of them are outliers.",
                Table(("cluster", "rows", "mean distance", "greatest distance", "outlier"), rows),
                {"points": tips},
            )
        ],
        notes=notes,
    )  # fmt: skip


def map_section(
    projection: Projection, sizes_K: np.ndarray, distances_K: np.ndarray | None,
    names: Sequence[str], figure: Figure,
) -> Section:  # fmt: skip
    """The map of the centroids."""
    order = np.argsort(-sizes_K, kind="stable").tolist()

    def spread(cluster: int) -> list[str]:
        return [] if distances_K is None else [number(float(distances_K[cluster]))]

    rows = [
        [str(c), *(f"{value:.4g}" for value in projection.at_KA[c]), f"{sizes_K[c]:,}", *spread(c)]
        for c in order
    ]
    head: tuple[str, ...] = ("cluster", "first component", "second component", "rows")
    head += () if distances_K is None else ("mean distance",)
    colour = "" if distances_K is None else " Its colour is the mean distance of its rows to it."
    notes = []
    if projection.share < LITTLE:
        notes.append(
            "That is little: most of how centroids differ cannot be seen here, and neighbours on "
            "this map need not be alike."
        )
    if names:
        for axis, place in zip(projection.axes_AD, ("first", "second"), strict=True):
            best = np.argsort(-np.abs(axis), kind="stable")[:4]
            said = ", ".join(f"{names[d]} ({axis[d]:+.2f})" for d in best if axis[d])
            notes.append(f"The {place} component is mostly {said}.")
    return Section(
        "map",
        "Map of the centroids",
        "Each disc is a centroid, its area the rows of its cluster."
        + colour
        + " The plane is the flat view that keeps most of how centroids differ: "
        f"{percent(projection.share)} of the variance between clusters. Centroids that lie far "
        "apart here are far apart; those that lie together may still differ in what is not shown.",
        plots=[
            Plot(
                "map", figure, "Map of the centroids",
                f"{len(sizes_K)} centroids on their first two principal components, weighted by "
                f"size, which show {percent(projection.share)} of the variance between clusters.",
                Table(head, rows),
                {"points": [f"cluster {c}: {sizes_K[c]:,} rows" for c in order]},
            )
        ],
        notes=notes,
    )  # fmt: skip


def profiles_section(found: Profiles, names: Sequence[str], k: int, figure: Figure) -> Section:
    """The heat map of centroids by feature."""
    shown = [names[d] for d in found.features]
    rows = [
        [str(c), *(f"{z:+.2f}" for z in z_F)]
        for c, z_F in zip(found.clusters.tolist(), found.z_CF, strict=True)
    ]
    notes = []
    if len(found.clusters) < k:
        notes.append(f"The {len(found.clusters)} largest of {k:,} clusters are shown.")
    if len(shown) < len(names):
        notes.append(
            f"{len(shown)} of {len(names):,} features are shown: those in which one of these "
            "clusters lies farthest from the mean."
        )
    return Section(
        "profiles",
        "Profiles",
        "How far each centroid lies above (orange) or below (blue) the mean in each feature, in "
        "standard deviations between clusters. A row of strong colours is what sets a cluster "
        "apart; a pale one is an average cluster.",
        plots=[
            Plot(
                "profiles", figure, "Centroids by feature",
                f"{len(found.clusters)} clusters by {len(shown)} features.",
                Table(("cluster", *shown), rows),
            )
        ],
        notes=notes,
    )  # fmt: skip


def images_section(pictures: list[Picture], k: int) -> Section:
    """The gallery of centroids."""
    notes = []
    if len(pictures) < k:
        notes.append(f"The {len(pictures):,} largest of {k:,} clusters are shown.")
    return Section(
        "images",
        "Centroids as images",
        "Each image is a centroid, the mean of the rows of its cluster, with its number. The "
        "largest cluster comes first. A blurred image is the mean of rows that differ.",
        pictures=pictures,
        notes=notes,
    )


def examples_section(cards: list[Card], k: int, far: list[tuple[int, Example]], notes: list[str]
) -> Section:  # fmt: skip
    """The cards of clusters, and the rows that are farthest from everything."""
    reads = (
        "Of each cluster the rows nearest to its centroid show what it is about; the farthest show "
        "where it ends. If those do not belong, more clusters may help."
    )
    notes = list(notes)
    if len(cards) < k:
        notes.append(
            f"{len(cards)} of {k:,} clusters are shown: the largest, then those that the verdict "
            "names."
        )
    tables = []
    if far:
        rows = [[str(e.row), e.label, str(cluster), number(e.distance)] for cluster, e in far]
        is_named = any(e.label for _, e in far)
        head: tuple[str, ...] = ("row", "id", "cluster", "distance")
        if not is_named:
            head, rows = ("row", "cluster", "distance"), [[r[0], *r[2:]] for r in rows]
        tables = [Table(head, rows, "The rows farthest from every centroid")]
    return Section("examples", "Examples", reads, cards=cards, notes=notes, tables=tables)


def course_section(facts: RunFacts, course: Figure | None, stages: Figure | None) -> Section:
    """How the run went."""
    section = Section(
        "course",
        "How the run went",
        "Inertia should fall and level out; if it still falls at the end, more epochs would lower "
        "it. The squared shift is how far the centroids moved, and should become small. The stage "
        "that is at work all the time is the bottleneck.",
    )
    if not facts.metrics:
        section.reads = "How the run went is not known: the run folder has no metrics.jsonl."
        return section
    if course is not None:
        records = inertia_course(facts.metrics)
        rows = [
            [f"{r['total_rows']:,}", r["phase"], _cell(r.get("inertia_per_row")),
             _cell(r.get("shift"))]
            for r in records
        ]  # fmt: skip
        first, last = records[0]["inertia_per_row"], records[-1]["inertia_per_row"]
        section.plots.append(
            Plot(
                "course", course, "Inertia and shift over rows",
                f"Inertia per row went from {number(first)} to {number(last)} in "
                f"{counted(len(records), 'record')}.",
                Table(("rows read", "phase", "inertia per row", "squared shift"), rows),
            )
        )  # fmt: skip
    if stages is not None:
        found = intervals(facts.metrics)
        rows = [
            [f"{each.end_s:.1f}", each.phase, f"{each.rows_per_s:,.0f}",
             *(f"{share.get(name, 0.0):.0%}" for name in STAGES
               for share in (each.busy, each.waited))]
            for each in found
        ]  # fmt: skip
        head: tuple[str, ...] = ("until second", "phase", "rows per second")
        head += tuple(f"{name} {what}" for name in STAGES for what in ("worked", "waited"))
        section.plots.append(
            Plot(
                "stages", stages, "Rows per second, and stages at work, over time",
                f"{counted(len(found), 'interval')} over {found[-1].end_s:.1f} seconds.",
                Table(head, rows),
            )
        )  # fmt: skip
    section.notes += _time_notes(last_attempt(facts.metrics))
    return section


def _cell(value: object) -> str:
    return number(float(value)) if isinstance(value, int | float) else ""


def _time_notes(end: dict[str, Any]) -> list[str]:
    """Where the time of the last attempt went, in words."""
    notes = []
    seconds = end.get("seconds")
    if isinstance(seconds, dict) and seconds:
        total = sum(seconds.values()) or 1.0
        parts = ", ".join(f"{name} {s / total:.0%}" for name, s in seconds.items())
        notes.append(f"The last attempt took {total:,.1f} s in its phases: {parts}.")
    streamed_s = sum(seconds.get(phase, 0) for phase in ("train", "close")) if seconds else 0
    if "bottleneck" in end and "busy_share" in end and streamed_s >= TOO_SHORT_S:
        reached = end.get("share_of_probe")
        of_probe = f", at {reached:.0%} of what it can do alone" if reached else ""
        notes.append(
            f"The bottleneck was {end['bottleneck']}, at work {end['busy_share']:.0%} of the time "
            f"that rows streamed{of_probe}."
        )
    if isinstance(end.get("stopped_by"), str):
        notes.append(f"It stopped because: {end['stopped_by']}.")
    return notes


def settings_section(facts: RunFacts) -> Section:
    """Settings, fingerprint, and the command that repeats the run."""
    data = facts.record["data"]
    rows = [
        ["source", str(facts.record["source"])],
        ["shape", f"{facts.n_rows:,} x {facts.n_features:,} {data['dtype']}"],
        *([["rows", data["chosen"]]] if data.get("chosen") else []),
        ["fingerprint of the data", str(data.get("fingerprint", ""))],
        *([name.replace("_", "-"), str(value)] for name, value in facts.settings.items()),
    ]
    command, notes = repeat_command(facts)
    return Section(
        "settings",
        "Settings",
        "The same command on data of the same fingerprint gives the same clusters, bit for bit on "
        "the same kind of machine.",
        tables=[Table(("setting", "value"), rows, "All settings")],
        code=command,
        notes=notes,
    )


def repeat_command(facts: RunFacts) -> tuple[str, list[str]]:
    """The command that repeats the run, and what it does not say."""
    settings, data = facts.settings, facts.record["data"]
    given = FitConfig(k=facts.k, algorithm=settings.get("algorithm", "minibatch"))
    usual = given.resolved(facts.n_rows, facts.n_features).as_dict()
    usual["algorithm"] = next(iter(ALGORITHMS))
    words = ["streamkm", "fit", str(facts.record["source"]), "--k", str(facts.k)]
    notes = []
    for name, value in settings.items():
        if name == "k" or value == usual.get(name) or value is None:
            continue
        flag = Option(name).flag[2:]
        if name == "init" and (" " in str(value) or value == "given"):
            words += ["--init", "CENTROIDS.npy"]
            notes.append(f"The first centroids were given ({value}): name a file of them.")
        elif name == "from_run":
            words += ["--from", "RUN"]
            notes.append(f"It went on from another run ({value}): name its folder.")
        elif isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    for value in data.get("nodata") or ():
        words += ["--nodata", str(value)]
    for name, value in choice_of(facts.record).items():
        words += [Option(name).flag, str(value)]
    if data.get("scaled"):
        words.append("--apply-scale")
    if data.get("weights"):
        words += ["--weights", "WEIGHTS.npy"]
        notes.append(f"Rows had weights (fingerprint {data['weights']}): name that file.")
    notes.append(
        "Options that say how to read the source, such as --column or --dataset, are not recorded: "
        "add those that were given."
    )
    return shlex.join([*words, "--out", str(facts.path)]), notes


def cluster_csv(columns: dict[str, Sequence[Any]]) -> Link:
    """All clusters as a file to save, one a line."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    content = base64.b64encode(buffer.getvalue().encode()).decode("ascii")
    return Link(f"data:text/csv;base64,{content}", "Save all clusters as CSV", "clusters.csv")
