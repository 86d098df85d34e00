"""Names of the features of AnnData's matrices: the index of ``var`` beside them.

Two files may have the same genes in another order. So X and layers carry the names of their
columns, and are matched by name as the columns of tables are. An index with a name twice names
nothing, and a note says so; beside features that have names it is refused.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from streamkm.sources.base import Described
from streamkm.sources.within import would_take

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from streamkm.sources.base import ArraySpec, RowRange, Source

__all__ = ["VarSource", "home_of", "named_by_var", "var_names"]


def home_of(path: str) -> tuple[str, str] | None:
    """Path of the group whose ``var`` names the columns of a matrix, and the matrix's path in it.

    Parameters
    ----------
    path : str
        Path of the matrix: ``X``, ``layers/counts``, ``raw/X``, or an address that ends so.

    Returns
    -------
    tuple of str or None
        None if AnnData keeps no such matrix there.
    """
    folders = path.strip("/") and path.rstrip("/").split("/")
    if folders and folders[-1] == "X":
        return "/".join(folders[:-1]), "X"
    if folders and folders[-2:-1] == ["layers"]:
        return "/".join(folders[:-2]), "/".join(folders[-2:])
    return None


def var_names(group: Any, member: str) -> tuple[str, ...]:
    """Names of the columns of a matrix in a file of AnnData.

    Parameters
    ----------
    group : h5py.Group or zarr.Group
        The root of the file, or a group that an AnnData lies in.
    member : str
        Path of the matrix in it: ``X``, ``layers/counts``, ``raw/X``.

    Returns
    -------
    tuple of str
        Empty if it is no such matrix, or has no names.
    """
    found = home_of(member.strip("/"))
    if found is None:
        return ()
    var = group.get(f"{found[0]}/var".lstrip("/"))
    index = var.attrs.get("_index") if hasattr(var, "keys") else None
    values = var.get(index) if isinstance(index, str) else None
    if values is None or len(getattr(values, "shape", ())) != 1:
        return ()
    return tuple(v.decode() if isinstance(v, bytes) else str(v) for v in values[:])


def named_by_var(source: Source, names: tuple[str, ...]) -> Source:
    """`source` with `names`, if they are as many as its features."""
    return VarSource(source, names) if len(names) == source.spec.n_features else source


class VarSource(Described):
    """A matrix whose columns have the names of an index.

    Parameters
    ----------
    source : Source
        The matrix; closed with this one.
    names : tuple of str
        The index. If a name is there twice, columns have no names.
    """

    def __init__(self, source: Source, names: tuple[str, ...]) -> None:
        self._source = source
        self._names = names
        self._twice = [name for name, times in Counter(names).items() if times > 1]
        self._spec = replace(
            source.spec,
            feature_names=() if self._twice else names,
            repeated_name=self._twice[0] if self._twice else "",
        )

    @property
    def name(self) -> str:
        """Where the rows come from."""
        return self._source.name

    @property
    def spec(self) -> ArraySpec:
        """That of the matrix, with names."""
        return self._spec

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out` with `rows`; see `Source.read`."""
        self._source.read(rows, out)

    def fingerprint(self) -> str:
        """Hex digest of the names and the matrix's fingerprint."""
        digest = hashlib.sha256("\n".join(self._names).encode())
        digest.update(self._source.fingerprint().encode())
        return digest.hexdigest()

    def would_take(self, path: Path) -> bool:
        """Whether what is written at `path` would become part of the matrix."""
        return would_take(self._source, path)

    def notes(self) -> list[str]:
        """The notes of the matrix, and one on names that are there twice."""
        if not self._twice:
            return self._source.notes()
        note = (
            f"{self.name}: the index of var has {self._twice[0]} more than once, so features are "
            "matched by position; AnnData's var_names_make_unique() mends it"
        )
        return [*self._source.notes(), note]

    def close(self) -> None:
        """Close the matrix."""
        self._source.close()
