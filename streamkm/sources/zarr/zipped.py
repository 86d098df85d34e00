"""Opens an array of a Zarr store in a zip file, as `zarr.storage.ZipStore` writes it."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

import zarr
from zarr.storage import ZipStore

from streamkm.errors import SourceError
from streamkm.sources.decoded import Decoding
from streamkm.sources.layout import one_line
from streamkm.sources.members import chosen_member
from streamkm.sources.variables import open_variables
from streamkm.sources.zarr.opening import open_zarr_node

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamkm.sources.axes import FeatureDims
    from streamkm.sources.base import Source

__all__ = ["open_zip"]

#: Files that hold the metadata of an array; ``zarr.json`` may be that of a group.
_METADATA = ("zarr.json", ".zarray")


def open_zip(
    path: Path,
    *,
    dataset: str | None = None,
    variable: Sequence[str] = (),
    feature_dim: FeatureDims | None = None,
    nodata: tuple[float | int, ...] = (),
    fill_is_nan: bool = False,
    apply_scale: bool = False,
) -> Source:
    """Open a Zarr array in a zip file.

    Parameters
    ----------
    path : Path
        The file, ``x.zarr.zip`` or ``x.zip``.
    dataset : str, optional
        Path of the array within the store; by default the only array of numbers in two or more
        dimensions. With `variable` the group that they lie in.
    variable, feature_dim, nodata, fill_is_nan, apply_scale
        As of `streamkm.sources.zarr.open_zarr`.

    Returns
    -------
    Source

    Raises
    ------
    SourceError
        If it is no zip file, or holds no such array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError) as error:
        raise SourceError(
            f"{path}: cannot be opened as a zip file: {one_line(error)}; copy or write it again"
        ) from error
    folders = {name.rpartition("/")[0] for name in names if name.endswith(_METADATA)}
    if not folders:
        raise SourceError(f"{path}: holds no Zarr array; unpack it and name what is in it")
    # Its arrays keep the store, which closes its file when the last of them is gone.
    store = ZipStore(path, mode="r", read_only=True)
    arrays = {folder or "/": node for folder in sorted(folders) if (node := _array(store, folder))}
    shapes = {name: node.shape for name, node in arrays.items() if node.dtype.kind in "fiu"}
    how = Decoding(nodata, fill_is_nan, apply_scale)

    def open_one(member: str | None, axes: FeatureDims | None) -> Source:
        chosen = chosen_member(path, shapes, member)
        name = str(path) if chosen == "/" else f"{path}: {chosen}"
        return open_zarr_node(arrays[chosen], name, feature_dim=axes, how=how)

    member = dataset.strip("/") or "/" if dataset else None
    if not variable:
        return open_one(member, feature_dim)
    group = f"{member}/" if member not in (None, "/") else ""
    axes = () if feature_dim is None else feature_dim
    return open_variables(lambda each: open_one(f"{group}{each}", axes), variable, str(path))


def _array(store: ZipStore, folder: str) -> zarr.Array[Any] | None:
    """The array whose metadata lie in `folder` of the zip; None if they are not an array's."""
    try:
        node = zarr.open(store=store, path=folder, mode="r")
    except Exception:  # noqa: BLE001  zarr has no base class for all that metadata may do wrong
        return None
    return node if isinstance(node, zarr.Array) else None
