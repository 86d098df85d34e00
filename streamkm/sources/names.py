"""Names of features: which column of a source is which.

Two tables with the same columns in another order hold the same features. Reading them by position
gives an array of the right shape and wrong numbers, so features are matched by name wherever both
sides have names. A side without names is read by position, as nothing else is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from streamkm.errors import Option, SourceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamkm.sources.base import Source

__all__ = ["in_order", "shown"]

#: Names that a message lists, at most.
NAMES_SHOWN = 8


@runtime_checkable
class _Orderable(Protocol):
    """A source that can read its features in another order."""

    def in_order(self, names: tuple[str, ...]) -> Source:
        """A view of this source with its features in the order of `names`, closed with it."""


def in_order(source: Source, names: Sequence[str], whose: str) -> Source:
    """`source` with its features in the order of `names`.

    Parameters
    ----------
    source : Source
        The rows.
    names : sequence of str
        The names in the order that is wanted; empty if none are known.
    whose : str
        What the names belong to, for the message.

    Returns
    -------
    Source
        `source` itself if it has this order already, or if one side has no names. Else a view of
        it, which is closed with it.

    Raises
    ------
    SourceError
        If the names differ, or `source` cannot change the order; the message names both orders.
    """
    found, wanted = source.spec.feature_names, tuple(names)
    if not found or not wanted or found == wanted:
        return source
    both = f"{whose} has {shown(wanted)}, {source.name} has {shown(found)}"
    if sorted(found) != sorted(wanted):
        only = [*(n for n in wanted if n not in found), *(n for n in found if n not in wanted)]
        # Of many names those that differ may not be among the first.
        odd = f" (only one of them has {shown(only)})" if len(only) < len(wanted) else ""
        raise SourceError(
            f"names of features must agree: {both}{odd}; rename columns, or choose by ",
            Option("columns"),
        )
    if not isinstance(source, _Orderable):
        raise SourceError(f"features must be in one order: {both}; bring them into the first one")
    return source.in_order(wanted)


def shown(names: Sequence[str]) -> str:
    """`names` as a phrase; of many only the first."""
    listed = ", ".join(names[:NAMES_SHOWN])
    return f"{listed}, ... ({len(names):,} in all)" if len(names) > NAMES_SHOWN else listed
