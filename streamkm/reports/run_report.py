"""The report of one run: reads the run folder and its rows, judges, draws, and writes one page."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.errors import ConfigError, Option, OutputExistsError
from streamkm.files import expanded, read_bytes, write_atomically
from streamkm.reports import sections
from streamkm.reports.course import draw_course, draw_stages, intervals
from streamkm.reports.examples import Example, examples_of
from streamkm.reports.facts import read_run
from streamkm.reports.figures import draw_map, draw_sizes, draw_spread
from streamkm.reports.measures import explained_variance, project
from streamkm.reports.page import GENERATOR, Card, Page, Picture, Section, render
from streamkm.reports.profiles import FEW_FEATURES, ImageShape, draw_profiles, profiles
from streamkm.reports.rows import OpenedRows, open_rows, shown_by
from streamkm.reports.survey import survey
from streamkm.reports.verdict import judge, number, percent, tiny
from streamkm.runs.reporting.signals import StopRequest
from streamkm.sources import open_weights
from streamkm.text import counted, now

if TYPE_CHECKING:
    import os

    from matplotlib.figure import Figure

    from streamkm.config import ExecutionConfig
    from streamkm.reports.facts import RunFacts
    from streamkm.reports.profiles import Profiles
    from streamkm.reports.survey import Survey
    from streamkm.reports.verdict import Verdict
    from streamkm.sources import Source, Weights

__all__ = ["Look", "Report", "check_is_free", "make_report"]

#: Clusters that have a card: the largest, and then those that the verdict names.
MOST_CARDS, LARGEST_CARDS = 60, 44
#: Bytes of the pictures of centroids in one report, at most.
GALLERY_BYTES = 800_000
#: Bytes whose greatest centroid value is below this are no pictures of 0 to 255: values of 0 to 16
#: would all be black. White is that greatest value then.
DARK = 64
#: Rows that are listed as far from everything.
MOST_FAR = 20
#: Clusters up to which a CSV of all is part of the page.
MOST_IN_CSV = 200_000


@dataclass(frozen=True)
class Look:
    """What a report is to show beyond what the run folder says."""

    rows: bool = True
    """Whether the rows are read."""
    image: str | None = None
    """How a row is an image, such as ``8x8x3``."""
    features_from: Any = None
    """Names of the features: a text file with one a line, or the names."""
    ids: Any = None
    """See `streamkm.reports.values.open_values`; and of the next two."""
    texts: Any = None
    image_files: Any = None
    sample_weight: Any = None
    """How much each row counts, as `streamkm.sources.open_weights` takes it."""

    @property
    def lists(self) -> dict[str, Any]:
        """What was given for each option that says how rows are shown."""
        return {"ids": self.ids, "texts": self.texts, "image_files": self.image_files}

    def check_rows_are_read(self, remedy: str) -> None:
        """Refuse what is said of rows that are not read."""
        for name, given in {**self.lists, "sample_weight": self.sample_weight}.items():
            if given is not None and not self.rows:
                does = "weighs rows" if name == "sample_weight" else "says how rows are shown"
                raise ConfigError(Option(name), f" {does}, and no rows are read; {remedy}")


@dataclass(repr=False)
class Report:
    """The report of one run; `save` writes it as one HTML file.

    Attributes
    ----------
    facts : RunFacts
        What the run folder says.
    seen : Survey or None
        What the pass over the rows has found: for each cluster its size, the mean distance of its
        rows, and the nearest and the farthest of them.
    verdict : Verdict
        Headline, figures and findings.
    figures : dict of str to matplotlib.figure.Figure
        The plots, by name: ``sizes``, ``spread``, ``map``, ``profiles``, ``course``, ``stages``,
        those that there are. Change them before `save`, and the page has them as they are then.
    """

    facts: RunFacts
    seen: Survey | None
    verdict: Verdict
    figures: dict[str, Figure]
    _sections: list[Section] = field(repr=False)
    _subtitle: str = field(repr=False)

    def __repr__(self) -> str:
        return f"<Report of {self.facts.path}: {self.verdict.headline}>"

    def html(self) -> str:
        """The page, complete in itself."""
        title = f"{self.facts.path.name or self.facts.path}: {self.verdict.headline}"
        return render(Page(title, self._subtitle, now(), self.verdict, self._sections))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to `path`, whole or not at all.

        Raises
        ------
        OutputExistsError
            If a file is there that is no report.
        """
        target = expanded(path)
        check_is_free(target)
        write_atomically(target, self.html().encode("utf-8"))
        return target

    def _repr_html_(self) -> str:
        """A summary for notebooks: the verdict."""
        figures = "".join(
            f"<tr><th style='text-align:left'>{escape(f.name)}</th><td>{escape(f.value)}</td></tr>"
            for f in self.verdict.figures
        )
        findings = "".join(f"<li>{escape(f.text)}</li>" for f in self.verdict.findings)
        return (
            f"<div><strong>{escape(self.verdict.headline)}</strong><table>{figures}</table>"
            f"<ul>{findings}</ul></div>"
        )


