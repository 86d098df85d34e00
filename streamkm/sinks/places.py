"""Where the files of an output lie that are not the output itself.

They stand beside the target. Of an array in a Zarr store, such as ``store.zarr/cluster``, they
stand beside the store: who opens the store while a run is at work sees whole arrays only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["COLUMN_BYTES", "IN_STORE", "beside", "kind_of", "store_of"]

#: The kind of an output that lies in a store; any other kind is a suffix.
IN_STORE = ".zarr/"
#: Bytes that a column adds to a copy of the source beside its values, at most.
COLUMN_BYTES = 1 << 20
#: Suffixes of outputs that are files, or folders of their own.
_SUFFIXES = (".npy", ".zarr", ".parquet", ".h5ad")


def kind_of(target: Path) -> str:
    """The suffix of `target` in lower case, or `IN_STORE` for an array in a Zarr store."""
    suffix = target.suffix.lower()
    return IN_STORE if suffix not in _SUFFIXES and _store(target) else suffix


def store_of(target: Path) -> Path | None:
    """The Zarr store that `target` is an array of; None if it is none."""
    return _store(target) if kind_of(target) == IN_STORE else None


def beside(target: Path, ending: str) -> Path:
    """The path of a file of the output `target` that is not the output itself."""
    store = store_of(target)
    if store is None:
        return target.with_name(target.name + ending)
    within = ".".join(target.relative_to(store).parts)
    return store.with_name(f"{store.name}.{within}{ending}")


def _store(target: Path) -> Path | None:
    stores = (parent for parent in target.parents if parent.suffix.lower() == ".zarr")
    return next(stores, None)
