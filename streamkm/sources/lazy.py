"""Opens arrays that are not in memory: objects of h5py, dask, xarray and others.

NumPy would make an array of each, and so load it whole. Whatever is lazy is streamed here, through
its file where that is the same array, or else by slices of the object; or it is refused with an
error that names the way. The libraries are known by the module of the object's class: the caller
who has such an object has imported its library, and nobody else needs it.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.errors import ReadError, SourceError
from streamkm.sources.base import (
    ArraySpec,
    Described,
    RowRange,
    Source,
    check_dtype,
    check_shape,
)
from streamkm.sources.decoded import Decoding, decoded, honoured, read_marks
from streamkm.sources.formats import format_of, refuse_foreign_options
from streamkm.sources.layout import check_read, one_line, row_boxes, rows_for_bytes
from streamkm.sources.memory import digest_of_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["SlicedSource", "is_lazy", "open_lazy"]

#: Bytes of a block of an array without chunks.
BLOCK_BYTES = 4 << 20
#: Options of `open_source` that an object of h5py does not answer by itself.
_PASSED_ON = ("feature_dim", "nodata", "fill_is_nan", "apply_scale")


def is_lazy(array: Any) -> bool:
    """Whether `array` is an object that `open_lazy` streams or refuses."""
    opener = _OPENERS.get(_library(array))
    if opener is _open_xarray:
        # What was never in a file has no encoding: NumPy has it already.
        return type(array).__name__ == "Dataset" or bool(array.chunks or array.encoding)
    if opener is _refuse_polars:
        return type(array).__name__ == "LazyFrame"
    return opener is not None


def open_lazy(array: Any, given: Mapping[str, Any]) -> Source:
    """Source of an object that `is_lazy`, with options as `open_source` takes them.

    Raises
    ------
    SourceError
        If it cannot be read by slices; the message names another way.
    """
    nodata, fill_is_nan = given.get("nodata", ()), given.get("fill_is_nan", False)
    node = array.group if _library(array) == "anndata" and hasattr(array, "group") else array
    if _library(node) == "h5py" and _is_same_as_file(node):
        from streamkm.sources.hdf5 import open_hdf5

        refuse_foreign_options("an h5py object", given, format_of(".h5"), "")
        options = {key: value for key, value in given.items() if key in _PASSED_ON}
        return open_hdf5(Path(node.file.filename), dataset=str(node.name), **options)
    refuse_foreign_options("a lazy array", given, None, "")
    source = _OPENERS[_library(array)](array)
    if not isinstance(source, SlicedSource):
        return honoured(source, nodata, fill_is_nan)

    def noted(remarks: tuple[str, ...]) -> Source:
        source.remarks = list(remarks)
        return source

    marks = read_marks(getattr(array, "attrs", {}), source.spec.dtype)
    return decoded(noted, marks, Decoding(nodata, fill_is_nan), source.name)


class SlicedSource(Described):
    """An array of two or more dimensions that is read by slices of an object.

    Parameters
    ----------
    array : object
        It has ``shape``, ``dtype`` and ``array[slices]``.
    name : str
        Its name, for errors.
    chunks : tuple of int or None
        Extents of the largest chunk, which is best read as a whole.
    load : callable
        Makes an ndarray of a slice of `array`.

    Raises
    ------
    SourceError
        If the array is empty, has fewer than two dimensions, or holds no real numbers.
    """

    def __init__(
        self,
        array: Any,
        name: str,
        chunks: tuple[int, ...] | None,
        load: Callable[[Any], Any] = np.asarray,
    ) -> None:
        dtype = check_dtype(np.dtype(array.dtype), name)
        n_rows, n_features = check_shape(array.shape, name)
        itemsize = np.dtype(array.dtype).itemsize
        row_bytes = n_features * itemsize
        step = prod(array.shape[1:-1])
        block_rows = rows_for_bytes(BLOCK_BYTES, row_bytes, n_rows)
        if chunks:
            block_rows = min(chunks[0] * step, n_rows)
        how = f"chunks of {' x '.join(map(str, chunks))}" if chunks else "without chunks"
        self._array, self._name, self._load = array, name, load
        self._closed = False
        #: What `notes` returns.
        self.remarks: list[str] = []
        self._spec = ArraySpec(
            n_rows=n_rows,
            n_features=n_features,
            dtype=dtype,
            block_rows=block_rows,
            layout=f"{name}, {how}",
            # The slice, and two chunks as they are decoded or computed.
            scratch_bytes=2 * block_rows * row_bytes + 3 * prod(chunks or (0,)) * itemsize,
        )

    @property
    def name(self) -> str:
        """What the array is called in errors."""
        return self._name

    @property
    def spec(self) -> ArraySpec:
        """Shape, dtype and layout."""
        return self._spec

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        """Fill `out` with `rows`; see `Source.read`."""
        check_read(self._name, self._spec, rows, out, closed=self._closed)
        for box in row_boxes(self._array.shape[:-1], rows):
            target = out[box.start - rows.start : box.stop - rows.start]
            target = target.reshape(*box.shape, self._spec.n_features)
            try:
                target[...] = _plain(self._load(self._array[(*box.selection, slice(None))]))
            except Exception as error:  # a graph may raise anything
                raise ReadError(
                    f"{self._name}: {RowRange(box.start, box.stop)} cannot be read: "
                    f"{one_line(error)}"
                ) from error

    def fingerprint(self) -> str:
        """Hex digest of shape, dtype and every byte, all of which are read."""
        return digest_of_rows(self)

    def notes(self) -> list[str]:
        """The remarks of whoever opened the array."""
        return list(self.remarks)

    def close(self) -> None:
        """Refuse further reads; the array stays the caller's."""
        self._closed = True