def check_is_free(path: Path) -> None:
    """Refuse a `path` that holds anything but an older report, or lies in no folder."""
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder; name a file to write to, such as report.html")
    if path.exists() and GENERATOR.encode() not in read_bytes(path)[:400]:
        raise OutputExistsError(f"{path} exists and is no report; choose another name")
    if not path.parent.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no folder {path.parent}; make it")


def make_report(
    run: Path,
    location: Any,
    options: Any,
    look: Look,
    execution: ExecutionConfig,
    *,
    quiet: bool = False,
) -> Report:
    """The report of the run in the folder `run`; `execution` says how its rows are read."""
    look.check_rows_are_read("read them, or leave it out")
    facts = read_run(run)
    names = _names(facts, look)
    shape = None if look.image is None else ImageShape.parse(look.image)
    if shape is not None:
        shape.check(facts.n_features)
    with closing(open_rows(facts, location, options, wanted=look.rows)) as opened:
        limits = _limits(facts)
        shown = shown_by(opened, look.lists, shape, limits, Path())
        seen = None
        if opened.source is not None and facts.clusters is not None and facts.model is not None:
            with (
                StopRequest(with_warnings=False) as stop_request,
                _weights(look, opened.source) as weights,
            ):
                seen = survey(
                    run, opened.source, execution, k=facts.clusters.k,
                    unit=facts.model.scaling.unit, rms_distance=_rms_distance(facts),
                    nan=None, stop_request=stop_request, weights=weights, quiet=quiet,
                )  # fmt: skip
        builder = _Builder(facts, seen, opened, names, shape, limits)
        return builder.build(shown)


def _weights(look: Look, source: Source) -> AbstractContextManager[Weights | None]:
    """The weights of the rows, closed at the end of a ``with`` block; or None."""
    if look.sample_weight is None:
        return nullcontext()
    return closing(open_weights(look.sample_weight, source.spec.n_rows))


