"""Reads CSR matrices in Zarr groups: the X and the layers of AnnData, stored as groups of arrays.

zarr reads and decodes the ranges of the three arrays. A chunk of them is decoded again for each
block that touches it, so a block has about as many entries as a chunk.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from zarr.storage import LocalStore, ObjectStore

from streamkm.errors import ReadError, SourceError
from streamkm.sources.layout import one_line
from streamkm.sources.sparse import (
    CSR_MEMBERS,
    PIECE_ENTRIES,
    CsrArrays,
    CsrSource,
    csr_shape,
    sparse_format,
)
from streamkm.sources.within import is_inside
from streamkm.sources.zarr.listing import object_versions
from streamkm.sources.zarr.store import WholeStore, codec_name, folder_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamkm.sources.base import RowRange

__all__ = ["is_sparse_group", "open_csr_group", "x_of_anndata"]


def x_of_anndata(node: object, name: str) -> tuple[object, str]:
    """The X of a group that AnnData wrote, with its name; any other `node` as it is."""
    if isinstance(node, zarr.Group) and node.attrs.get("encoding-type") == "anndata":
        x = node.get("X")
        if x is not None:
            return x, f"{name.rstrip('/')}/X"
    return node, name


def is_sparse_group(node: object) -> bool:
    """Whether `node` is a group that holds a sparse matrix of any format."""
    return isinstance(node, zarr.Group) and _format(node) is not None


def open_csr_group(group: zarr.Group, name: str) -> CsrSource:
    """Open the CSR matrix in a Zarr group.

    Parameters
    ----------
    group : zarr.Group
        A group that `is_sparse_group`.
    name : str
        Its name, for errors.

    Returns
    -------
    CsrSource

    Raises
    ------
    SourceError
        If the matrix is stored in another format, is empty, or its arrays do not fit each other.
    """
    kind = _format(group)
    if kind != "csr":
        raise SourceError(
            f"{name} is stored as {kind}, by columns; rows are read from CSR: convert it "
            "(anndata: adata.X = adata.X.tocsr(), then write it again)"
        )
    store = _CsrInStore(group, name)
    try:
        shape, is_told = csr_shape(group.attrs, store.arrays)
    except Exception as error:  # codecs and stores raise errors of any class
        raise SourceError(f"{name}: cannot be read as a CSR matrix: {one_line(error)}") from error
    if not is_told:
        store.remarks.append(
            f"{name}: has no attribute shape; it is read with {shape[1]} features, because none "
            "has a larger index"
        )
    indptr, indices, data = store.stored
    chunk_entries = max(array.chunks[0] for array in (data, indices))
    piece = max(chunk_entries, PIECE_ENTRIES)
    codecs = "+".join(codec_name(codec) for codec in data.compressors) or "uncompressed"
    return CsrSource(
        store,
        shape,
        f"zarr v{group.metadata.zarr_format}, chunks of {chunk_entries} entries, {codecs}",
        chunk_entries=chunk_entries,
        # Each chunk that a piece touches, as stored and as decoded.
        library_bytes=sum(
            2 * (piece + 2 * array.chunks[0]) * array.dtype.itemsize for array in (data, indices)
        )
        + 4 * indptr.chunks[0] * indptr.dtype.itemsize,
        file=folder_of(group),
    )


def _format(group: zarr.Group) -> str | None:
    # Each is asked for, because a web server cannot list them.
    return sparse_format(group.attrs, [name for name in CSR_MEMBERS if name in group])


class _CsrInStore:
    """The arrays of a group, read through zarr."""

    def __init__(self, group: zarr.Group, name: str) -> None:
        self.name = name
        self.remarks: list[str] = []
        self._group = group
        self.stored: list[Any] = []
        for member in CSR_MEMBERS:
            array = group[member]
            if not isinstance(array, zarr.Array):
                raise SourceError(f"{name}: {member} of a CSR matrix is an array, not a group")
            whole = WholeStore(array.store)
            again = zarr.open_array(whole, path=array.path, mode="r" if array.read_only else "r+")
            whole.learn(again)
            self.stored.append(again)
        self.arrays = CsrArrays(*self.stored)

    @contextmanager
    def opened(self, rows: RowRange) -> Iterator[CsrArrays]:
        """The arrays, whose failures become errors of `rows`."""
        try:
            yield self.arrays
        except SourceError:
            raise
        except Exception as error:  # codecs and stores raise errors of any class
            raise ReadError(
                f"{self.name}: {rows} cannot be read: {one_line(error)}; a chunk is corrupt, "
                "truncated or unreadable"
            ) from error

    def fingerprint(self, layout: str) -> str:
        """Hex digest of `layout`, the arrays' metadata, and what the store tells of their objects.

        A local store tells name, size and modification time of every file, and a bucket its entity
        tag as well. Of any other store the arrays are read; of a web server they are not.
        """
        digest = hashlib.sha256(layout.encode())
        store: Any = self._group.store
        try:
            for array in self.stored:
                metadata = array.metadata.to_dict()
                metadata.pop("attributes", None)
                digest.update(json.dumps(metadata, sort_keys=True, default=str).encode())
                if isinstance(store, (LocalStore, ObjectStore)):
                    self._digest_versions(store, array.path, digest)
                else:
                    for start in range(0, array.shape[0], PIECE_ENTRIES):
                        digest.update(array[start : start + PIECE_ENTRIES].tobytes())
        except Exception as error:  # stores raise errors of any class
            raise ReadError(f"{self.name}: cannot be listed: {one_line(error)}") from error
        return digest.hexdigest()

    @staticmethod
    def _digest_versions(store: Any, path: str, digest: Any) -> None:
        for key, version in sorted((object_versions(store, path) or {}).items()):
            if Path(key).name not in {"zarr.json", ".zarray", ".zattrs"}:
                digest.update(f"{key}\n{version}\n".encode())

    def would_take(self, path: Path) -> bool:
        """Whether `path` lies in the folder of the group."""
        store = self._group.store
        return isinstance(store, LocalStore) and is_inside(path, store.root / self._group.path)

    def notes(self) -> list[str]:
        """What the group does not say."""
        return list(self.remarks)

    def close(self) -> None:
        """Nothing to release: no file is held open."""
