"""What a partition is asked to do; imports no torch, so that a wrong option is told at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamkm.errors import ConfigError, Option

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.sources.base import ArraySpec

__all__ = ["FORMATS", "SORTS", "Grouping", "parse_format", "parse_only"]

#: What the rows of a cluster are sorted by.
SORTS = ("row", "distance")
#: Where the rows are in the folder, by the format that they are written in.
FORMATS = {"npy": "rows.npy", "zarr": "rows.zarr", "parquet": "rows"}


@dataclass(frozen=True)
class Grouping:
    """What a partition is asked to do.

    Raises
    ------
    ConfigError
        If a value is out of range, or two contradict each other.
    """

    rows: str | None = None
    """Format in which the rows themselves are written, a key of `FORMATS`; None for none."""
    labels: Path | None = None
    """Labels of the rows; None labels them by the model."""
    only: tuple[int, ...] | None = None
    """The clusters that are written; None for all."""
    sort: str = "row"
    """What the rows of a cluster are sorted by: row (number) or distance (to the centroid)."""
    nan: str | None = None
    """What to do about rows with NaN or infinity; None as in the run."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("rows", self.rows, (None, *FORMATS)),
            ("sort", self.sort, SORTS),
            ("nan", self.nan, (None, "error", "drop")),
        ):
            if value not in known:
                names = ", ".join(filter(None, known))
                raise ConfigError(Option(name), f" must be one of {names}, not {value!r}")
        if self.labels is not None and self.nan is not None:
            raise ConfigError(
                Option("nan", self.nan),
                " says what to do about rows that are labelled, and ",
                Option("labels", str(self.labels)),
                " brings the labels; leave one of them out",
            )

    @property
    def by_distance(self) -> bool:
        """Whether the rows of a cluster are sorted by distance."""
        return self.sort == "distance"

    def check(self, k: int, spec: ArraySpec, name: str) -> None:
        """Raise `ConfigError` if `k` clusters of the array `name` cannot be grouped so."""
        wrong = [each for each in self.only or () if not 0 <= each < k]
        if wrong:
            raise ConfigError(
                Option("only"), f" names cluster {wrong[0]}, the run has 0 to {k - 1:,}"
            )
        if spec.dtype == "bfloat16" and self.rows not in (None, "npy"):
            raise ConfigError(
                Option("rows", self.rows),
                f" has no bfloat16, which {name} holds; use ",
                Option("rows", "npy"),
                ", which gets the bits of each number as uint16",
            )


def parse_format(text: str) -> str:
    """The format of rows that `text` names."""
    if text not in FORMATS:
        raise ConfigError(
            f"rows must be a format to write them in, {', '.join(FORMATS)}, not {text!r}: a "
            "partition takes all rows of the source"
        )
    return text


def parse_only(text: str) -> tuple[int, ...]:
    """The clusters in ``17,23``."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(
            f"only must be numbers of clusters, such as 17,23, not {text!r}"
        ) from None
