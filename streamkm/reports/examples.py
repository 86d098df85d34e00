"""Examples of each cluster: the rows nearest to its centroid and the farthest, as people know them.

A row is shown by its number, and where the user has named them by its id, its text, the picture in
its image file, or as the picture that it is.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from streamkm.reports.profiles import MOST_SIDE, as_data_address
from streamkm.reports.theme import clean
from streamkm.sources import RowRange

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from streamkm.reports.survey import Survey
    from streamkm.reports.values import RowValues
    from streamkm.sources import Choice, Source

__all__ = ["Example", "Shown", "examples_of", "read_rows"]

#: Characters of a text that are shown, at most.
MOST_TEXT = 280
#: Bytes of the pictures of rows in one report, at most.
PICTURE_BYTES = 1_200_000
#: Bytes of rows that are read at once to show some of them, at most.
SPAN_BYTES = 16 << 20


@dataclass(frozen=True)
class Example:
    """One row."""

    row: int
    distance: float
    """To the centroid of its cluster."""
    label: str = ""
    """Its id."""
    text: str = ""
    picture: str = ""
    """A ``data:`` address; empty if there is none."""
    note: str = ""
    """Why its picture is not shown."""


@dataclass(frozen=True)
class Shown:
    """How rows are shown; None for what the user has not named."""

    ids: RowValues | None = None
    texts: RowValues | None = None
    image_files: RowValues | None = None
    draw: Callable[[dict[int, int]], dict[int, str]] | None = None
    """The pictures that rows are, by row number; takes the numbers and the clusters of rows."""
    choice: Choice | None = None
    """Which rows of their source these are; they are shown by their numbers in all of it."""


def examples_of(
    survey: Survey, clusters: Collection[int], shown: Shown
) -> dict[int, tuple[list[Example], list[Example]]]:
    """The nearest and the farthest rows of each of `clusters`.

    The farthest are none of the nearest. Pictures are embedded until `PICTURE_BYTES` are spent, in
    the order of `clusters`.
    """
    found = {}
    for cluster in clusters:
        nearest = [Example(row, distance) for row, distance in survey.nearest.of(cluster)]
        near_rows = {example.row for example in nearest}
        farthest = [
            Example(row, distance)
            for row, distance in survey.farthest.of(cluster)
            if row not in near_rows
        ]
        found[cluster] = (nearest, farthest)
    rows = {e.row: cluster for cluster, both in found.items() for some in both for e in some}
    labels, texts = ({} if v is None else v.at(rows) for v in (shown.ids, shown.texts))
    pictures = _pictures(rows, shown)

    def dressed(example: Example) -> Example:
        picture, note = pictures.get(example.row, ("", ""))
        return replace(
            example,
            row=example.row if shown.choice is None else shown.choice.whole_row(example.row),
            label=clean(labels.get(example.row, ""), MOST_TEXT),
            text=clean(texts.get(example.row, ""), MOST_TEXT),
            picture=picture,
            note=note,
        )

    return {
        cluster: (list(map(dressed, nearest)), list(map(dressed, farthest)))
        for cluster, (nearest, farthest) in found.items()
    }


def _pictures(rows: dict[int, int], shown: Shown) -> dict[int, tuple[str, str]]:
    """A picture, or the reason why there is none, of each row that may have one."""
    found: dict[int, tuple[str, str]] = {}
    left = PICTURE_BYTES
    if shown.image_files is not None:
        names, folder = shown.image_files.at(rows), shown.image_files.folder
        for row in rows:
            name = names.get(row, "")
            if left <= 0 or not name:
                found[row] = ("", name)
                continue
            picture, why = _thumbnail(folder / name)
            left -= len(picture)
            found[row] = (picture, "" if picture else f"{clean(name, MOST_TEXT)}: {why}")
    elif shown.draw is not None:
        for row, picture in shown.draw(rows).items():
            if left > 0:
                found[row] = (picture, "")
            left -= len(picture)
    return found


def _thumbnail(path: Path) -> tuple[str, str]:
    """The picture in a file, made small, as an address; or an empty one and why."""
    try:
        if not path.is_file():
            return "", "there is no such file"
        with warnings.catch_warnings():
            # A picture of more pixels than any camera has is refused, not only warned of.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.draft("RGB", (2 * MOST_SIDE, 2 * MOST_SIDE))
                picture.thumbnail((MOST_SIDE, MOST_SIDE))
                return as_data_address(picture.convert("RGB"), "JPEG"), ""
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError) as error:
        return "", clean(f"cannot be read as a picture ({error})", MOST_TEXT)


def read_rows(source: Source, rows: Collection[int]) -> dict[int, np.ndarray]:
    """Single rows of `source`: neighbours in a block are read together."""
    spec = source.spec
    n_together = max(min(spec.block_rows, SPAN_BYTES // max(spec.row_bytes, 1)), 1)
    groups: dict[int, list[int]] = {}
    for row in sorted(rows):
        groups.setdefault(row // n_together, []).append(row)
    found = {}
    for members in groups.values():
        span = RowRange(members[0], members[-1] + 1)
        read = np.empty((len(span), spec.n_features), spec.storage)
        source.read(span, read)
        for row in members:
            found[row] = read[row - span.start].copy()
    return found
