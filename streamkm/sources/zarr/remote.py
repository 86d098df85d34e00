"""Open a Zarr array behind an address: S3, Google Cloud Storage or HTTP.

obstore makes the requests and zarr decodes the answers. Credentials, region and endpoint come
from the environment, as obstore documents it (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``,
``AWS_SKIP_SIGNATURE``, ``GOOGLE_SERVICE_ACCOUNT`` and others). A request that fails is repeated
after longer and longer waits, and fails for good after three minutes: a server that is gone ends
a run with an error, and a checkpoint lets the run go on later.
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
from streamkm.sources.layout import one_line
from streamkm.sources.zarr.source import ZarrSource, open_zarr_node

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

__all__ = ["SCHEMES", "open_remote"]

#: What an address may begin with.
SCHEMES = ("s3", "gs", "http", "https")

#: How often a request is repeated, over which time at most, and how long it waits in between.
MAX_RETRIES, RETRY_S = 6, 180.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0
#: How long connecting, and a whole request, may take.
CONNECT_S, REQUEST_S = 10.0, 90.0

#: What obstore takes for yes.
_TRUE = ("1", "true", "on", "yes", "y")


def open_remote(url: str) -> ZarrSource:
    """Open the Zarr array at an address.

    Parameters
    ----------
    url : str
        ``s3://bucket/path``, ``gs://bucket/path`` or ``https://host/path`` of
        the array itself, in a store or nested in a group.

    Returns
    -------
    ZarrSource

    Raises
    ------
    SourceError
        If there is no Zarr array, or no answer.
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
    # The client's options given here replace those of the environment, this one too.
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
    except Exception as error:  # metadata may be wrong in any way, and so may the network
        raise SourceError(f"{url}: cannot be opened as Zarr: {_advised(error)}") from error
    return open_zarr_node(node, url)


def _advised(error: Exception) -> str:
    advice = ""
    if isinstance(error, BaseError):
        advice = "; check the address, the network, and the credentials in the environment"
    return one_line(error) + advice
