"""Opens a Zarr array, or arrays of a group, with the names and marks in their metadata.

Names of axes and marks for "no data" are where xarray puts them: in ``dimension_names`` and
``_FillValue`` of format 3, in ``_ARRAY_DIMENSIONS`` and the fill value of format 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import zarr
from zarr.storage import LocalStore

from streamkm.errors import Option, SourceError
from streamkm.sources.anndata import home_of, named_by_var, var_names
from streamkm.sources.axes import axes_note, choose_axes
from streamkm.sources.base import DTYPES, check_dtype
from streamkm.sources.decoded import AS_STORED, Decoding, Marks, decoded, read_marks
from streamkm.sources.layout import one_line
from streamkm.sources.sparse import refuse_dense_options
from streamkm.sources.variables import open_variables
from streamkm.sources.zarr.csr import is_sparse_group, open_csr_group, x_of_anndata
from streamkm.sources.zarr.source import ZarrSource

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamkm.sources.axes import FeatureDims
    from streamkm.sources.base import Source

    AnyArray = zarr.Array[Any]

__all__ = ["array_names", "open_zarr", "open_zarr_node"]

#: The attribute by which xarray names the axes of an array of format 2.
_DIMENSIONS = "_ARRAY_DIMENSIONS"
#: Arrays of a group that an error lists, at most.
NAMES_SHOWN = 5


def open_zarr(
    path: Path,
    *,
    dataset: str | None = None,
    variable: Sequence[str] = (),
    feature_dim: FeatureDims | None = None,
    nodata: tuple[float | int, ...] = (),
    fill_is_nan: bool | tuple[float | int, ...] = False,
    apply_scale: bool = False,
) -> Source:
    """Open the Zarr array in a folder.

    Parameters
    ----------
    path : Path
        The array's own folder, in a store or nested in a group; or a group's, with one of the
        next two.
    dataset : str, optional
        Path of the array in the group; with `variable`, of the group that they lie in.
    variable : sequence of str
        Names of arrays of one shape, each of which is a feature, or several with `feature_dim`.
    feature_dim : str, int or sequence of them, optional
        The axes that are features, by name or number; by default the last.
    nodata, fill_is_nan, apply_scale
        See `streamkm.sources.decoded.Decoding`.

    Returns
    -------
    Source

    Raises
    ------
    SourceError
        If it holds a group that is no CSR matrix, or nothing that zarr can open.
    """
    try:
        # The array's own folder is the store, so that no metadata of a group is needed.
        node = zarr.open(store=LocalStore(path, read_only=True), mode="r")
    except Exception as error:  # zarr has no base class for all that metadata may do wrong
        raise SourceError(f"{path}: cannot be opened as Zarr: {one_line(error)}") from error
    how = Decoding(nodata, fill_is_nan, apply_scale)
    return open_zarr_node(
        node, str(path), dataset=dataset, variable=variable, feature_dim=feature_dim, how=how
    )


def open_zarr_node(
    node: object,
    name: str | None = None,
    *,
    dataset: str | None = None,
    variable: Sequence[str] = (),
    feature_dim: FeatureDims | None = None,
    how: Decoding = AS_STORED,
) -> Source:
    """Source of an open Zarr array, or of arrays in an open group.

    Parameters
    ----------
    node : zarr.Array or zarr.Group
        The array, or the group of a CSR matrix, or one that AnnData wrote: its X. Any other group
        needs `dataset` or `variable`.
    name : str, optional
        Name of the array, for errors; by default its store and path.
    dataset, variable, feature_dim
        As of `open_zarr`.
    how : Decoding
        How stored values are read.

    Returns
    -------
    Source

    Raises
    ------
    SourceError
        If it is another group, whose arrays the message lists, or no array of numbers in two or
        more dimensions, or if its metadata make no sense.
    """
    if not isinstance(node, zarr.Array | zarr.Group):
        raise SourceError(f"{name}: is no Zarr array but a {type(node).__name__}")
    name = name or str(node.store_path)
    if dataset is not None:
        node, name = _member(node, dataset, name, "dataset"), f"{name.rstrip('/')}/{dataset}"
    if not variable:
        x, name = x_of_anndata(node, name)
        if isinstance(x, zarr.Group) and is_sparse_group(x):
            refuse_dense_options(name, feature_dim, how)
            source: Source = open_csr_group(x, name)
        else:
            source = _open_array(x, name, feature_dim, how)
        return _named(source, x)
    feature_dim = () if feature_dim is None else feature_dim

    def open_one(member: str) -> Source:
        inside = _member(node, member, name, "variable")
        return _open_array(inside, f"{name.rstrip('/')}/{member}", feature_dim, how)

    return open_variables(open_one, variable, name)


def _named(source: Source, node: Any) -> Source:
    """`source` with the names of AnnData's ``var``, if `node` is a matrix that they are of."""
    store, path = node.store, node.path
    if isinstance(store, LocalStore):
        # A store may begin at the matrix itself, in the midst of an AnnData.
        path = (store.root.absolute() / path).as_posix()
    found = home_of(path)
    if found is None:
        return source
    home, member = found
    try:
        if isinstance(store, LocalStore):
            store, home = LocalStore(home, read_only=True), ""
        names = var_names(zarr.open_group(store, path=home, mode="r"), member)
    except FileNotFoundError:
        return source
    except Exception as error:  # codecs and stores raise errors of any class
        raise SourceError(
            f"{source.name}: names in var cannot be read: {one_line(error)}"
        ) from error
    return named_by_var(source, names)


