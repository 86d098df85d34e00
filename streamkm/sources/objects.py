"""Files behind addresses: objects in S3, Google Cloud Storage and Azure, and of web servers.

obstore makes the requests. Credentials, region and endpoint come from the environment, as obstore
documents it (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ``AWS_SKIP_SIGNATURE``,
``GOOGLE_SERVICE_ACCOUNT``, ``AZURE_STORAGE_ACCOUNT_NAME`` and others). A failed request is repeated
after longer and longer waits, for three minutes at most. So a server that is gone ends the run with
an error, and the run can resume from its checkpoint later.

An object is read by ranges, through the interface of a local file (`streamkm.sources.rowfile`), so
that a format which reads by position reads objects too.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import translate
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from obstore.exceptions import BaseError
from obstore.store import from_url

from streamkm.errors import ReadError, SourceError
from streamkm.sources.layout import one_line

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig

    from streamkm.sources.base import RowRange

__all__ = [
    "SCHEMES",
    "Below",
    "StoredObject",
    "advised",
    "found_below",
    "open_store",
    "stored_object",
]

#: Schemes of an address.
SCHEMES = ("s3", "gs", "http", "https", "az")

#: Repetitions of a failed request, and the seconds that they may take together, at most.
MAX_RETRIES, RETRY_S = 6, 180.0
#: Seconds before the first repetition, and before a later one at most.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0
#: Seconds that a connection, and a whole request, may take.
CONNECT_S, REQUEST_S = 10.0, 90.0

#: Values of an environment variable that obstore reads as true.
_TRUE = ("1", "true", "on", "yes", "y")


def open_store(url: str) -> Any:
    """The store of obstore at an address, which a bucket or a prefix in one may be.

    Raises
    ------
    SourceError
        If no store has such an address.
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
    return from_url(url, client_options=client, retry_config=retry)


def advised(error: Exception) -> str:
    """The error on one line, with advice if it comes from obstore."""
    advice = ""
    if isinstance(error, BaseError):
        advice = "; check the address, the network, and the credentials in the environment"
    return one_line(error) + advice


@dataclass(frozen=True)
class StoredObject:
    """The place of one object; as text it is its address."""

    url: str
    store: Any
    """The store of its bucket or host."""
    key: str
    """Its name there."""
    about: ObjectMeta
    """Its size and versions, as the store told them."""

    def __str__(self) -> str:
        return self.url

    @property
    def suffix(self) -> str:
        """The suffix of its name."""
        return PurePosixPath(self.key).suffix

    def row_file(self) -> ObjectFile:
        """The object, to be read by position."""
        return ObjectFile(self)


class ObjectFile:
    """An object that any number of threads read at any offset; see `RowFile` for the members."""

    is_remote = True

    def __init__(self, path: StoredObject) -> None:
        self.path = path
        self.size = int(path.about["size"])
        self.closed = False

    def read_into(self, out: np.ndarray, offset: int, rows: RowRange) -> None:
        """Fill `out` with the object's bytes from `offset` on."""
        self.check_unchanged(rows)
        if out.size == 0:
            return
        memory = out.reshape(-1).view(np.uint8)
        stop = offset + memory.size
        if stop > self.size:
            raise ReadError(
                f"{self.path}: ends at byte {self.size} in the middle of {rows}; is it complete?"
            )
        try:
            answer = self.path.store.get(self.path.key, options={"range": (offset, stop)})
            version, content = answer.meta["e_tag"], answer.bytes()
        except Exception as error:  # the network and the servers fail in many ways
            raise ReadError(f"{self.path}: {rows} cannot be read: {advised(error)}") from error
        if version != self.path.about["e_tag"]:
            raise ReadError(
                f"{self.path}: has been replaced since it was opened, {rows} may be others by now; "
                "start again"
            )
        if len(content) != memory.size:
            raise ReadError(
                f"{self.path}: {rows} cannot be read: the server sent {len(content)} bytes of "
                f"{memory.size}; try again"
            )
        memory[:] = np.frombuffer(content, np.uint8)

    def check_unchanged(self, rows: RowRange) -> None:
        """Refuse a closed object; every answer tells whether it was replaced."""
        if self.closed:
            raise ReadError(f"{self.path}: cannot read {rows}, the source is closed; open it again")

    def fingerprint(self, layout: str) -> str:
        """Hex digest of `layout` and the object's size, entity tag and time."""
        about = self.path.about
        time = about["last_modified"].isoformat()
        text = f"{layout}\n{self.size}\n{about['e_tag']}\n{time}"
        return hashlib.sha256(text.encode()).hexdigest()

    def close(self) -> None:
        """Refuse further reads."""
        self.closed = True


