"""The report of a sweep: every K side by side, the recommendation, and a page for each fit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from html import escape
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from streamkm.errors import RunError
from streamkm.files import expanded, make_directory, write_atomically
from streamkm.reports.facts import read_run
from streamkm.reports.page import Page, Plot, Section, Table, render
from streamkm.reports.run_report import check_is_free, make_report
from streamkm.reports.sweep_facts import read_sweep
from streamkm.reports.sweep_figures import MOST_IN_TREE, draw_comparison, draw_tree, levels_of
from streamkm.reports.theme import clean
from streamkm.reports.verdict import Figure, Finding, Verdict, number, percent
from streamkm.runs.reporting.progress import Progress
from streamkm.text import counted, now

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from matplotlib.figure import Figure as Drawing

    from streamkm.config import ExecutionConfig
    from streamkm.reports.run_report import Look, Report
    from streamkm.reports.sweep_facts import SweepFacts

__all__ = ["SweepReport", "make_sweep_report"]

#: Seconds between lines that say which page is being made.
LINE_EVERY_S = 5.0
#: Fits without a page of which the reason is named.
MOST_MISSING = 8


@dataclass(repr=False)
class SweepReport:
    """The report of a sweep; `save` writes its page, and one for each fit in a folder beside it.

    Attributes
    ----------
    facts : SweepFacts
        What sweep.json says.
    verdict : Verdict
        Headline, figures and findings.
    figures : dict of str to matplotlib.figure.Figure
        ``comparison``, and ``tree`` where K are few enough; of several scales and metrics these of
        each, ``comparison-0`` and so on.
    pages : dict of str to Report
        The report of each finished fit, by the name of its folder.
    missing : dict of str to str
        Why the others have none.
    """

    facts: SweepFacts
    verdict: Verdict
    figures: dict[str, Drawing]
    pages: dict[str, Report]
    missing: dict[str, str]
    _sections: list[Section] = field(repr=False)
    _quiet: bool = field(repr=False)

    def __repr__(self) -> str:
        return f"<SweepReport of {self.facts.path}: {self.verdict.headline}>"

    def html(self, folder: str = "") -> str:
        """The page, with links to those of the fits in `folder`; without links if it is empty."""
        record = self.facts.record
        rows, features = record["data"]["shape"]
        subtitle = (
            f"{record['source']}, {counted(rows, 'row')} x {counted(features, 'feature')}, "
            f"{record['data']['dtype']} · sweep {self.facts.path} of K "
            f"{', '.join(f'{k:,}' for k in self.facts.ks)}"
            + (f", {self.facts.n_seeds} seeds each" if self.facts.n_seeds > 1 else "")
        )
        fits = Section(
            "fits", "Fits", "Each fit is a run folder of its own, with all that a run has."
        )
        links = {name: f"{quote(folder)}/{quote(name)}.html" for name in self.pages}
        fits.tables.append(replace(_fits_table(self.facts), links=links if folder else {}))
        for name, why in list(self.missing.items())[:MOST_MISSING]:
            fits.notes.append(f"{name} has no page: {why}.")
        if len(self.missing) > MOST_MISSING:
            fits.notes.append(f"So it is with {len(self.missing) - MOST_MISSING:,} more.")
        title = f"{self.facts.path.name or self.facts.path}: {self.verdict.headline}"
        sections = [*self._sections, fits]
        return render(Page(title, subtitle, now(), self.verdict, sections))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to `path`, and those of the fits to ``NAME-runs`` beside ``NAME.html``.

        Raises
        ------
        OutputExistsError
            If a file is there that is no report.
        """
        target = expanded(path)
        folder = target.with_name(f"{target.stem}-runs")
        places = {name: folder / f"{name}.html" for name in self.pages}
        check_is_free(target)
        if places and not folder.is_dir():
            make_directory(folder)
        for place in places.values():
            check_is_free(place)
        written = _announced(places, "writing the page of", LINE_EVERY_S, quiet=self._quiet)
        for name in written:
            self.pages[name].save(places[name])
        write_atomically(target, self.html(folder.name if places else "").encode("utf-8"))
        return target

    def _repr_html_(self) -> str:
        """A summary for notebooks: the verdict."""
        findings = "".join(f"<li>{escape(f.text)}</li>" for f in self.verdict.findings)
        return f"<div><strong>{escape(self.verdict.headline)}</strong><ul>{findings}</ul></div>"


