"""Reads HDF5 datasets: contiguous ones as rows of a file, all others through the HDF5 library.

The library holds one lock for the whole process. A contiguous dataset whose stored type is the
NumPy type in memory is rows behind an offset, so that several threads read it like any flat file.
The library reads all others, for one thread at a time: datasets of chunks, types that it must
convert (12 bits of 16, bfloat16), and cubes whose features are not the last axis.
"""

from __future__ import annotations

from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import h5py

from streamkm.errors import Option, ReadError, SourceError
from streamkm.sources.anndata import named_by_var, var_names
from streamkm.sources.axes import Axes, axes_note, choose_axes
from streamkm.sources.base import ArraySpec, Described, RowRange, Source, check_dtype
from streamkm.sources.decoded import Decoding, decoded, read_marks
from streamkm.sources.flat import BLOCK_BYTES, FlatSource
from streamkm.sources.hdf5_csr import choose_member, open_csr
from streamkm.sources.layout import check_read, one_line, row_boxes, rows_for_bytes
from streamkm.sources.names import shown as shown_names
from streamkm.sources.rowfile import RowFile
from streamkm.sources.sparse import refuse_dense_options
from streamkm.sources.variables import open_variables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from streamkm.sources.axes import FeatureDims

__all__ = ["Hdf5Source", "axis_names", "open_hdf5"]

#: Datasets that an error lists, at most.
NAMES_SHOWN = 8
#: Bytes of a block, at most, if it can be cut along a further axis.
SLAB_BYTES = 64 << 20
#: Bytes of decoded chunks and metadata that the library keeps for a dataset.
_LIBRARY_BYTES = 4 << 20
#: The first bytes of a netCDF file of the classic format, which is no HDF5.
_CLASSIC = b"CDF"


def open_hdf5(
    path: Path,
    *,
    dataset: str | None = None,
    variable: Sequence[str] = (),
    feature_dim: FeatureDims | None = None,
    nodata: tuple[float | int, ...] = (),
    fill_is_nan: bool | tuple[float | int, ...] = False,
    apply_scale: bool = False,
    keep_open: bool = True,
) -> Source:
    """Open a dataset of two or more dimensions, or several datasets as features.

    Parameters
    ----------
    path : Path
        The file.
    dataset : str, optional
        Name of the dataset, such as ``obsm/X_pca``, or of the group of a CSR matrix, such as
        ``layers/counts``; by default the X of an ``.h5ad`` file, or else the only one of numbers in
        two or more dimensions. With `variable`, the group that they lie in.
    variable : sequence of str
        Names of datasets of one shape, each of which is a feature, or several with `feature_dim`.
    feature_dim : str, int or sequence of them, optional
        The axes that are features, by name or number; by default the last.
    nodata, fill_is_nan, apply_scale
        See `streamkm.sources.decoded.Decoding`.
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
    how = Decoding(nodata, fill_is_nan, apply_scale)
    if not variable:
        is_named = dataset is not None
        dataset, is_sparse = choose_member(path, dataset)
        if is_sparse and dataset is not None:
            refuse_dense_options(f"{path}: {dataset}", feature_dim, how)
            source: Source = open_csr(path, dataset, keep_open=keep_open)
        else:
            source = _open_dataset(
                path, dataset, feature_dim, how, is_named=is_named, keep_open=keep_open
            )
        return _named(source, path, dataset or source.spec.member)
    feature_dim = () if feature_dim is None else feature_dim

    def open_one(name: str) -> Source:
        inside = f"{dataset}/{name}" if dataset else name
        return _open_dataset(path, inside, feature_dim, how, is_named=True, keep_open=keep_open)

    return open_variables(open_one, variable, str(path))


def _named(source: Source, path: Path, member: str) -> Source:
    """`source` with the names of AnnData's ``var``, if they lie beside `member`."""
    try:
        with h5py.File(path, "r") as file:
            names = var_names(file, member)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        source.close()
        raise SourceError(f"{path}: names in var cannot be read: {one_line(error)}") from error
    return named_by_var(source, names)


