"""Joins several arrays of one shape along features: the variables of a group, each a feature."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from streamkm.errors import Option, SourceError
from streamkm.sources.base import ArraySpec, Described, RowRange, check_dtype, common_nodata
from streamkm.sources.layout import check_read
from streamkm.sources.names import shown
from streamkm.sources.within import would_take

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from streamkm.sources.base import Source

__all__ = ["VariablesSource", "open_variables"]


def open_variables(
    open_one: Callable[[str], Source], names: Sequence[str], name: str
) -> VariablesSource:
    """Open several variables by name, and join them; on an error none is left open."""
    for index, variable in enumerate(names):
        if variable in names[:index]:
            raise SourceError(
                f"{name}: ", Option("variable", variable), " is given twice; once will do"
            )
    parts: list[Source] = []
    try:
        parts.extend(open_one(variable) for variable in names)
        return VariablesSource(parts, names, name)
    except SourceError:
        for part in parts:
            part.close()
        raise


class VariablesSource(Described):
    """Sources of the same rows side by side, in the least element type that holds them all.

    Parameters
    ----------
    parts : sequence of Source
        At least one; closed with this source.
    names : sequence of str
        Their names, which become those of the features.
    name : str
        Name of the whole, for errors.

    Raises
    ------
    SourceError
        If their rows differ in shape or in the names of their axes.
    """

    def __init__(self, parts: Sequence[Source], names: Sequence[str], name: str) -> None:
        first = parts[0]
        for part, other in zip(parts[1:], names[1:], strict=True):
            one, two = first.spec.grid, part.spec.grid
            if one is None or two is None or one.shape != two.shape:
                what = f"shape {_shape(first.spec)} and {_shape(part.spec)}"
            elif one.dims and two.dims and one.dims != two.dims:
                what = f"axes {', '.join(one.dims)} and {', '.join(two.dims)}"
            else:
                continue
            raise SourceError(
                f"{name}: variables that are features must agree in their rows, {names[0]} and "
                f"{other} have the {what}; leave one of them out"
            )
        self._parts, self._names, self._name = tuple(parts), tuple(names), name
        self._closed = False
        specs = [part.spec for part in parts]
        block_rows = max(spec.block_rows for spec in specs)
        self._spec = replace(
            first.spec,
            n_features=sum(spec.n_features for spec in specs),
            dtype=reduce(_common, (spec.dtype for spec in specs)),
            block_rows=block_rows,
            layout=f"{len(parts)} variables ({', '.join(names)}), {first.spec.layout}",
            scratch_bytes=max(
                block_rows * spec.row_bytes + spec.scratch_bytes * -(-block_rows // spec.block_rows)
                for spec in specs
            )
            + block_rows * sum(spec.n_features * 4 for spec in specs if spec.dtype == "bfloat16"),
            piece_rows=max(spec.piece_rows or spec.block_rows for spec in specs),
            feature_names=tuple(
                variable if spec.n_features == 1 else f"{variable}[{index}]"
                for variable, spec in zip(names, specs, strict=True)
                for index in range(spec.n_features)
            ),
            nodata=(nodata := common_nodata(specs)),
            marked=tuple(value for value in specs[0].marked if value in nodata),
            is_decoded=any(spec.is_decoded for spec in specs),
            is_scaled=any(spec.is_scaled for spec in specs),
        )

    @property
    def name(self) -> str:
        """The group that holds the variables."""
        return self._name

    @property
    def spec(self) -> ArraySpec:
        """Shape and dtype of the whole."""
        return self._spec

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out` with `rows`, variable by variable; see `Source.read`."""
        check_read(self._name, self._spec, rows, out, closed=self._closed)
        first = 0
        for part in self._parts:
            spec = part.spec
            columns = out[:, first : first + spec.n_features]
            first += spec.n_features
            if columns.flags.c_contiguous and spec.dtype == self._spec.dtype:
                part.read(rows, columns)
                continue
            # A read of many blocks takes the memory of one.
            for some in rows.split(self._spec.block_rows):
                stored = np.empty((len(some), spec.n_features), spec.storage)
                part.read(some, stored)
                target = columns[some.start - rows.start : some.stop - rows.start]
                if spec.dtype == "bfloat16" and self._spec.dtype != "bfloat16":
                    stored = (stored.astype(np.uint32) << 16).view(np.float32)
                target[...] = stored

    def in_order(self, names: tuple[str, ...]) -> Source:
        """A view with the variables in the order of `names`."""
        if self._spec.n_features != len(self._parts):
            raise SourceError(
                f"{self._name}: features must be in one order: it has {shown(names)} elsewhere, "
                f"and {shown(self._spec.feature_names)} here; name the variables in the first order"
            )
        by_name = dict(zip(self._names, self._parts, strict=True))
        return VariablesSource([by_name[name] for name in names], names, self._name)

    def fingerprint(self) -> str:
        """Hex digest of the variables' names and fingerprints, in order."""
        digest = hashlib.sha256()
        for variable, part in zip(self._names, self._parts, strict=True):
            digest.update(f"{variable}\n{part.fingerprint()}\n".encode())
        return digest.hexdigest()

    def would_take(self, path: Path) -> bool:
        """Whether what is written at `path` would become part of a variable."""
        return any(would_take(part, path) for part in self._parts)

    def notes(self) -> list[str]:
        """The notes of each variable, each once."""
        return list(dict.fromkeys(note for part in self._parts for note in part.notes()))

    def close(self) -> None:
        """Close all variables."""
        self._closed = True
        for part in self._parts:
            part.close()


def _shape(spec: ArraySpec) -> tuple[int, ...]:
    return spec.grid.shape if spec.grid is not None else (spec.n_rows,)


def _common(one: str, other: str) -> str:
    """The least element type that holds two; of 64-bit integers float64 at best."""
    if one == other:
        return one
    # bfloat16 and another type meet in a float that holds both.
    wide = [np.dtype("float32" if name == "bfloat16" else name) for name in (one, other)]
    return check_dtype(np.result_type(*wide), "variables")