def make_sweep_report(
    path: Path,
    location: Any,
    options: Any,
    look: Look,
    execution: ExecutionConfig,
    *,
    quiet: bool = False,
) -> SweepReport:
    """The report of the sweep in the folder `path`.

    Rows are read only if `location` names them: once for each fit.
    """
    facts = read_sweep(path)
    look = replace(look, rows=look.rows and location is not None)
    look.check_rows_are_read("of a sweep name SOURCE for that")
    pages, missing = {}, {}
    names = [run["name"] for run in facts.runs]
    # The pass over the rows prints lines of its own, which do not say of which fit they are.
    for name in _announced(names, "reporting", 0.0 if look.rows else LINE_EVERY_S, quiet=quiet):
        # A sweep under way, or one of which a run was deleted, has fewer.
        try:
            read_run(path / name)
            pages[name] = make_report(path / name, location, options, look, execution, quiet=quiet)
        except RunError as error:
            missing[name] = clean(error.for_command_line)
    figures: dict[str, Drawing] = {}
    sections = []
    for place, part in enumerate(facts.parts):
        suffix, of = (f"-{place}", f": {part.space}") if part.space else ("", "")
        if part.figures:
            figure = figures[f"comparison{suffix}"] = draw_comparison(part)
            sections.append(_of_part(_comparison_section(part, figure), suffix, of))
        if (tree := _tree(part, pages)) is not None:
            figures[f"tree{suffix}"], section = tree
            sections.append(_of_part(section, suffix, of))
    return SweepReport(facts, _verdict(facts), figures, pages, missing, sections, quiet)


def _of_part(section: Section, suffix: str, of: str) -> Section:
    """`section` with a name and a title of its own, beside those of other scales and metrics."""
    plots = [replace(plot, name=f"{plot.name}{suffix}") for plot in section.plots]
    anchor, title = f"{section.anchor}{suffix}", f"{section.title}{of}"
    return replace(section, anchor=anchor, title=title, plots=plots)


def _announced(
    names: Collection[str], what: str, every_s: float, *, quiet: bool = False
) -> Iterator[str]:
    """Each of `names`, with a line on stderr that says so every `every_s` seconds."""
    with Progress(quiet=quiet) as progress:
        said_at = monotonic()
        for n, name in enumerate(names, 1):
            if monotonic() - said_at >= every_s:
                progress.say(f"{what} {name}, {n:,} of {len(names):,}")
                said_at = monotonic()
            yield name


def _verdict(facts: SweepFacts) -> Verdict:
    said = facts.recommendation
    if not said:
        text = "The sweep is not finished: its figures follow at its end."
        unfinished = Finding(is_worth_a_look=True, text=text)
        return Verdict("A sweep that is not finished", [], [unfinished])
    chosen = said["k"]
    headline = "No number of clusters stands out"
    if chosen is not None:
        headline = f"{counted(chosen, 'cluster')} stand{'s' if chosen == 1 else ''} out"
    elif any(part["k"] is not None for part in said.get("spaces", [])):
        headline = "What stands out depends on scale and metric"
    figures = [
        Figure(
            "recommended",
            "none" if chosen is None else f"{chosen:,} clusters",
            "The K that stands out, if one does. Silhouette and stability had to agree.",
        )
    ]
    best = _best(facts)
    if best is not None:
        of_seeds = ", the mean of its seeds" if facts.n_seeds > 1 else ""
        figures.append(
            Figure(
                "greatest silhouette" if facts.is_exact else "greatest simplified silhouette",
                f"{best[1]:.3f}",
                f"At {counted(best[0], 'cluster')}{of_seeds}. Near 1 clusters lie apart, near 0 "
                "they touch.",
            )
        )
    findings = [
        Finding(is_worth_a_look=chosen is None, text=_sentence(said["verdict"]), label="Verdict"),
        *(Finding(is_worth_a_look=False, text=_sentence(r), label="Why") for r in said["reasons"]),
    ]
    return Verdict(headline, figures, findings)


def _sentence(text: object) -> str:
    said = str(text).strip()
    return said[:1].upper() + said[1:] + "."


def _best(facts: SweepFacts) -> tuple[int, float] | None:
    """The K of the greatest silhouette and its value, the mean of its seeds as in the reasons.

    None of several scales or metrics, whose silhouettes cannot be compared.
    """
    if len(facts.parts) > 1:
        return None
    known = [(k, value) for k in facts.ks if (value := facts.mean_silhouette(k)) is not None]
    return max(known, key=lambda each: each[1], default=None)