def _open_dataset(
    path: Path,
    dataset: str | None,
    feature_dim: FeatureDims | None,
    how: Decoding,
    *,
    is_named: bool,
    keep_open: bool,
) -> Source:
    try:
        with h5py.File(path, "r") as file:
            found = _dataset(file, dataset, str(path))
            _check_own_numbers(found, path)
            home = Path(found.file.filename)
            if not home.samefile(path):
                return _open_dataset(
                    home, found.name, feature_dim, how, is_named=is_named, keep_open=keep_open
                )
            name = f"{path}: {found.name}"
            stored = _numpy_dtype(found)
            if stored is None:
                raise SourceError(
                    f"{name}: NumPy has no type for its elements, such as integers of 24 bits; "
                    "write them again as one that it has"
                )
            dtype = check_dtype(stored, name)
            axes = choose_axes(found.shape, axis_names(found), feature_dim, name)
            notes = (*axes_note(axes, name), *_unwritten(found, name))
            member = "" if is_named else found.name
            return decoded(
                lambda more: _source(
                    path, found, axes, keep_open=keep_open, member=member, remarks=notes + more
                ),
                read_marks(found.attrs, dtype),
                how,
                name,
            )
    except SourceError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise SourceError(
            f"{path}: cannot be opened as HDF5: {one_line(error)}{_classic(path)}"
        ) from error


def _source(
    path: Path,
    dataset: h5py.Dataset,
    axes: Axes,
    *,
    keep_open: bool,
    member: str,
    remarks: tuple[str, ...],
) -> Source:
    """The dataset as rows of a file if they are just that, else through the library."""
    offset = dataset.id.get_offset()
    lies_in_order = axes.are_last or not axes.features
    if offset is None or not lies_in_order or not _is_stored_as_in_memory(dataset):
        return Hdf5Source(path, dataset, axes, keep_open=keep_open, remarks=remarks, member=member)
    expected, size = offset + dataset.nbytes, path.stat().st_size
    if size < expected:
        raise SourceError(
            f"{path}: truncated: the dataset {dataset.name} ends at byte {expected}, the file has "
            f"{size}; copy or write it again"
        )
    return FlatSource(
        RowFile(path, keep_open=keep_open),
        n_rows=axes.n_rows,
        n_features=axes.n_features,
        dtype=check_dtype(dataset.dtype, str(path)),
        offset=offset,
        swapped=not dataset.dtype.isnative,
        kind=f"hdf5 {dataset.name}{axes.describe()}",
        remarks=remarks,
        grid=axes.grid(f"{path}{dataset.name}"),
        member=member,
    )


