"""Outputs as arrays of a Zarr group, in the shape of the source's rows: a map of labels.

``store.zarr/cluster`` is an array beside others, with the names of its dimensions, their
coordinates and the fill value that xarray expects, so that ``xarray.open_zarr("store.zarr")`` shows
a map. The array grows beside the store and is moved into it when it is complete. A group that is
there is added to; nothing in it is changed, apart from its list of members if it has one.

In a table of AnnData, such as ``store.zarr/obs``, the array is one more column.
"""

from __future__ import annotations

import errno
import json
import logging
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.errors import ContainsGroupError
from zarr.storage import LocalStore

from streamkm.errors import ConfigError
from streamkm.files import (
    fsync_directory,
    fsync_file,
    make_directory,
    names_in,
    read_bytes,
    remove_tree,
    rename_durably,
    write_atomically,
    write_durably,
)
from streamkm.sinks.hdf5_coordinates import hdf5_coordinates
from streamkm.sinks.places import beside, store_of
from streamkm.sinks.zarr import ZarrSink

if TYPE_CHECKING:
    from streamkm.sources import Grid

__all__ = ["ZarrMapSink"]

logger = logging.getLogger("streamkm")

#: Name of the only dimension of a source that has no names.
_ROW = "row"
#: Name of the last dimension where rows have several values: from the nearest centroid on.
_NEAREST = "nearest"


