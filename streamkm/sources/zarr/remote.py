"""Opens a Zarr array behind an address: S3, Google Cloud Storage, Azure or HTTP.

obstore makes the requests (`streamkm.sources.objects` says how), and zarr decodes the answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import zarr
from zarr.storage import ObjectStore

from streamkm.errors import SourceError
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
    fill_is_nan: bool = False,
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
    store = open_store(url)
    try:
        node = zarr.open(store=ObjectStore(store, read_only=True), mode="r")
    except Exception as error:  # neither metadata nor the network fail with one base class
        raise SourceError(f"{url}: cannot be opened as Zarr: {advised(error)}") from error
    how = Decoding(nodata, fill_is_nan, apply_scale)
    return open_zarr_node(
        node, url, dataset=dataset, variable=variable, feature_dim=feature_dim, how=how
    )