def _plain(part: Any) -> Any:
    """What a slice became as a plain array, with NaN where it is masked: NumPy drops a mask."""
    if hasattr(part, "toarray"):  # blocks of sparse matrices
        return part.toarray()
    if not np.ma.is_masked(part):
        return part
    if part.dtype.kind != "f":
        raise ValueError(f"{part.dtype} has no NaN for masked values; convert it by astype(float)")
    return part.filled(np.nan)


def _library(array: Any) -> str:
    return type(array).__module__.partition(".")[0]


def _is_same_as_file(node: Any) -> bool:
    """Whether an object of h5py has nothing that its file, opened by its path, has not.

    A file that is open for writing cannot be opened again, and may hold what is not written yet.
    """
    if not node or not hasattr(node, "file"):
        return False
    is_member = type(node).__name__ == "Dataset" or _is_sparse(node)
    return is_member and node.file.mode == "r" and Path(node.file.filename).is_file()


def _is_sparse(node: Any) -> bool:
    from streamkm.sources.hdf5_csr import is_sparse_group

    return is_sparse_group(node)


def _open_h5py(node: Any) -> Source:
    """Source of a dataset whose file cannot be opened in its place."""
    if not node or not hasattr(node, "file"):
        raise SourceError("the h5py object belongs to a closed file; open it again, or give a path")
    file, name = node.file.filename, str(node.name)
    if _is_sparse(node):
        raise SourceError(
            f"{file}: the sparse matrix {name} is open for writing; open it with mode 'r' "
            "(anndata: backed='r'), or give the path and dataset="
        )
    if type(node).__name__ != "Dataset":
        raise SourceError(
            f"{file}: {name} is a group of h5py; give one of its datasets, or the path and dataset="
        )
    return SlicedSource(node, f"h5py dataset {name}", node.chunks)


def _open_anndata(array: Any) -> Source:
    """Source of the X of a backed AnnData."""
    group = getattr(array, "group", None)
    if group is None:
        raise SourceError(
            "an AnnData holds several matrices; give one, such as adata.X, or the path of its "
            "file (with dataset='layers/counts' for another than X)"
        )
    if _library(group) == "h5py":
        return _open_h5py(group)
    from streamkm.sources.zarr import open_zarr_node

    return open_zarr_node(group)


def _open_dask(array: Any) -> Source:
    """Source of a dask array, each of whose blocks is computed where it is read."""
    if type(array).__name__ != "Array":
        raise SourceError(
            f"a dask {type(array).__name__} cannot be read by rows; write it as Parquet "
            "(to_parquet) and give the folder, or give to_dask_array(lengths=True)"
        )
    if any(extent != extent for extent in array.shape):  # unknown ones are NaN
        raise SourceError(
            f"a dask array of unknown shape {array.shape} cannot be read by rows; call its "
            "compute_chunk_sizes() first"
        )
    chunks = tuple(max(extents) for extents in array.chunks)
    # By the calling thread alone: readers are threads already, and each holds one block.
    return SlicedSource(
        array, "dask array", chunks, lambda part: part.compute(scheduler="synchronous")
    )


def _open_xarray(array: Any) -> Source:
    """Source of a DataArray of two dimensions, lazy or not."""
    if type(array).__name__ != "DataArray":
        raise SourceError(
            "an xarray Dataset holds several variables; give a DataArray with features last, such "
            "as ds.to_dataarray('band').transpose(..., 'band'), or the path of its store"
        )
    if array.ndim != 2:
        raise SourceError(
            f"a DataArray of two dimensions is needed, rows and features, this one has "
            f"{array.dims}; stack the others: array.stack(row=[...]).transpose('row', ...)"
        )
    if array.chunks:
        return _open_dask(array.data)
    return SlicedSource(array, "xarray DataArray", None, lambda part: np.asarray(part.values))


def _open_sliced(array: Any) -> Source:
    """Source of an array of PyTables or TensorStore."""
    library = _library(array)
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise SourceError(f"a {type(array).__name__} of {library} is no array; give one, or a path")
    return SlicedSource(array, f"{library} array", getattr(array, "chunkshape", None))


def _refuse_netcdf4(array: Any) -> Source:
    raise SourceError(
        f"a {type(array).__name__} of netCDF4 cannot be read by several threads; give the path of "
        "its file and the variable's name as dataset="
    )


def _refuse_polars(array: Any) -> Source:
    raise SourceError(
        f"a polars {type(array).__name__} is a query without rows; collect() it if they fit in "
        "memory, or sink_parquet(path) and give the path"
    )


#: What opens the objects of a library, by the name of its package.
_OPENERS: dict[str, Callable[[Any], Source]] = {
    "anndata": _open_anndata,
    "dask": _open_dask,
    "dask_expr": _open_dask,
    "h5py": _open_h5py,
    "netCDF4": _refuse_netcdf4,
    "polars": _refuse_polars,
    "tables": _open_sliced,
    "tensorstore": _open_sliced,
    "xarray": _open_xarray,
}
