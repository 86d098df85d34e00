"""Chooses one array of a file that holds several under names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkm.errors import Option, SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from streamkm.sources.rowfile import Stored

__all__ = ["chosen_member"]

#: Arrays that an error lists, at most.
NAMES_SHOWN = 8


def chosen_member(
    path: Path | Stored, shapes: Mapping[str, tuple[int, ...]], name: str | None
) -> str:
    """The name of the array to read.

    Parameters
    ----------
    path : Path or Stored
        The file, for the message.
    shapes : mapping
        The shape of every array of numbers in the file, by its name.
    name : str or None
        The name that was given; by default the only array of two or more dimensions.

    Returns
    -------
    str

    Raises
    ------
    SourceError
        If there is no such array, or several; the message lists them.
    """
    rows = [member for member, shape in shapes.items() if len(shape) > 1]
    listed = [f"{member} {shapes[member]}" for member in (rows or shapes)]
    there_are = "it holds " + (", ".join(listed[:NAMES_SHOWN]) or "none")
    there_are += ", ..." if len(listed) > NAMES_SHOWN else ""
    if name is not None:
        if name not in shapes:
            raise SourceError(f"{path}: there is no array {name!r}; {there_are}")
        return name
    if len(rows) != 1:
        raise SourceError(
            f"{path}: one array of two or more dimensions is needed, choose it by ",
            Option("dataset"),
            f"; {there_are}",
        )
    return rows[0]
