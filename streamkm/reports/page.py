"""The page: sections of plots, tables and examples, and the template that makes HTML of them.

jinja2 escapes every value; only the style sheet, and SVG that `streamkm.reports.theme.to_svg` has
serialised, are marked as safe. The page has no script, and a policy that forbids any: a name that
escaped the escaping could still not run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from streamkm import __version__
from streamkm.reports.theme import clean, to_svg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from streamkm.reports.examples import Example
    from streamkm.reports.verdict import Verdict

__all__ = ["GENERATOR", "Card", "Link", "Page", "Picture", "Plot", "Section", "Table", "render"]

#: What marks a file as a report of this package, which another may replace.
GENERATOR = '<meta name="generator" content="streamkm report'
#: Rows of a table, at most; of more, the first.
MOST_TABLE_ROWS = 1000


@dataclass(frozen=True)
class Table:
    """The numbers behind a plot."""

    head: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    title: str = "The numbers as a table"
    is_open: bool = False
    links: Mapping[str, str] = field(default_factory=dict)
    """Where the first cells of rows lead."""

    @property
    def shown(self) -> Sequence[Sequence[str]]:
        """The rows that the page has."""
        return self.rows[:MOST_TABLE_ROWS]

    @property
    def n_left_out(self) -> int:
        """Rows that it has not."""
        return max(len(self.rows) - MOST_TABLE_ROWS, 0)


@dataclass(frozen=True)
class Plot:
    """A figure, its text alternative, and its table."""

    name: str
    figure: Figure
    title: str
    description: str
    table: Table | None = None
    tips: dict[str, Sequence[str]] = field(default_factory=dict)

    @property
    def svg(self) -> Markup:
        """The figure as SVG."""
        # Serialised from a parsed tree, in which the user's texts are text.
        drawn = to_svg(self.figure, self.name, self.title, self.description, self.tips)
        return Markup(drawn)


@dataclass(frozen=True)
class Picture:
    """A centroid as a picture."""

    address: str
    text: str
    caption: str


@dataclass(frozen=True)
class Card:
    """What one cluster is like."""

    cluster: int
    facts: str
    picture: str = ""
    tells: Sequence[str] = ()
    nearest: Sequence[Example] = ()
    farthest: Sequence[Example] = ()


@dataclass(frozen=True)
class Link:
    """A file to open or to save."""

    address: str
    text: str
    download: str = ""


@dataclass
class Section:
    """One part of the report."""

    anchor: str
    title: str
    reads: str
    """How to read it."""
    plots: list[Plot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    code: str = ""


@dataclass(frozen=True)
class Page:
    """All that a report shows."""

    title: str
    subtitle: str
    made: str
    verdict: Verdict
    sections: list[Section]


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("streamkm.reports", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # A report holds lone surrogates and control characters of nobody's data.
        finalize=_finalized,
    )
    environment.globals["version"] = __version__
    return environment


def _finalized(value: Any) -> Any:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def render(page: Page) -> str:
    """The page as HTML that needs no other file."""
    style = Markup(files("streamkm.reports").joinpath("report.css").read_text("utf-8"))
    template = _environment().get_template("report.html")
    return template.render(page=page, style=style)