class _Builder:
    """Puts the parts of one report together."""

    def __init__(
        self, facts: RunFacts, seen: Survey | None, opened: OpenedRows, names: tuple[str, ...],
        shape: ImageShape | None, limits: tuple[float, float],
    ) -> None:  # fmt: skip
        self.facts, self.seen, self.opened = facts, seen, opened
        self.names, self.shape, self.limits = names, shape, limits
        self.figures: dict[str, Figure] = {}
        self.sections: list[Section] = []
        clusters = facts.clusters
        self.sizes_K = seen.sizes_K if seen else clusters.sizes_K if clusters else None
        self.distances_K = seen.mean_distance_K if seen else None
        self.odd_K: np.ndarray | None = None
        self.pictures_K: dict[int, str] = {}
        self.profiles: Profiles | None = None

    def build(self, shown: Any) -> Report:
        """The report."""
        if self.sizes_K is not None:
            self._clusters(shown)
        facts = self.facts
        course, stages = draw_course(facts.metrics), draw_stages(intervals(facts.metrics))
        for name, figure in (("course", course), ("stages", stages)):
            if figure is not None:
                self.figures[name] = figure
        self.sections.append(sections.course_section(facts, course, stages))
        self.sections.append(sections.settings_section(facts))
        explained = None if facts.clusters is None else explained_variance(facts.clusters)
        other = {"is_other": self.opened.is_other}
        verdict = judge(facts, self.sizes_K, explained, self.seen, self.odd_K, **other)
        subtitle = (
            f"{facts.record['source']}, {counted(facts.n_features, 'feature')}, "
            f"{facts.record['data']['dtype']} · run {facts.path}"
        )
        return Report(facts, self.seen, verdict, self.figures, self.sections, subtitle)

    def _clusters(self, shown: Any) -> None:
        """The sections about clusters."""
        facts, sizes_K = self.facts, self.sizes_K
        assert facts.clusters is not None
        assert sizes_K is not None
        by = facts.sizes_are if self.seen is None else "each row in its nearest cluster"
        figure = self.figures["sizes"] = draw_sizes(sizes_K, tiny(sizes_K))
        projection = project(facts.clusters)
        self.sections.append(sections.sizes_section(facts, sizes_K, by, figure, []))
        if self.seen is not None:
            figure, self.odd_K = draw_spread(sizes_K, self.seen.mean_distance_K)
            self.figures["spread"] = figure
            self.sections.append(sections.spread_section(self.seen, self.odd_K, figure))
        if projection is not None:
            figure = self.figures["map"] = draw_map(projection, sizes_K, self.distances_K)
            self.sections.append(
                sections.map_section(projection, sizes_K, self.distances_K, self.names, figure)
            )
        self.sections[0].links += self._csv(projection)
        if self.shape is not None:
            self._images()
        else:
            self._profiles()
        self._examples(shown)

    def _csv(self, projection: Any) -> list[Any]:
        assert self.sizes_K is not None
        if len(self.sizes_K) > MOST_IN_CSV:
            return []
        columns: dict[str, Any] = {"cluster": range(len(self.sizes_K)), "rows": self.sizes_K}
        if self.seen is not None:
            columns["mean_distance"] = [f"{d:.6g}" for d in self.seen.mean_distance_K]
            columns["nearest_row"] = self.seen.nearest.rows_KM[:, 0]
            columns["farthest_row"] = self.seen.farthest.rows_KM[:, 0]
        if projection is not None:
            for place, name in enumerate(("x", "y")):
                columns[name] = [f"{value:.6g}" for value in projection.at_KA[:, place]]
        return [sections.cluster_csv(columns)]

    def _images(self) -> None:
        """The gallery of centroids."""
        assert self.facts.clusters is not None
        assert self.shape is not None
        assert self.sizes_K is not None
        spent, gallery = 0, []
        for cluster in np.argsort(-self.sizes_K, kind="stable").tolist():
            address = self.shape.address(self.facts.clusters.points_KD[cluster], *self.limits)
            spent += len(address)
            if spent > GALLERY_BYTES:
                break
            self.pictures_K[cluster] = address
            text = f"cluster {cluster}: {self.sizes_K[cluster]:,} rows"
            gallery.append(Picture(address, text, str(cluster)))
        self.sections.append(sections.images_section(gallery, self.facts.k))

    def _profiles(self) -> None:
        """The heat map, where features are few or have names."""
        clusters = self.facts.clusters
        assert clusters is not None
        if not self.names and clusters.n_features > FEW_FEATURES:
            return
        names = self.names or tuple(f"feature {d}" for d in range(clusters.n_features))
        assert self.sizes_K is not None
        self.profiles = profiles(clusters.points_KD, clusters.masses_K, self.sizes_K)
        figure = self.figures["profiles"] = draw_profiles(self.profiles, names)
        self.sections.append(sections.profiles_section(self.profiles, names, clusters.k, figure))

    def _examples(self, shown: Any) -> None:
        """The cards of clusters, and the rows that are farthest from everything."""
        facts, sizes_K = self.facts, self.sizes_K
        assert sizes_K is not None
        notes = [self.opened.why_not] if self.opened.why_not else []
        if self.opened.is_other and self.seen is not None:
            notes.append(
                f"The rows are those of {self.seen.source}: by their fingerprint other data than "
                "the fit's. Sizes and distances are of these rows."
            )
        chosen = self._chosen()
        examples = {} if self.seen is None else examples_of(self.seen, chosen, shown)
        cards = [self._card(cluster, *examples.get(cluster, ((), ()))) for cluster in chosen]
        far = self._far(shown)
        if self.seen is not None or self.pictures_K or self.profiles:
            self.sections.append(sections.examples_section(cards, facts.k, far, notes))
        else:
            section = sections.examples_section([], 0, [], notes)
            section.reads = "Examples are rows of each cluster, and take a pass over the rows."
            self.sections.append(section)

    def _chosen(self) -> list[int]:
        """The clusters that have a card: the largest, then those that are strange."""
        assert self.sizes_K is not None
        order = [c for c in np.argsort(-self.sizes_K, kind="stable").tolist() if self.sizes_K[c]]
        if len(order) <= MOST_CARDS:
            return order
        chosen = order[:LARGEST_CARDS]
        strange_K = tiny(self.sizes_K)
        if self.odd_K is not None:
            strange_K = strange_K | self.odd_K
        rest = order[LARGEST_CARDS:]
        # A stable sort leaves the largest first among those that are strange, and among the others.
        rest.sort(key=lambda cluster: not strange_K[cluster])
        return chosen + rest[: MOST_CARDS - LARGEST_CARDS]

    def _card(self, cluster: int, nearest: Any, farthest: Any) -> Card:
        assert self.sizes_K is not None
        rows = int(self.sizes_K[cluster])
        said = f"{counted(rows, 'row')} ({percent(rows / (int(self.sizes_K.sum()) or 1))})"
        if self.distances_K is not None:
            said += f", mean distance {number(float(self.distances_K[cluster]))}"
        tells = []
        if self.profiles is not None and self.names:
            found = self.profiles.tells.get(cluster, [])
            tells = [f"{self.names[d]} {z:+.1f}" for d, z in found]
        return Card(cluster, said, self.pictures_K.get(cluster, ""), tells, nearest, farthest)

    def _far(self, shown: Any) -> list[tuple[int, Example]]:
        """The rows farthest from their centroids, by cluster, farthest first."""
        if self.seen is None:
            return []
        farthest = self.seen.farthest
        distances_KM = np.where(farthest.rows_KM < 0, -np.inf, farthest.distances_KM)
        order = np.argsort(-distances_KM, axis=None, kind="stable")[:MOST_FAR]
        clusters, places = np.unravel_index(order, distances_KM.shape)
        found = [
            (int(c), int(farthest.rows_KM[c, m]), float(distances_KM[c, m]))
            for c, m in zip(clusters, places, strict=True)
            if farthest.rows_KM[c, m] >= 0
        ]
        labels = {} if shown.ids is None else shown.ids.at([row for _, row, _ in found])
        return [(c, Example(row, d, label=labels.get(row, ""))) for c, row, d in found]


