"""Opens a Zarr array behind an address: S3, Google Cloud Storage, Azure or HTTP.

obstore makes the requests (`streamkm.sources.objects` says how), and zarr decodes the answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import zarr
from obstore.exceptions import PermissionDeniedError
from zarr.storage import ObjectStore

from streamkm.errors import SourceError
from streamkm.sources.anndata import home_of
from streamkm.sources.decoded import Decoding
from streamkm.sources.objects import advised, open_store
from streamkm.sources.zarr.opening import open_zarr_node

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamkm.sources.axes import FeatureDims
    from streamkm.sources.base import Source

__all__ = ["open_remote"]


def open_remote(
    url: str,
    *,
    dataset: str | None = None,
    variable: Sequence[str] = (),
    feature_dim: FeatureDims | None = None,
    nodata: tuple[float | int, ...] = (),
    fill_is_nan: bool | tuple[float | int, ...] = False,
    apply_scale: bool = False,
) -> Source:
    """Open the Zarr array at an address.

    Parameters
    ----------
    url : str
        ``s3://bucket/path``, ``gs://bucket/path`` or ``https://host/path`` of
        the array itself, in a store or nested in a group.
    dataset, variable, feature_dim, nodata, fill_is_nan, apply_scale
        As those of `open_zarr`.

    Returns
    -------
    Source

    Raises
    ------
    SourceError
        If the address holds no Zarr array, or the server does not answer.
    """
    try:
        node = _open(url)
        if dataset is None and not variable and (found := _in_anndata(url)) is not None:
            node, url, dataset = found
    except SourceError:
        raise
    except Exception as error:  # neither metadata nor the network fail with one base class
        raise SourceError(f"{url}: cannot be opened as Zarr: {advised(error)}") from error
    how = Decoding(nodata, fill_is_nan, apply_scale)
    return open_zarr_node(
        node, url, dataset=dataset, variable=variable, feature_dim=feature_dim, how=how
    )


def _open(url: str) -> Any:
    return zarr.open(store=ObjectStore(open_store(url), read_only=True), mode="r")


def _in_anndata(url: str) -> tuple[zarr.Group, str, str] | None:
    """The AnnData that the matrix at `url` lies in, its address, and the matrix's path in it.

    The names of its columns lie there, outside of the matrix's own prefix.
    """
    found = home_of(url)
    if found is None or not urlsplit(found[0]).netloc:
        return None
    try:
        node = _open(found[0])
    except (FileNotFoundError, PermissionError, PermissionDeniedError):
        return None
    return (node, *found) if isinstance(node, zarr.Group) and "var" in node else None
