"""Reads HDF5 datasets: contiguous ones as rows of a file, all others through the HDF5 library.

The library holds one lock for the whole process. A contiguous dataset is rows behind an offset, so
that several threads read it like any flat file. The library reads a dataset of chunks, straight
into the caller's memory, for one thread at a time.
"""

from __future__ import annotations

from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import h5py

from streamkm.errors import Option, ReadError, SourceError
from streamkm.sources.base import ArraySpec, RowRange, Source, check_dtype, check_shape
from streamkm.sources.flat import BLOCK_BYTES, FlatSource
from streamkm.sources.hdf5_csr import choose_member, open_csr
from streamkm.sources.layout import check_read, one_line, row_boxes, rows_for_bytes
from streamkm.sources.rowfile import RowFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

__all__ = ["Hdf5Source", "open_hdf5"]

#: Datasets that an error lists, at most.
NAMES_SHOWN = 8
#: Bytes of a block, at most, if it can be cut along a further axis.
SLAB_BYTES = 64 << 20
#: Bytes of decoded chunks and metadata that the library keeps for a dataset.
_LIBRARY_BYTES = 4 << 20


def open_hdf5(path: Path, *, dataset: str | None = None, keep_open: bool = True) -> Source:
    """Open a dataset of two or more dimensions.

    Parameters
    ----------
    path : Path
        The file.
    dataset : str, optional
        Name of the dataset, such as ``obsm/X_pca``, or of the group of a CSR matrix, such as
        ``layers/counts``; by default the X of an ``.h5ad`` file, or else the only one of numbers in
        two or more dimensions.
    keep_open : bool
        Hold the file open until `close`; see `RowFile`.

    Returns
    -------
    Source

    Raises
    ------
    SourceError
        If it is no HDF5 file, or holds no such dataset.
    """
    dataset, is_sparse = choose_member(path, dataset)
    if is_sparse and dataset is not None:
        return open_csr(path, dataset, keep_open=keep_open)
    try:
        with h5py.File(path, "r") as file:
            found = _dataset(file, dataset, str(path))
            _check_own_numbers(found, path)
            home = Path(found.file.filename)
            if not home.samefile(path):
                return open_hdf5(home, dataset=found.name, keep_open=keep_open)
            dtype = check_dtype(found.dtype, f"{path}: {found.name}")
            n_rows, n_features = check_shape(found.shape, f"{path}: {found.name}")
            offset = found.id.get_offset()
            if offset is None:
                return Hdf5Source(path, found, keep_open=keep_open)
            swapped, name = not found.dtype.isnative, found.name
    except SourceError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise SourceError(f"{path}: cannot be opened as HDF5: {one_line(error)}") from error
    source = FlatSource(
        RowFile(path, keep_open=keep_open),
        n_rows=n_rows,
        n_features=n_features,
        dtype=dtype,
        offset=offset,
        swapped=swapped,
        kind=f"hdf5 {name}",
    )
    expected = offset + source.spec.nbytes
    if path.stat().st_size < expected:
        source.close()
        raise SourceError(
            f"{path}: truncated: the dataset {name} ends at byte {expected}, the file has "
            f"{path.stat().st_size}; copy or write it again"
        )
    return source