def _names(facts: RunFacts, look: Look) -> tuple[str, ...]:
    """Names of the features, as given or as the run has them."""
    given = look.features_from
    if given is None:
        return facts.names
    what = Option("features_from")
    if isinstance(given, str | Path):
        what = Option("features_from", str(given))
        try:
            given = expanded(given).read_text("utf-8", errors="replace").splitlines()
        except OSError as error:
            raise ConfigError(
                what, f": cannot be read ({error.strerror}); name a text file with a name a line"
            ) from error
    names = tuple(map(str, given))
    if len(names) != facts.n_features:
        raise ConfigError(
            what, f" has {len(names):,} names, the run has {facts.n_features:,} features; give one "
            "for each"
        )  # fmt: skip
    return names


def _limits(facts: RunFacts) -> tuple[float, float]:
    """The values that are black and white: those of the stored type, or those of the centroids."""
    if facts.clusters is None:
        return 0.0, 1.0
    points_KD = facts.clusters.points_KD
    low, high = float(points_KD.min()), float(points_KD.max())
    if facts.record["data"]["dtype"] == "uint8":
        return 0.0, high if 0 < high < DARK else 255.0
    return low, high


def _rms_distance(facts: RunFacts) -> float | None:
    """Root mean square distance of the rows of the fit; None if it is not known."""
    clusters, model = facts.clusters, facts.model
    if clusters is None or model is None:
        return None
    inertia = clusters.inertia
    mass = float(clusters.masses_K.sum())
    if inertia is None:
        inertia, mass = float(model.figures.get("epoch_inertia", math.nan)), float(facts.n_rows)
    found = math.sqrt(inertia / mass) if mass and inertia > 0 else math.nan
    return found if math.isfinite(found) else None