class ZarrMapSink(ZarrSink):
    """An array in a Zarr group.

    Parameters
    ----------
    target, n_rows, dtype, state, chunk_rows
        See `ZarrSink`.
    grid : Grid, optional
        The axes of the rows; by default they are one axis.
    origin : Path, optional
        The file or the Zarr array of the rows: if it is of AnnData, a column of obs must be of
        the same cells.
    """

    def __init__(
        self,
        target: Path,
        *,
        n_rows: int,
        dtype: np.dtype[Any],
        state: dict[str, Any] | None,
        chunk_rows: int,
        grid: Grid | None = None,
        origin: Path | None = None,
    ) -> None:
        self._group = target.parent
        in_group = _group_at(self._group)
        self._is_column = in_group is not None and _is_table(in_group)
        if self._is_column and dtype.shape:
            raise ConfigError(
                f"{target}: a column of {target.parent} holds one value a row, not the "
                f"{dtype.shape[0]} nearest; choose another group, or write .npy, .zarr or .parquet"
            )
        if in_group is not None and self._is_column:
            _refuse_other_length(target, in_group, n_rows)
            _refuse_other_cells(target, in_group, origin)
            grid = None  # A table has one axis, and knows no coordinates.
        self._of_rows = grid.shape if grid is not None else (n_rows,)
        self._extents = (*self._of_rows, *dtype.shape)
        self._dims = _names(grid, len(self._of_rows))
        if dtype.shape:
            if _NEAREST in self._dims:
                raise ConfigError(
                    f"{target}: the rows have a dimension {_NEAREST!r} already; rename it in the "
                    "source, or write .npy, .zarr or .parquet"
                )
            self._dims += (_NEAREST,)
        home = Path(grid.group) if grid is not None and grid.group else None
        source = (_group_at(home) or hdf5_coordinates(home)) if home is not None else None
        there = _nearest_group(target)
        # A group that is there decides; a new one is like the source, whose coordinates it gets.
        formats = [g.metadata.zarr_format for g in (there, source) if g is not None]
        self._format = formats[0] if formats else 3
        present = {} if in_group is None else _arrays(in_group)
        self._refuse_other_extents(target, present)
        found = {} if source is None else _coordinates(source, self._dims)
        unseen = [dim for dim in self._dims if dim in present and dim not in found]
        if grid is not None and unseen:
            logger.warning(
                "note: %s: whether %s in %s fits the rows was not checked, because the source "
                "shows no coordinates",
                target, ", ".join(unseen), target.parent,
            )  # fmt: skip
        self._mapping = _grid_mapping(source) if source is not None else None
        self._auxiliary = [
            name for name in found if name not in self._dims and name != self._mapping
        ]
        self._copies = {name: array for name, array in found.items() if name not in present}
        for name in found.keys() & present.keys():
            _refuse_other_values(target, name, found[name], present[name])
        for name in self._copies:
            remove_tree(beside(target, f".partial.{name}"))
        super().__init__(target, n_rows=n_rows, dtype=dtype, state=state, chunk_rows=chunk_rows)

    @classmethod
    def announce(cls, path: Path) -> None:
        """List the array in the metadata of every group above it that lists its members."""
        store = store_of(path)
        _list_column(path)
        for group in path.parents:
            if _is_consolidated(group):
                with warnings.catch_warnings():
                    # That version 3 of the format does not describe it yet: it is there already.
                    warnings.simplefilter("ignore")
                    zarr.consolidate_metadata(LocalStore(group))
                _sync_metadata(group)
            if group == store:
                break

    def finish(self) -> None:
        """See `Sink`; the group gets the coordinates that it lacks."""
        super().finish()
        self._make_group()
        for name, array in self._copies.items():
            partial = beside(self.path, f".partial.{name}")
            remove_tree(partial)
            if not (self._group / name).exists():
                _copy(array, partial, self._format)
                _move_in(partial, self._group / name)

    def publish(self) -> None:
        """See `Sink`."""
        super().publish()
        fsync_directory(self._partial.parent)

    def _make_group(self) -> None:
        """Make the group, and those above it up to the store, that are missing."""
        store = store_of(self.path)
        missing = [self._group] if _group_at(self._group) is None else []
        if missing:
            missing += [each for each in self._group.parents if store in (each, *each.parents)]
        for folder in reversed(missing):
            if _group_at(folder) is None:
                make_directory(folder)
                # Another output of the same store may make it at the same moment.
                with suppress(ContainsGroupError):
                    zarr.create_group(LocalStore(folder), zarr_format=self._format)
                _sync_metadata(folder)

    def _shape(self) -> tuple[int, ...]:
        return self._of_rows

    def _about(self) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        if self._is_column:
            attributes |= {"encoding-type": "array", "encoding-version": "0.2.0"}
            return {"zarr_format": self._format, "attributes": attributes}
        if self._auxiliary:
            attributes["coordinates"] = " ".join(self._auxiliary)
        if self._mapping is not None:
            attributes["grid_mapping"] = self._mapping
        is_label = self.dtype.base.kind != "f"
        fill = -1 if is_label else float("nan")
        if self._format == 2:
            # Of version 2 xarray takes the fill value for a mark of no data.
            attributes["_ARRAY_DIMENSIONS"] = list(self._dims)
            return {"zarr_format": 2, "fill_value": fill, "attributes": attributes}
        if is_label:
            attributes["_FillValue"] = -1
        return {"fill_value": fill, "attributes": attributes, "dimension_names": self._dims}

    def _refuse_other_extents(self, target: Path, present: dict[str, zarr.Array[Any]]) -> None:
        """Refuse a group in which a dimension of this name is longer or shorter."""
        extents = dict(zip(self._dims, self._extents, strict=True))
        for name, array in present.items():
            for dim, extent in zip(_dims_of(array), array.shape, strict=False):
                if extents.get(dim, extent) != extent:
                    raise ConfigError(
                        f"{target}: {name} in {target.parent} has {extent} along {dim}, this "
                        f"output {extents[dim]}; choose another store, or another group in it"
                    )


def _names(grid: Grid | None, n_axes: int) -> tuple[str, ...]:
    """The names of the dimensions; one without a name gets one."""
    given = grid.dims if grid is not None and grid.dims else ("",) * n_axes
    if n_axes == 1:
        return (given[0] or _ROW,)
    return tuple(name or f"dim_{axis}" for axis, name in enumerate(given))