class Hdf5Source(Described):
    """A dataset that the HDF5 library reads.

    Parameters
    ----------
    path : Path
        The file.
    dataset : h5py.Dataset
        Numbers in as many dimensions as `axes`. The source reads its layout, and keeps only its
        name.
    axes : Axes
        Which of its axes are features.
    keep_open : bool
        As in `open_hdf5`.
    member : str
        See `ArraySpec.member`.
    remarks : tuple of str
        Notes that come first.
    """

    def __init__(
        self,
        path: Path,
        dataset: h5py.Dataset,
        axes: Axes,
        *,
        keep_open: bool,
        member: str = "",
        remarks: tuple[str, ...] = (),
    ) -> None:
        self._file = RowFile(path, keep_open=False)
        self._dataset = dataset.name
        self._axes = axes
        self._remarks = remarks
        row_bytes = axes.n_features * dataset.dtype.itemsize
        chunks = dataset.chunks
        filters = dataset.compression or "uncompressed"
        how = f"chunks of {' x '.join(map(str, chunks))}, {filters}" if chunks else "pieces"
        shape = axes.rows_first(axes.shape)
        block_rows = min(
            _block_rows(shape, axes.rows_first(chunks) if chunks else None, row_bytes), axes.n_rows
        )
        chunk_bytes = prod(chunks or (1,)) * dataset.dtype.itemsize
        # The library fills only memory in the order of the file.
        swapped_bytes = 0 if axes.are_last or not axes.features else block_rows * row_bytes
        self._spec = ArraySpec(
            n_rows=axes.n_rows,
            n_features=axes.n_features,
            dtype=check_dtype(dataset.dtype, str(path)),
            block_rows=block_rows,
            layout=f"hdf5 {self._dataset}, {how}{axes.describe()}",
            # A chunk as stored, as decoded, and once more between two filters.
            scratch_bytes=3 * chunk_bytes + _LIBRARY_BYTES + swapped_bytes,
            grid=axes.grid(f"{path}{dataset.name}"),
            member=member,
            file=str(path),
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
                for box in row_boxes(self._axes.row_shape, rows):
                    target = out[box.start - rows.start : box.stop - rows.start]
                    view = self._axes.stored_view(target, box)
                    selection = self._axes.selection(box)
                    if view.flags.c_contiguous:
                        dataset.read_direct(view, source_sel=selection)
                    else:
                        view[...] = dataset[selection]
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise ReadError(
                f"{self.name}: {rows} of {self._dataset} cannot be read: {one_line(error)}; "
                "a chunk is corrupt or truncated, or its filter is not installed"
            ) from error

    def fingerprint(self) -> str:
        """Hex digest of layout and shape, and the file's size and modification time."""
        return self._file.fingerprint(f"{self._spec.layout} {self._spec.dtype} {self._axes.shape}")

    def notes(self) -> list[str]:
        """The remarks of whoever opened the file, and that threads wait for each other."""
        return [
            *self._remarks,
            f"{self.name}: chunked HDF5 is read by one thread at a time, whatever their number",
        ]

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
    records: list[str] = []

    def note(member: str, node: h5py.Dataset | h5py.Group) -> None:
        # An empty dataset has the shape None.
        stored = _numpy_dtype(node) if isinstance(node, h5py.Dataset) else None
        if stored is None:
            return
        if len(node.shape or ()) >= 2 and stored.kind in "fiu":
            found[member] = node
        elif stored.names is not None:
            records.append(member)

    file.visititems(note)
    shown = [f"{member} {node.shape}" for member, node in list(found.items())[:NAMES_SHOWN]]
    more = ", ..." if len(found) > NAMES_SHOWN else ""
    there_are = f"it holds {', '.join(shown)}{more}" if found else "it holds none"
    if records:
        there_are += f", and records (compound types), which are no rows, in {shown_names(records)}"
    if name is None:
        if len(found) != 1:
            raise SourceError(
                f"{path}: one dataset of numbers in two or more dimensions is needed, choose it "
                "by ",
                Option("dataset"),
                f"; {there_are}{_or_variables(found)}",
            )
        return next(iter(found.values()))
    node = file.get(name)
    if not isinstance(node, h5py.Dataset) or node.shape is None:
        what = "is no dataset" if node is not None else "does not exist"
        raise SourceError(f"{path}: {name!r} {what}; {there_are}")
    return node


def _numpy_dtype(dataset: h5py.Dataset) -> np.dtype[np.generic] | None:
    """The type of its elements in memory; None if NumPy has none, such as 24 bits."""
    try:
        dtype: np.dtype[np.generic] = dataset.dtype
    except (TypeError, ValueError):
        return None
    return dtype


def _is_stored_as_in_memory(dataset: h5py.Dataset) -> bool:
    """Whether the stored bytes are those of the NumPy type, but for the byte order.

    HDF5 stores numbers of any precision, at any bit, and floats with fields of any width; h5py
    names the NumPy type that it converts them to.
    """
    return bool(dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype)))


def axis_names(dataset: h5py.Dataset) -> list[str]:
    """The name of each axis: its label, or the name of a scale of it; ``""`` without."""
    names = []
    for dim in dataset.dims:
        scale = dim[0].name if not dim.label and len(dim) else None
        names.append(dim.label or (scale or "").rpartition("/")[2])
    return names


def _unwritten(dataset: h5py.Dataset, name: str) -> list[str]:
    """A note on chunks, or on a whole dataset, that were never written."""
    if dataset.chunks:
        grid = zip(dataset.shape, dataset.chunks, strict=True)
        total = prod(-(-extent // size) for extent, size in grid)
        missing = total - dataset.id.get_num_chunks()
        what = f"{missing} of {total} chunks were"
    else:
        missing = int(dataset.id.get_storage_size() == 0)
        what = "the dataset was"
    if not missing:
        return []
    return [f"{name}: {what} never written, their rows read as the fill value {dataset.fillvalue}"]


def _or_variables(found: dict[str, h5py.Dataset]) -> str | Option:
    shapes = [node.shape for node in found.values()]
    alike = len(shapes) != len(set(shapes))
    return ", or several of one shape as features by --variable" if alike else ""


def _classic(path: Path) -> str:
    """Advice for a netCDF file of the classic format."""
    try:
        with path.open("rb") as file:
            is_classic = file.read(len(_CLASSIC)) == _CLASSIC
    except OSError:
        return ""
    return "; it is netCDF of the classic format: nccopy -k nc4 converts it" if is_classic else ""


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
