"""Reads CSR matrices in HDF5 files: the X and the layers of AnnData, stored as groups of arrays.

A read takes its range of `indptr`, and then only the entries of its rows, through the HDF5 library.
Nothing is held in memory, not even `indptr`: 8 bytes a row are much for a billion rows.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import h5py

from streamkm.errors import Option, ReadError, SourceError
from streamkm.sources.layout import one_line
from streamkm.sources.rowfile import RowFile
from streamkm.sources.sparse import (
    CSR_MEMBERS,
    CsrArrays,
    CsrSource,
    csr_shape,
    sparse_format,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamkm.sources.base import RowRange

__all__ = ["choose_member", "is_sparse_group", "open_csr"]

#: Bytes of decoded chunks that the library keeps for each array, at least: its own default.
CACHE_BYTES = 1 << 20
#: Bytes of decoded chunks that the library keeps for each array, at most.
LARGEST_CACHE_BYTES = 32 << 20
#: Members that an error lists, at most.
NAMES_SHOWN = 8


def choose_member(path: Path, dataset: str | None) -> tuple[str | None, bool]:
    """Which member of a file is meant, and whether it is a sparse matrix.

    Parameters
    ----------
    path : Path
        The file.
    dataset : str or None
        The name that was given.

    Returns
    -------
    dataset : str or None
        The name of a member. None if none was given, and no sparse matrix is in question.
    is_sparse : bool
        Whether it is the group of a sparse matrix.

    Raises
    ------
    SourceError
        If there is a sparse matrix among several candidates and no name was given, or one that
        none of them has. The X of an ``.h5ad`` file, sparse or dense, comes before all others.
    """
    sparse: list[str] = []
    dense: list[str] = []

    def note(member: str, node: h5py.Dataset | h5py.Group) -> None:
        if is_sparse_group(node):
            sparse.append(member)
        elif isinstance(node, h5py.Dataset) and len(node.shape or ()) >= 2:
            dense.append(f"{member} {node.shape}")

    try:
        with h5py.File(path, "r") as file:
            wanted = "X" if dataset is None and path.suffix.lower() == ".h5ad" else dataset
            node = None if wanted is None else file.get(wanted)
            if is_sparse_group(node):
                return wanted, True
            if isinstance(node, h5py.Dataset):
                # An X of one column is no candidate; a dataset that was named is told so.
                return (dataset if len(node.shape or ()) < 2 else wanted), False
            file.visititems(note)
    except (OSError, RuntimeError, ValueError, KeyError):
        return dataset, False  # whoever opens the dataset says what is wrong
    if not sparse:
        return dataset, False
    if dataset is None and len(sparse) == 1 and not dense:
        return sparse[0], True
    found = [*(f"{name} (sparse)" for name in sparse), *dense]
    there_are = ", ".join(found[:NAMES_SHOWN]) + (", ..." if len(found) > NAMES_SHOWN else "")
    if dataset is not None:
        what = "does not exist" if node is None else "is no dataset"
        raise SourceError(f"{path}: {dataset!r} {what}; it holds {there_are}")
    raise SourceError(
        f"{path}: one dataset of numbers in two or more dimensions is needed, choose it by ",
        Option("dataset"),
        f"; it holds {there_are}",
    )


def is_sparse_group(node: Any) -> bool:
    """Whether `node` is a group that holds a sparse matrix of any format."""
    return isinstance(node, h5py.Group) and sparse_format(node.attrs, node.keys()) is not None


def open_csr(path: Path, group: str, *, keep_open: bool = True) -> CsrSource:
    """Open the CSR matrix in a group of an HDF5 file.

    Parameters
    ----------
    path : Path
        The file.
    group : str
        Name of the group, such as ``X`` or ``layers/counts``.
    keep_open : bool
        Hold the file open until `close`; see `RowFile`.

    Returns
    -------
    CsrSource

    Raises
    ------
    SourceError
        If the matrix is stored in another format, is empty, or its arrays do not fit each other.
    """
    name = f"{path}: {group}"
    try:
        with h5py.File(path, "r") as file:
            node = file[group]
            kind = sparse_format(node.attrs, node.keys())
            if kind != "csr":
                raise SourceError(
                    f"{name} is stored as {kind}, by columns; rows are read from CSR: convert it "
                    "(anndata: adata.X = adata.X.tocsr(), then write it again)"
                )
            datasets = [node[member] for member in CSR_MEMBERS]
            arrays = CsrArrays(*datasets)
            for array in datasets:
                _check_own_numbers(array, path)
            shape, is_told = csr_shape(node.attrs, arrays)
            chunks = [array.chunks[0] if array.chunks else 0 for array in datasets]
            nbytes = [n * array.dtype.itemsize for n, array in zip(chunks, datasets, strict=True)]
            filters = datasets[2].compression or "uncompressed"
    except SourceError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise SourceError(f"{name}: cannot be read as a CSR matrix: {one_line(error)}") from error
    cache_bytes = max(CACHE_BYTES, min(2 * max(nbytes), LARGEST_CACHE_BYTES))
    notes = [] if is_told else [_no_shape(name, shape[1])]
    chunked = f"chunks of {max(chunks[1:])} entries, {filters}" if max(chunks) else "contiguous"
    return CsrSource(
        _CsrInFile(path, group, notes, cache_bytes, keep_open=keep_open),
        shape,
        f"hdf5 /{group.strip('/')}, {chunked}",
        chunk_entries=max(chunks[1:]),
        # What the library keeps; and a chunk as stored, as decoded, and between two filters.
        library_bytes=3 * cache_bytes + 3 * max(nbytes),
        file=str(path),
    )


class _CsrInFile:
    """The arrays of a group, as datasets that the HDF5 library reads."""

    def __init__(
        self, path: Path, group: str, notes: list[str], cache_bytes: int, *, keep_open: bool
    ) -> None:
        self.name = f"{path}: {group}"
        self._file = RowFile(path, keep_open=False)
        self._group = group
        self._notes = notes
        self._cache_bytes = cache_bytes
        self._opened = self._open() if keep_open else None
        # Looking them up takes longer than putting the entries of a block in their places.
        self._kept = self._arrays(self._opened) if self._opened is not None else None

    def _open(self) -> h5py.File:
        return h5py.File(self._file.path, "r", rdcc_nbytes=self._cache_bytes)

    @contextmanager
    def opened(self, rows: RowRange) -> Iterator[CsrArrays]:
        """The datasets of a file that is still the one that was opened."""
        self._file.check_unchanged(rows)
        try:
            if self._kept is not None:
                yield self._kept
            else:
                with self._open() as file:
                    yield self._arrays(file)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            if isinstance(error, SourceError):
                raise
            raise ReadError(
                f"{self.name}: {rows} cannot be read: {one_line(error)}; a chunk is corrupt or "
                "truncated, or its filter is not installed"
            ) from error

    def _arrays(self, file: h5py.File) -> CsrArrays:
        return CsrArrays(*(file[self._group][member] for member in CSR_MEMBERS))

    def fingerprint(self, layout: str) -> str:
        """Hex digest of `layout`, and of the file's size and modification time."""
        return self._file.fingerprint(f"{layout} {self._group.strip('/')}")

    def notes(self) -> list[str]:
        """What the matrix does not say, and that threads wait for each other."""
        one = "HDF5 is read by one thread at a time, whatever their number"
        return [*self._notes, f"{self.name}: {one}"]

    def close(self) -> None:
        """Release the file."""
        self._file.close()
        if self._opened is not None:
            self._opened.close()


def _no_shape(name: str, n_features: int) -> str:
    return (
        f"{name}: has no attribute shape; it is read with {n_features} features, because none "
        "has a larger index"
    )


def _check_own_numbers(array: h5py.Dataset, path: Path) -> None:
    """Refuse an array whose numbers lie in other files, which the fingerprint does not watch."""
    if array.is_virtual or array.external or array.file.filename != str(path):
        raise SourceError(
            f"{path}: the numbers of {array.name} lie in other files; write them into this one, or "
            "name the file that holds them"
        )
