"""The look of figures, and their way into a page: SVG whose colours and text follow the page.

Figures are drawn in the colours of the light page. In the SVG each of those becomes a CSS
variable, so that one drawing serves a dark page and paper too. Text stays text: it is found, read
aloud and copied. Nothing that the user's data names is taken for mathematics, as matplotlib would
take ``$``.
"""

from __future__ import annotations

import io
import re
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axis import Axis

__all__ = [
    "ACCENT",
    "DIVERGING",
    "GRID",
    "INK",
    "MUTED",
    "OTHER",
    "SEQUENTIAL",
    "SURFACE",
    "THIRD",
    "WARN",
    "clean",
    "make_logarithmic",
    "new_figure",
    "to_svg",
]

#: Colours of the light page. The data's are of Okabe and Ito (2008), which the colour-blind can
#: tell apart.
INK, MUTED, GRID, SURFACE = "#1f2733", "#5a6675", "#dde2e8", "#fdfdfc"
ACCENT, WARN, THIRD, OTHER = "#0072b2", "#d55e00", "#009e73", "#cc79a7"

#: The CSS variable of each colour, see report.css.
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    SURFACE: "--surface",
    ACCENT: "--accent",
    WARN: "--warn",
    THIRD: "--third",
    OTHER: "--other",
}

#: Cividis (Nunez, Anderton and Renslow 2018) without its ends, which vanish on a dark or a light
#: page.
SEQUENTIAL = LinearSegmentedColormap.from_list(
    "streamkm", mpl.colormaps["cividis"]([0.18, 0.36, 0.54, 0.72, 0.94])
)
#: Blue to orange through near white.
DIVERGING = LinearSegmentedColormap.from_list(
    "streamkm-diverging", ["#08508a", "#4f9ccb", "#f4f2ee", "#ee9c55", "#a84300"]
)

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.edgecolor": "none",
    "legend.facecolor": "none",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.color": MUTED,
    "ytick.labelsize": 8.5,
}
#: Numbers of a logarithmic axis; matplotlib's own are mathematics, which is switched off.
_PLAIN = FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")

#: Dots per inch of what is drawn as pixels within an SVG.
RASTER_DPI = 160

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@contextmanager
def new_figure(width: float = 6.0, height: float = 3.0) -> Iterator[Figure]:
    """A figure of that many inches, to be drawn in a ``with`` block under the style of reports."""
    with mpl.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained", dpi=RASTER_DPI)


def make_logarithmic(axis: Axis) -> None:
    """Give a logarithmic axis plain numbers, and few."""
    axis.set_major_formatter(_PLAIN)
    low, high = sorted(axis.get_view_interval())
    if high > 12 * low:
        axis.set_minor_formatter(NullFormatter())
        return
    # With hardly a power of ten in sight, others have to be named.
    axis.set_major_locator(MaxNLocator(nbins=5, min_n_ticks=2))
    axis.set_minor_locator(NullLocator())


def clean(text: object, length: int = 0) -> str:
    """`text` on one line, without characters that XML cannot hold; cut to `length` if it is set."""
    # Lone surrogates and non-characters are in no XML, control characters in none either.
    said = re.sub(r"[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+", " ", str(text))
    said = " ".join(said.split())
    return said[: length - 1] + "…" if length and len(said) > length else said


def to_svg(
    figure: Figure, name: str, title: str, description: str, tips: dict[str, Sequence[str]]
) -> str:
    """`figure` as SVG for a page.

    Parameters
    ----------
    figure : Figure
        It is drawn, not changed.
    name : str
        Unique in the page: identifiers begin with it.
    title, description : str
        Its text alternative.
    tips : dict of str to sequence of str
        Texts that are shown over the marks of a collection, by its ``gid``.
    """
    buffer = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}
    with mpl.rc_context(settings), warnings.catch_warnings():
        # The browser has glyphs that matplotlib's font lacks.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=RASTER_DPI)
    # Before it is parsed: the declaration names a file of rules elsewhere, which nothing needs.
    root = ET.fromstring(re.sub(r"<!DOCTYPE[^>]*>", "", buffer.getvalue(), count=1))
    for junk in root.findall(f"{{{SVG}}}metadata"):
        root.remove(junk)
    _rename(root, name)
    for gid, texts in tips.items():
        _add_tips(root, f"{name}-{gid}", texts)
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-description")
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(f"{{{SVG}}}{tag}")
        element.text = clean(text)
        element.set("id", f"{name}-{'title' if tag == 'title' else 'description'}")
        root.insert(place, element)
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    return ET.tostring(root, encoding="unicode")


def _rename(root: ET.Element, name: str) -> None:
    """Prefix identifiers, and turn colours into variables."""
    link = f"{{{XLINK}}}href"
    for element in root.iter():
        attributes = element.attrib
        if "id" in attributes:
            attributes["id"] = f"{name}-{attributes['id']}"
        if attributes.get(link, "").startswith("#"):
            attributes[link] = f"#{name}-{attributes[link][1:]}"
        if "clip-path" in attributes:
            attributes["clip-path"] = attributes["clip-path"].replace("url(#", f"url(#{name}-")
        if "style" in attributes:
            style = attributes["style"]
            for colour, variable in VARIABLES.items():
                style = style.replace(colour, f"var({variable})")
            # The page decides the family.
            attributes["style"] = re.sub(r" ?font-family: [^;]*;?", "", style)
        for key in attributes.keys() & {"d", "x", "y"}:
            # A hundredth of a point is less than anybody sees.
            attributes[key] = re.sub(r"(\.\d\d)\d+", r"\1", attributes[key])


def _add_tips(root: ET.Element, identifier: str, texts: Sequence[str]) -> None:
    """Give each mark of the collection `identifier` a text that a pointer shows."""
    group = next((each for each in root.iter() if each.get("id") == identifier), None)
    if group is None:
        return
    # A mark is drawn by itself, or is the use of a path that several share.
    marks = group.findall(f"{{{SVG}}}path") or list(group.iter(f"{{{SVG}}}use"))
    for mark, text in zip(marks, texts, strict=False):
        ET.SubElement(mark, f"{{{SVG}}}title").text = clean(text)
