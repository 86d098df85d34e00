"""Opens a Zarr array behind an address: S3, Google Cloud Storage or HTTP.

obstore makes the requests, and zarr decodes the answers. Credentials, region and endpoint come from
the environment, as obstore documents it (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``,
``AWS_SKIP_SIGNATURE``, ``GOOGLE_SERVICE_ACCOUNT`` and others). A failed request is repeated after
longer and longer waits, for three minutes at most. So a server that is gone ends the run with an
error, and the run can resume from its checkpoint later.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import zarr
from obstore.exceptions import BaseError
from obstore.store import from_url
from zarr.storage import ObjectStore

from streamkm.errors import SourceError
from streamkm.sources.decoded import Decoding
from streamkm.sources.layout import one_line
from streamkm.sources.zarr.opening import open_zarr_node

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obstore.store import ClientConfig, RetryConfig

    from streamkm.sources.axes import FeatureDims
    from streamkm.sources.base import Source

__all__ = ["SCHEMES", "open_remote"]

#: Schemes of an address.
SCHEMES = ("s3", "gs", "http", "https")

#: Repetitions of a failed request, and the seconds that they may take together, at most.
MAX_RETRIES, RETRY_S = 6, 180.0
#: Seconds before the first repetition, and before a later one at most.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0
#: Seconds that a connection, and a whole request, may take.
CONNECT_S, REQUEST_S = 10.0, 90.0

#: Values of an environment variable that obstore reads as true.
_TRUE = ("1", "true", "on", "yes", "y")


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
    scheme = urlsplit(url).scheme.lower()
    if scheme not in SCHEMES or not urlsplit(url).netloc:
        raise SourceError(
            f"{url}: an address begins with {', '.join(f'{s}://' for s in SCHEMES)} and a bucket "
            "or host"
        )
    client: ClientConfig = {
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "timeout": timedelta(seconds=REQUEST_S),
    }
    # Options of the client replace all of the environment's, so this one is read here.
    if scheme == "http" or os.environ.get("AWS_ALLOW_HTTP", "").lower() in _TRUE:
        client["allow_http"] = True
    retry: RetryConfig = {
        "max_retries": MAX_RETRIES,
        "retry_timeout": timedelta(seconds=RETRY_S),
        "backoff": {
            "init_backoff": timedelta(seconds=FIRST_WAIT_S),
            "max_backoff": timedelta(seconds=LONGEST_WAIT_S),
            "base": 2,
        },
    }
    try:
        store: Any = from_url(url, client_options=client, retry_config=retry)
        node = zarr.open(store=ObjectStore(store, read_only=True), mode="r")
    except Exception as error:  # neither metadata nor the network fail with one base class
        raise SourceError(f"{url}: cannot be opened as Zarr: {_advised(error)}") from error
    how = Decoding(nodata, fill_is_nan, apply_scale)
    return open_zarr_node(
        node, url, dataset=dataset, variable=variable, feature_dim=feature_dim, how=how
    )


def _advised(error: Exception) -> str:
    """The error on one line, with advice if it comes from obstore."""
    advice = ""
    if isinstance(error, BaseError):
        advice = "; check the address, the network, and the credentials in the environment"
    return one_line(error) + advice
