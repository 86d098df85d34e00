"""Decides which axes of an array are features and which are rows, and turns one into the other.

Rows are the row axes in their stored order, counted in C order; features are the feature axes one
after the other. By default the last axis is features. A cube with its bands first is read in the
order of its chunks, into a view of the caller's memory whose axes are swapped, so that no second
copy of the cube is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from streamkm.errors import Option, SourceError
from streamkm.sources.base import Grid, check_shape

if TYPE_CHECKING:
    import numpy as np

    from streamkm.sources.layout import RowBox

__all__ = ["Axes", "FeatureDims", "axes_note", "choose_axes"]

#: What names the feature axes: one name or index, or several.
FeatureDims = str | int | Sequence[str | int]

#: Names of axes that no user means by features, in lower case.
_OF_ROWS = frozenset({"x", "y", "lon", "longitude", "lat", "latitude", "time"})


@dataclass(frozen=True, slots=True)
class Axes:
    """The axes of a stored array, each either rows or features."""

    shape: tuple[int, ...]
    """Stored extents."""
    dims: tuple[str, ...]
    """Names of the axes; ``""`` for one without a name."""
    features: tuple[int, ...]
    """The feature axes, in the order in which they are flattened; none for one feature."""

    @property
    def rows(self) -> tuple[int, ...]:
        """The row axes, in stored order."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.features)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Extents of the row axes."""
        return tuple(self.shape[axis] for axis in self.rows)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return prod(self.row_shape)

    @property
    def n_features(self) -> int:
        """Number of features."""
        return prod(self.shape[axis] for axis in self.features)

    @property
    def are_last(self) -> bool:
        """Whether the last axis alone is features, so that stored rows are rows."""
        return self.features == (len(self.shape) - 1,)

    def rows_first(self, extents: Sequence[int]) -> tuple[int, ...]:
        """One number for each stored axis, with all features as one last axis."""
        features = prod(extents[axis] for axis in self.features)
        return (*(extents[axis] for axis in self.rows), features)

    def selection(self, box: RowBox) -> tuple[slice, ...]:
        """A box of rows, with all features, as a slice of each stored axis."""
        chosen = [slice(0, extent) for extent in self.shape]
        for axis, along in zip(self.rows, box.selection, strict=True):
            chosen[axis] = along
        return tuple(chosen)

    def stored_view(self, rows_BD: np.ndarray, box: RowBox) -> np.ndarray:
        """Rows of a box, in C order, as an array with the stored axes; shares their memory."""
        features = [self.shape[axis] for axis in self.features]
        order = (*self.rows, *self.features)
        inverse = [order.index(axis) for axis in range(len(order))]
        return rows_BD.reshape(*box.shape, *features).transpose(inverse)

    def grid(self, group: str = "") -> Grid:
        """The row axes, for outputs in the array's shape."""
        return Grid(self.row_shape, tuple(self.dims[axis] for axis in self.rows), group)

    def describe(self) -> str:
        """``, axes y x band``, with the features in brackets; empty if no axis has a name."""
        if not any(self.dims) and self.are_last:
            return ""
        named = [name or str(axis) for axis, name in enumerate(self.dims)]
        for axis in self.features:
            named[axis] = f"[{named[axis]}]"
        return f", axes {' '.join(named)}, features in brackets"


def choose_axes(
    shape: tuple[int, ...], dims: Sequence[str | None], feature_dim: FeatureDims | None, name: str
) -> Axes:
    """The axes of an array, of which those in `feature_dim` are features.

    Parameters
    ----------
    shape : tuple of int
        Stored extents.
    dims : sequence of str or None
        Names of the axes, where they have one; may be empty.
    feature_dim : str, int or a sequence of them, optional
        The feature axes by name or index; by default the last, and with an empty sequence none.
    name : str
        The source, for the message.

    Raises
    ------
    SourceError
        If there is no such axis, if one is named twice, if no row is left, or if the array is
        empty or has too few dimensions.
    """
    names = tuple(text or "" for text in dims) if len(dims) == len(shape) else ("",) * len(shape)
    chosen = [len(shape) - 1] if feature_dim is None else _indices(names, feature_dim, name)
    axes = Axes(shape, names, tuple(chosen))
    least = 2 if chosen else 1
    if len(shape) < least:
        raise SourceError(
            f"{name}: an array of at least two dimensions is needed (rows x features), "
            f"this one has the shape {shape}"
        )
    if not axes.rows:
        there_are = _there_are(names)
        raise SourceError(
            f"{name}: ", Option("feature_dim"), f" names all axes, no row is left; {there_are}"
        )
    check_shape((axes.n_rows, axes.n_features), name)
    return axes


def axes_note(axes: Axes, name: str) -> list[str]:
    """A note if the features seem to be a coordinate, such as longitude, and not a measurement."""
    if not axes.are_last or axes.dims[-1].lower() not in _OF_ROWS:
        return []
    others = [dim for dim in axes.dims if dim and dim.lower() not in _OF_ROWS]
    if others:
        remedy = f"--feature-dim {others[0]} makes {others[0]} the features"
    else:
        remedy = "--feature-dim names another axis; --variable, several arrays of the group"
    named = ", ".join(dim or "(no name)" for dim in axes.dims)
    last = axes.dims[-1]
    return [f"{name}: its axes are {named}, and the last, {last}, is taken as features; {remedy}"]


def _indices(names: tuple[str, ...], feature_dim: Any, name: str) -> list[int]:
    given = [feature_dim] if isinstance(feature_dim, str | int) else list(feature_dim)
    found = [_index(names, dim, name) for dim in given]
    if len(set(found)) < len(found):
        twice = next(dim for dim, axis in zip(given, found, strict=True) if found.count(axis) > 1)
        raise SourceError(
            f"{name}: ", Option("feature_dim", twice), " is given twice; once will do"
        )
    return found


def _index(names: tuple[str, ...], dim: str | int, name: str) -> int:
    if dim in names and dim != "":
        return names.index(str(dim))
    try:
        index = int(dim)
    except ValueError:
        index = len(names)
    if not -len(names) <= index < len(names):
        raise SourceError(
            f"{name}: ", Option("feature_dim", dim), f" is none of its axes; {_there_are(names)}"
        )
    return index % len(names)


def _there_are(names: tuple[str, ...]) -> str:
    if not any(names):
        return f"they have no names, only the numbers 0 to {len(names) - 1}"
    return "there are " + ", ".join(text or str(axis) for axis, text in enumerate(names))