def _comparison_section(facts: SweepFacts, figure: Drawing) -> Section:
    reads = (
        "From top to bottom. Inertia falls with K whatever the data: look for a bend, beyond which "
        "more clusters gain little. Silhouette is high where clusters lie apart. "
    )
    if facts.stability:
        reads += (
            "Stability is the adjusted Rand index of fits from different seeds, mean and least: "
            "near 1 they agree, and the clusters are not an accident of the seed. "
        )
    reads += (
        "The dashed line is the recommendation."
        if facts.recommendation.get("k") is not None
        else "No K is recommended."
    )
    rows = [
        [
            f"{row['k']:,}",
            str(row["seed"]),
            number(row["inertia_per_row"]),
            _cell(facts.silhouette_of(row)),
            _cell(facts.stability.get(row["k"], {}).get("mean")),
        ]
        for row in facts.figures
    ]
    plot = Plot(
        "comparison",
        figure,
        "Inertia, silhouette and stability over the number of clusters",
        f"{len(facts.ks)} numbers of clusters. "
        + _sentence(facts.recommendation.get("verdict", "")),
        Table(("clusters", "seed", "inertia per row", "silhouette", "stability"), rows),
    )
    notes = [] if facts.is_exact else ["The silhouette is the simplified one."]
    if (n_sampled := facts.figures[0].get("sampled_rows")) is not None:
        notes.append(f"Silhouette and stability are those of a sample of {n_sampled:,} rows.")
    return Section("comparison", "Every K side by side", reads, plots=[plot], notes=notes)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _fits_table(facts: SweepFacts) -> Table:
    """All figures of all fits."""
    figures = {row["name"]: row for row in facts.figures}
    head = ("fit", "clusters", "seed", "explained", "rows: least", "median", "most", "empty")
    rows = []
    for run in facts.runs:
        row = figures.get(run["name"], {})
        explained = row.get("explained_variance")
        sizes = (row.get(f"{which}_rows") for which in ("least", "median", "most"))
        cells = ["" if size is None else f"{size:,}" for size in sizes]
        share = "" if explained is None else percent(explained)
        empty = str(row.get("empty_clusters", ""))
        rows.append([run["name"], f"{run['k']:,}", str(run["seed"]), share, *cells, empty])
    return Table(head, rows, "All fits", is_open=True)


def _tree(facts: SweepFacts, pages: dict[str, Report]) -> tuple[Drawing, Section] | None:
    """How clusters of one K divide in the next, of the fit of least inertia of each K."""
    best = {}
    for k in facts.ks:
        rows = [row for row in facts.by_k(k) if row["name"] in pages]
        if rows and k <= MOST_IN_TREE:
            best[k] = min(rows, key=lambda row: float(row["inertia_per_row"]))["name"]
    found = [pages[name].facts.clusters for name in best.values()]
    clusters = [each for each in found if each is not None]
    if len(clusters) < 2 or len(clusters) < len(best):
        return None
    levels = levels_of(clusters)
    figure = draw_tree(levels, list(best))
    cells = list(_tree_rows(list(best), levels))
    plot = Plot(
        "tree",
        figure,
        "How clusters of one K divide in the next",
        f"Columns of {', '.join(map(str, best))} clusters, joined by nearest centroids.",
        Table(("clusters", "cluster", "rows", "nearest of the column before"), cells),
    )
    reads = (
        "A column for each K, a box for each cluster, its height the rows. A band leads to the "
        "cluster of the column before whose centroid is nearest. Where a box keeps its band from "
        "column to column, a cluster stays; where it fans out, it is divided. The fit of least "
        "inertia stands for its K. Nearest centroids are a shortcut: single rows may go elsewhere."
    )
    left_out = len(facts.ks) - len(best)
    notes = [f"K above {MOST_IN_TREE} are left out here."] if left_out else []
    return figure, Section("tree", "How clusters divide", reads, plots=[plot], notes=notes)


def _tree_rows(ks: list[int], levels: Iterable[Any]) -> Iterable[list[str]]:
    for place, (k, level) in enumerate(zip(ks, levels, strict=True)):
        for cluster in level.order:
            parent = str(level.parents_K[cluster]) if place else ""
            yield [f"{k:,}", str(cluster), f"{level.sizes_K[cluster]:,}", parent]