def stored_object(url: str) -> StoredObject:
    """The object at an address; `SourceError` if it is not there, or the server does not answer."""
    root, key = _split(url)
    try:
        store = open_store(root)
        return StoredObject(url, store, key, store.head(key))
    except SourceError:
        raise
    except FileNotFoundError as error:
        raise SourceError(
            f"{url}: does not exist; check the address, and the endpoint in the environment"
        ) from error
    except Exception as error:  # the network and the servers fail in many ways
        raise SourceError(f"{url}: cannot be opened: {advised(error)}") from error


@dataclass(frozen=True)
class Below:
    """What a prefix or a pattern names, in the order of the store and without hidden names."""

    objects: list[StoredObject]
    folders: list[str]
    """Names of prefixes below a prefix; their objects are not among `objects`."""


def found_below(url: str) -> Below | None:
    """The objects that a prefix, which ends with ``/``, or a pattern names.

    Returns
    -------
    Below or None
        None from a web server, which has no list.

    Raises
    ------
    SourceError
        If the server does not answer.
    """
    if urlsplit(url).scheme.lower() in ("http", "https"):
        return None
    root, key = _split(url)
    is_pattern = glob.has_magic(key)
    fixed = "/".join(_fixed(key.split("/"))) if is_pattern else key
    try:
        store = open_store(root)
        folders: list[str] = []
        if is_pattern:
            objects = [each for batch in store.list(fixed or None) for each in batch]
        else:
            listed = store.list_with_delimiter(fixed or None)
            objects, folders = listed["objects"], listed["common_prefixes"]
    except SourceError:
        raise
    except Exception as error:  # the network and the servers fail in many ways
        raise SourceError(f"{url}: cannot be listed: {advised(error)}") from error
    if is_pattern:
        pattern = _expression(key)
        objects = [each for each in objects if pattern.fullmatch(each["path"])]
    found = [StoredObject(f"{root}/{each['path']}", store, each["path"], each) for each in objects]
    return Below(
        [each for each in found if not _is_hidden(each.key.removeprefix(fixed))],
        [name for each in folders if not _is_hidden(name := PurePosixPath(each).name)],
    )


def _is_hidden(key: str) -> bool:
    """Whether a name, or a folder in it, begins as those of logs and marks do; Zarr's are none."""
    parts = key.strip("/").split("/")
    return parts[-1] not in (".zarray", ".zgroup") and any(part[:1] in "._" for part in parts)


def _split(url: str) -> tuple[str, str]:
    """The address of the bucket or host, and the name within it."""
    scheme, _, rest = url.partition("://")
    host, _, key = rest.partition("/")
    return f"{scheme}://{host}", key


def _fixed(parts: list[str]) -> list[str]:
    """The folders of a pattern before the first that is one."""
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return parts[:first]


def _expression(pattern: str) -> re.Pattern[str]:
    """The expression of a pattern in which ``*`` stays in a folder and ``**`` is any of them."""
    parts = [
        "(?:[^/]+/)*" if part == "**" else translate(part).replace(".*", "[^/]*")[4:-3] + "/"
        for part in pattern.split("/")
    ]
    return re.compile("(?s:" + "".join(parts).removesuffix("/") + ")")
