"""Coordinates of an HDF5 or netCDF dataset, as arrays of a Zarr group in memory.

So a map of labels gets the coordinates of such a source as it gets those of a Zarr array, and is
compared with a store by the same code. They are the scales of the dataset's axes, and the variables
that its attributes ``coordinates`` and ``grid_mapping`` name, as the CF conventions say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    import h5py

__all__ = ["hdf5_coordinates"]

#: Begin the names of attributes that only HDF5 and netCDF's library understand.
_INNER = ("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4", "_nc3", "_NC")
#: Begins the ``NAME`` of a scale that only gives a dimension its extent.
_NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"
#: Bytes that are copied at a time, about.
_PIECE_BYTES = 16 << 20


def hdf5_coordinates(place: Path) -> zarr.Group | None:
    """The coordinates of a dataset in an HDF5 file.

    Parameters
    ----------
    place : Path
        The file, and below it the path of the dataset, as in `Grid.group`.

    Returns
    -------
    zarr.Group or None
        A group in memory of version 3 of the format; None if `place` leads into no file, or its
        dataset has no coordinates.
    """
    file = next((folder for folder in place.parents if folder.is_file()), None)
    if file is None:
        return None
    import h5py

    from streamkm.sources.hdf5 import axis_names

    with h5py.File(file, "r") as opened:
        dataset = opened[place.relative_to(file).as_posix()]
        found = _coordinates(dataset)
        if not found:
            return None
        group = zarr.create_group(MemoryStore())
        # It stands for the dataset, whose attributes say what the other arrays are.
        attributes = {"coordinates": " ".join(found)}
        if "grid_mapping" in dataset.attrs:
            attributes["grid_mapping"] = _plain(dataset.attrs["grid_mapping"])
        group.create_array(_free(found), shape=(), dtype="int8", attributes=dict(attributes))
        for name, coordinate in found.items():
            dims = axis_names(coordinate)
            for dim, axis in zip(axis_names(dataset), dataset.dims, strict=True):
                # A scale has no scale itself: it is along the axis that it is the scale of.
                if coordinate.ndim == 1 and coordinate in axis.values():
                    dims = [dim]
            _copy(coordinate, group, name, dims)
    return group


def _free(found: dict[str, Any]) -> str:
    """A name that none of `found` has."""
    return "_" + "".join(found)


def _coordinates(dataset: h5py.Dataset) -> dict[str, h5py.Dataset]:
    """The datasets that are coordinates of `dataset`, by name, of types that Zarr has."""
    import h5py

    given = [scale for dim in dataset.dims for scale in dim.values()]
    for key in ("coordinates", "grid_mapping"):
        for name in str(_plain(dataset.attrs.get(key, ""))).split():
            folder = dataset.parent
            while name not in folder and folder.name != "/":
                folder = folder.parent
            given.append(folder.get(name))
    return {
        each.name.rpartition("/")[2]: each
        for each in given
        if isinstance(each, h5py.Dataset) and each.shape is not None
        and not bytes(each.attrs.get("NAME", b"")).startswith(_NO_VARIABLE)
        and (h5py.check_string_dtype(each.dtype) or each.dtype.kind in "biuf")
    }  # fmt: skip


def _copy(dataset: h5py.Dataset, group: zarr.Group, name: str, dims: list[str]) -> None:
    """Put a copy of `dataset` into `group`, with NaN for what a float's ``_FillValue`` marks."""
    import h5py

    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    attributes = {
        key: _plain(value)
        for key, value in dataset.attrs.items()
        if not key.startswith(_INNER) and not isinstance(value, h5py.Empty | h5py.Reference)
    }
    fill = attributes.pop("_FillValue", None) if dataset.dtype.kind == "f" else None
    # A scalar is one piece.
    extent, *inner = dataset.shape or (1,)
    rows = max(1, min(extent, _PIECE_BYTES * extent // max(1, dataset.nbytes)))
    array = group.create_array(
        name, shape=dataset.shape, dtype=str if is_text else dataset.dtype.newbyteorder("="),
        chunks=(rows, *inner) if dims else "auto", dimension_names=dims, attributes=attributes,
    )  # fmt: skip
    stored = dataset.asstr() if is_text else dataset
    for start in range(0, extent, rows):
        piece = slice(start, start + rows) if dims else ...
        values = np.asarray(stored[piece])
        array[piece] = values if fill is None else np.where(values == fill, np.nan, values)


def _plain(value: Any) -> Any:
    """The value of an attribute as JSON has it."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