def _group_at(folder: Path) -> zarr.Group | None:
    """The Zarr group in `folder`; None if there is none."""
    if not folder.is_dir():
        return None
    try:
        return zarr.open_group(LocalStore(folder, read_only=True), mode="r", use_consolidated=False)
    except Exception:  # noqa: BLE001  of whatever type, it is no group that can be read
        return None


def _is_table(group: zarr.Group) -> bool:
    """Whether `group` is a table of AnnData, such as obs."""
    is_table = group.attrs.get("encoding-type") == "dataframe"
    return is_table and str(group.attrs.get("_index", "")) in group


def _refuse_other_length(target: Path, table: zarr.Group, n_rows: int) -> None:
    """Refuse a table of AnnData that has more or fewer rows."""
    index: Any = table[str(table.attrs["_index"])]
    if isinstance(index, zarr.Group):  # Values and a mask, or codes and categories.
        index = index["values" if "values" in index else "codes"]
    if index.shape[0] != n_rows:
        raise ConfigError(
            f"{target}: {target.parent} has {index.shape[0]:,} rows, this output {n_rows:,}; "
            "choose another group or another store"
        )


def _refuse_other_cells(target: Path, table: zarr.Group, origin: Path | None) -> None:
    """Refuse obs with other cells than the AnnData of `origin` has, or in another order."""
    if origin is None or target.parent.name != "obs":
        return
    known, found = _cells_of(origin), _index(table)
    if known is None or found is None or len(known) != len(found):
        return  # The rows are no cells, or have no names.
    if known != found:
        row = next(
            i for i, (one, other) in enumerate(zip(known, found, strict=True)) if one != other
        )
        raise ConfigError(
            f"{target}: its cells must be those of {origin}, in the same order: row {row} is "
            f"{known[row]} there and {found[row]} in {target.parent}; write the labels as .npy or "
            ".parquet, and join them by name"
        )


def _cells_of(origin: Path) -> list[str] | None:
    """Names of the cells of the AnnData that `origin` is, or lies in; None if there are none."""
    if origin.suffix == ".h5ad":
        import h5py

        with h5py.File(origin, "r") as file:
            obs = file.get("obs")
            return _index(obs) if isinstance(obs, h5py.Group) else None
    for folder in origin.parents if origin.is_dir() else ():
        group = _group_at(folder)
        obs = group.get("obs") if group is not None else None
        if group is None or isinstance(obs, zarr.Group):
            return _index(obs) if obs is not None else None
    return None


def _index(table: Any) -> list[str] | None:
    """The index of a table of AnnData as texts; None if it is stored in another way."""
    index = table.get(str(table.attrs.get("_index", "")) or "_index")
    if len(getattr(index, "shape", ())) != 1:
        return None
    return [v.decode() if isinstance(v, bytes) else str(v) for v in index[:]]


def _list_column(path: Path) -> None:
    """Name the array at `path` among the columns of its group, if that is a table of AnnData."""
    group = _group_at(path.parent)
    if group is None or not _is_table(group):
        return
    is_v3 = group.metadata.zarr_format == 3
    home = path.parent / ("zarr.json" if is_v3 else ".zattrs")
    node = json.loads(read_bytes(home))
    attributes = node["attributes"] if is_v3 else node
    columns = attributes.setdefault("column-order", [])
    if path.name not in columns:
        columns.append(path.name)
        write_atomically(home, json.dumps(node, indent=2).encode())


def _nearest_group(target: Path) -> zarr.Group | None:
    """The group that `target` lies in, or the nearest one above that is there."""
    for folder in target.parents:
        group = _group_at(folder)
        if group is not None or folder == store_of(target):
            return group
    return None


