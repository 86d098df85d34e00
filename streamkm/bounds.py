"""Bounds on the sizes of clusters: settings in rows or as a multiple of the mean size.

A bound such as ``1.2x`` is turned into rows when the rows are counted, because rows that are
dropped make the mean smaller. The multiple is exact, not a float: 1.2 times 50 rows are 60.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol, Self

from streamkm.errors import ConfigError, Option
from streamkm.settings import Rule

if TYPE_CHECKING:
    from streamkm.tables import AlgorithmEntry

__all__ = ["SIZE", "Bounds", "check_bounds", "parse_size"]

#: A multiple of the mean size.
_MULTIPLE = re.compile(r"(\d+(?:\.\d+)?)x")


def parse_size(text: str) -> int | str:
    """``500`` as a number of rows; ``2x`` stays as it is, and so does what the rule refuses."""
    return int(text) if text.isascii() and text.isdigit() else text


def _admits(value: object) -> bool:
    if isinstance(value, str):
        found = _MULTIPLE.fullmatch(value)
        return found is not None and Fraction(found[1]) > 0
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


#: The rule of both bounds.
SIZE = Rule("a whole number of rows of at least 1, or a multiple of the mean such as 1.5x", _admits)


class _Bounded(Protocol):
    """The settings that bounds follow from."""

    @property
    def k(self) -> int: ...
    @property
    def max_size(self) -> int | str | None: ...
    @property
    def min_size(self) -> int | str | None: ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """Rows that a cluster may have."""

    least: int
    most: int

    @classmethod
    def of(cls, config: _Bounded, n_rows: int) -> Self:
        """The bounds of `config` on clusters of `n_rows` rows in all.

        A multiple is rounded to the side of the mean, but never past what the mean allows: with
        ``1x``, clusters of 10 rows in 3 have 3 or 4.
        """
        k, least, most = config.k, 0, n_rows
        if isinstance(config.max_size, int):
            most = config.max_size
        elif config.max_size is not None:
            most = max(int(_factor(config.max_size) * n_rows / k), -(-n_rows // k))
        if isinstance(config.min_size, int):
            least = config.min_size
        elif config.min_size is not None:
            least = min(-int(-_factor(config.min_size) * n_rows // k), n_rows // k)
        return cls(least, most)

    def check(self, config: _Bounded, n_rows: int, name: str) -> None:
        """Refuse bounds that no clusters of the `n_rows` rows of `name` can meet.

        Raises
        ------
        ConfigError
            With the least, or the greatest, bound that they can.
        """
        k, has = config.k, f"{name} has {n_rows:,}"
        if k * self.most < n_rows:
            raise ConfigError(
                Option("max_size", config.max_size),
                f" lets {k:,} clusters hold {k * self.most:,} rows, {has}; give at least ",
                Option("max_size", -(-n_rows // k)),
                ", or more clusters",
            )
        if k * self.least > n_rows:
            raise ConfigError(
                Option("min_size", config.min_size),
                f" asks for {k * self.least:,} rows in {k:,} clusters, {has}; give at most ",
                Option("min_size", n_rows // k),
                ", or fewer clusters",
            )
        if self.least > self.most:
            raise ConfigError(
                Option("min_size", config.min_size),
                f" ({self.least:,} rows) must be at most ",
                Option("max_size", config.max_size),
                f" ({self.most:,} rows)",
            )


def _factor(multiple: str) -> Fraction:
    return Fraction(multiple.removesuffix("x"))


def check_bounds(config: _Bounded, entry: AlgorithmEntry, **others: object) -> None:
    """Refuse bounds that settings rule out, whatever the rows.

    `others` are the settings that a bounded fit does not take, by name: None where they are not
    given.
    """
    sides = (("max_size", config.max_size, 1), ("min_size", config.min_size, -1))
    for name, value, side in sides:
        if isinstance(value, str) and side * _factor(value) < side:
            rule = "at least" if side > 0 else "at most"
            raise ConfigError(
                Option(name, value), f" must be {rule} the mean size: clusters have it on average; "
                "give ", Option(name, "1x"),
            )  # fmt: skip
        if value is None:
            continue
        if entry.branches:
            raise ConfigError(
                Option(name, value),
                " needs the distance of a row to every cluster, which ",
                Option("algorithm", "tree"),
                " does not take; choose ",
                Option("algorithm", "minibatch"),
            )
        for other, given in others.items():
            if given is not None:
                raise ConfigError(
                    Option(name, value), " cannot be promised with ", Option(other, given),
                    "; leave one of them out",
                )  # fmt: skip