class Hdf5Source:
    """A dataset that the HDF5 library reads.

    Parameters
    ----------
    path : Path
        The file.
    dataset : h5py.Dataset
        Numbers in two or more dimensions. The source reads its layout, and keeps only its name.
    keep_open : bool
        As in `open_hdf5`.
    """

    def __init__(self, path: Path, dataset: h5py.Dataset, *, keep_open: bool) -> None:
        self._file = RowFile(path, keep_open=False)
        self._dataset = dataset.name
        self._shape = dataset.shape
        n_rows, n_features = check_shape(dataset.shape, str(path))
        row_bytes = n_features * dataset.dtype.itemsize
        chunks = dataset.chunks
        filters = dataset.compression or "uncompressed"
        how = f"chunks of {' x '.join(map(str, chunks))}, {filters}" if chunks else "pieces"
        block_rows = _block_rows(dataset.shape, chunks, row_bytes)
        chunk_bytes = prod(chunks or (1,)) * dataset.dtype.itemsize
        self._spec = ArraySpec(
            n_rows=n_rows,
            n_features=n_features,
            dtype=check_dtype(dataset.dtype, str(path)),
            block_rows=min(block_rows, n_rows),
            layout=f"hdf5 {self._dataset}, {how}",
            # A chunk as stored, as decoded, and once more between two filters.
            scratch_bytes=3 * chunk_bytes + _LIBRARY_BYTES,
        )
        self._opened = h5py.File(path, "r") if keep_open else None

    @property
    def name(self) -> str:
        """Path of the file."""
        return str(self._file.path)

    @property
    def spec(self) -> ArraySpec:
        """Shape, dtype and layout."""
        return self._spec

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out` with `rows`; see `Source.read`."""
        check_read(self.name, self._spec, rows, out, closed=self._file.closed)
        self._file.check_unchanged(rows)
        try:
            with self._handle() as file:
                dataset = file[self._dataset]
                for box in row_boxes(self._shape[:-1], rows):
                    target = out[box.start - rows.start : box.stop - rows.start]
                    target = target.reshape(*box.shape, self._spec.n_features)
                    dataset.read_direct(target, source_sel=(*box.selection, slice(None)))
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise ReadError(
                f"{self.name}: {rows} of {self._dataset} cannot be read: {one_line(error)}; "
                "a chunk is corrupt or truncated, or its filter is not installed"
            ) from error

    def fingerprint(self) -> str:
        """Hex digest of layout and shape, and the file's size and modification time."""
        return self._file.fingerprint(f"{self._spec.layout} {self._spec.dtype} {self._shape}")

    def notes(self) -> list[str]:
        """A note that threads wait for each other."""
        return [f"{self.name}: chunked HDF5 is read by one thread at a time, whatever their number"]

    def close(self) -> None:
        """Release the file."""
        self._file.close()
        if self._opened is not None:
            self._opened.close()

    @contextmanager
    def _handle(self) -> Iterator[h5py.File]:
        if self._opened is not None:
            yield self._opened
            return
        with h5py.File(self._file.path, "r") as file:
            yield file


def _dataset(file: h5py.File, name: str | None, path: str) -> h5py.Dataset:
    """The dataset `name`, or the only one; the error lists those that there are."""
    found: dict[str, h5py.Dataset] = {}

    def note(member: str, node: h5py.Dataset | h5py.Group) -> None:
        # An empty dataset has the shape None.
        is_array = isinstance(node, h5py.Dataset) and len(node.shape or ()) >= 2
        if is_array and node.dtype.kind in "fiu":
            found[member] = node

    file.visititems(note)
    shown = [f"{member} {node.shape}" for member, node in list(found.items())[:NAMES_SHOWN]]
    more = ", ..." if len(found) > NAMES_SHOWN else ""
    there_are = f"it holds {', '.join(shown)}{more}" if found else "it holds none"
    if name is None:
        if len(found) != 1:
            raise SourceError(
                f"{path}: one dataset of numbers in two or more dimensions is needed, choose it "
                "by ",
                Option("dataset"),
                f"; {there_are}",
            )
        return next(iter(found.values()))
    node = file.get(name)
    if not isinstance(node, h5py.Dataset) or node.shape is None:
        what = "is no dataset" if node is not None else "does not exist"
        raise SourceError(f"{path}: {name!r} {what}; {there_are}")
    return node


def _check_own_numbers(dataset: h5py.Dataset, path: Path) -> None:
    """Refuse a dataset whose numbers lie in other files, which the fingerprint does not watch."""
    others = [name for name, _, _ in dataset.external or ()]
    kind = "external"
    if dataset.is_virtual:
        others, kind = [source.file_name for source in dataset.virtual_sources()], "virtual"
    if others:
        raise SourceError(
            f"{path}: {dataset.name} is {kind}, its numbers lie in {others[0]} "
            f"({len(others):,} in all), which HDF5 reads as fill values where it is missing; write "
            "them into one dataset, or name the files themselves (a glob, or their folder)"
        )
    # A link may lead to a file in the same folder. A stranger's file must not lead anywhere else.
    folder, home = path.parent.resolve(), Path(dataset.file.filename)
    if not home.resolve().is_relative_to(folder) and not home.samefile(path):
        raise SourceError(
            f"{path}: {dataset.name} lies in {home}, outside of its folder; move that file beside "
            "it, or name that file itself"
        )


def _block_rows(shape: tuple[int, ...], chunks: tuple[int, ...] | None, row_bytes: int) -> int:
    """Rows of a block: a slab of chunks that share their place along the first axes."""
    leading = shape[:-1]
    if chunks is None:
        return rows_for_bytes(BLOCK_BYTES, row_bytes, prod(leading))
    slabs = [chunk * prod(leading[axis + 1 :]) for axis, chunk in enumerate(chunks[:-1])]
    return next((rows for rows in slabs if rows * row_bytes <= SLAB_BYTES), slabs[-1])