def _member(node: Any, member: str, name: str, option: str) -> Any:
    """The array or group at the path `member` of a group."""
    if isinstance(node, zarr.Array):
        raise SourceError(
            f"{name}: ", Option(option, member), " chooses from a group, this is an array; leave "
            "it out",
        )  # fmt: skip
    try:
        return node[member]
    except KeyError:
        raise SourceError(
            f"{name}: ", Option(option, member), f" does not exist; {_advice(node, name)}"
        ) from None
    except Exception as error:
        raise SourceError(
            f"{name}/{member}: cannot be opened as Zarr: {one_line(error)}"
        ) from error


def _open_array(node: Any, name: str, feature_dim: FeatureDims | None, how: Decoding) -> Source:
    if isinstance(node, zarr.Group):
        raise SourceError(f"{name}: is a Zarr group, an array is needed; {_advice(node, name)}")
    try:
        dtype = check_dtype(node.dtype, name)
        axes = choose_axes(node.shape, _dims(node), feature_dim, name)
        notes = axes_note(axes, name)
        return decoded(
            lambda more: ZarrSource(node, name, axes, remarks=(*notes, *more)),
            _marks(node, dtype), how, name,
        )  # fmt: skip
    except SourceError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # zarr does not check all metadata: not chunks of 0 rows, nor settings of codecs.
        raise SourceError(f"{name}: its metadata make no sense: {one_line(error)}") from error


def _dims(array: AnyArray) -> Sequence[str | None]:
    """Names of its axes: those of format 3, or the attribute by which xarray names them in 2."""
    names: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.get(_DIMENSIONS)
    if not isinstance(names, list | tuple):
        return ()
    return [name if isinstance(name, str) else None for name in names]


def _marks(array: AnyArray, dtype: str) -> Marks:
    # In format 2 xarray has no other place for "no data" than the fill value of chunks.
    is_mark = array.metadata.zarr_format == 2 and _DIMENSIONS in array.attrs
    fill = array.fill_value if is_mark else None
    return read_marks(array.attrs.asdict(), dtype, fill)


def array_names(path: Path) -> str:
    """The arrays in the Zarr group at `path`, as a phrase for an error."""
    try:
        node = zarr.open(store=LocalStore(path, read_only=True), mode="r")
    except Exception as error:  # noqa: BLE001  only advice, which tells what went wrong
        return f"{path} cannot be opened as Zarr: {one_line(error)}"
    if isinstance(node, zarr.Group):
        return _advice(node, str(path))
    return f"{path} is an array itself"


def _advice(group: zarr.Group, name: str) -> str:
    """The arrays of a group that can be opened, and how."""
    found: dict[str, tuple[int, ...]] = {}
    try:
        for member, node in group.members(max_depth=None):
            if isinstance(node, zarr.Array) and _is_openable(node):
                found[member] = node.shape
            if len(found) > NAMES_SHOWN:
                break
    except Exception as error:  # noqa: BLE001  only advice, as above
        return f"its members cannot be listed: {one_line(error)}"
    if not found:
        return "it holds none of numbers in two or more dimensions"
    names = sorted(list(found)[:NAMES_SHOWN])
    more = ", ..." if len(found) > NAMES_SHOWN else ""
    listed = ", ".join(f"{member} {found[member]}" for member in names)
    advice = f"it holds {listed}{more}: open {name.rstrip('/')}/{names[0]}, for example"
    if len(set(found.values())) < len(found):
        advice += ", or make several of one shape features with --variable"
    return advice


def _is_openable(array: AnyArray) -> bool:
    """Whether an array can be opened by itself: no coordinate, no text, not empty."""
    return array.ndim >= 2 and array.size > 0 and array.dtype.name in DTYPES