def _arrays(group: zarr.Group) -> dict[str, zarr.Array[Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Entries of the folder that are no part of the group.
        return dict(group.arrays())


def _dims_of(array: zarr.Array[Any]) -> tuple[str, ...]:
    """Names of the axes, as xarray and netCDF write them; empty if there are none."""
    named = getattr(array.metadata, "dimension_names", None)
    listed: Any = named or array.attrs.get("_ARRAY_DIMENSIONS", ())
    return tuple(listed)


def _grid_mapping(group: zarr.Group) -> str | None:
    """The scalar that describes the projection of the arrays in `group`, if they name one."""
    arrays = _arrays(group)
    named = {array.attrs.get("grid_mapping") for array in arrays.values()}
    return next((str(name) for name in sorted(map(str, named)) if name in arrays), None)


def _coordinates(group: zarr.Group, dims: tuple[str, ...]) -> dict[str, zarr.Array[Any]]:
    """The arrays in `group` that are coordinates of `dims`, by name."""
    arrays = _arrays(group)
    named = {*dims}
    for attributes in (group.attrs, *(array.attrs for array in arrays.values())):
        for key in ("coordinates", "grid_mapping"):
            named.update(str(attributes.get(key, "")).split())
    return {
        name: array
        for name, array in arrays.items()
        if name in named and set(_dims_of(array)) <= set(dims)
        and len(_dims_of(array)) == len(array.shape)
    }  # fmt: skip


def _refuse_other_values(
    target: Path, name: str, ours: zarr.Array[Any], theirs: zarr.Array[Any]
) -> None:
    """Refuse a group whose coordinate `name` is another than the source's."""
    if ours.shape == theirs.shape:
        one, other = np.asarray(ours[...]), np.asarray(theirs[...])
        # Latitudes of pixels beyond the limb are NaN in both.
        if not ours.size or np.array_equal(
            one, other, equal_nan=one.dtype.kind == "f" == other.dtype.kind
        ):
            return
    raise ConfigError(
        f"{target}: {name} in {target.parent} differs from the coordinate {name} of the source; "
        "choose another store, or another group in it"
    )


def _copy(array: zarr.Array[Any], folder: Path, zarr_format: int) -> None:
    """Write a copy of `array` into the new `folder`."""
    store = array.store
    if array.metadata.zarr_format == zarr_format and isinstance(store, LocalStore):
        _copy_files(store.root / array.path, folder)
        return
    attributes = dict(array.attrs)
    about: dict[str, Any] = {"zarr_format": zarr_format, "attributes": attributes}
    if zarr_format == 2:
        attributes["_ARRAY_DIMENSIONS"] = list(_dims_of(array))
    else:
        attributes.pop("_ARRAY_DIMENSIONS", None)
        about["dimension_names"] = _dims_of(array) if array.shape else None
    # Of version 2 xarray takes the fill value for a mark of no data, of version 3 it does not.
    is_older = zarr_format == 2 and array.metadata.zarr_format == 3
    fill = None if is_older else array.fill_value
    copy = zarr.create_array(
        LocalStore(folder), shape=array.shape, dtype=array.dtype, chunks=array.chunks or "auto",
        fill_value=fill, config={"write_empty_chunks": True}, **about,
    )  # fmt: skip
    if array.shape:
        for start in range(0, array.shape[0], max(array.chunks[0], 1)):
            rows = slice(start, min(start + array.chunks[0], array.shape[0]))
            copy[rows] = array[rows]
    else:
        copy[...] = array[...]


def _move_in(partial: Path, folder: Path) -> None:
    """Give `partial` its name, unless another output of the group has brought the same array."""
    try:
        rename_durably(partial, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        remove_tree(partial)


def _copy_files(source: Path, folder: Path) -> None:
    make_directory(folder)
    for name in names_in(source):
        if (source / name).is_dir():
            _copy_files(source / name, folder / name)
        else:
            write_durably(folder / name, read_bytes(source / name))
    fsync_directory(folder)


def _sync_metadata(group: Path) -> None:
    """Wait until the metadata of `group` are on disk."""
    for name in (".zgroup", ".zattrs", ".zmetadata", "zarr.json"):
        if (group / name).is_file():
            fsync_file(group / name)
    fsync_directory(group)


def _is_consolidated(group: Path) -> bool:
    if (group / ".zmetadata").is_file():
        return True
    try:
        return b'"consolidated_metadata"' in read_bytes(group / "zarr.json")
    except FileNotFoundError:
        return False
