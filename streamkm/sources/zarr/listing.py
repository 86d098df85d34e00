"""Lists the stored objects of a Zarr array: its files, or its objects in a bucket.

The list tells which chunks were never written. Its versions tell which objects have changed. zarr
lists keys without versions, so each kind of store is asked directly.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

from zarr.storage import LocalStore, ObjectStore, ZipStore

__all__ = ["LISTED", "object_versions"]

#: The kinds of store whose objects `object_versions` lists.
LISTED = (LocalStore, ObjectStore, ZipStore)


def object_versions(
    store: LocalStore | ObjectStore[Any] | ZipStore, path: str
) -> dict[str, str] | None:
    """The version of every object of the array at `path` in `store`, by its key below `path`.

    The version of a file is its size and modification time. That of an object in a bucket has the
    entity tag as well, and that of a member of a zip file is its size and checksum. None for a web
    server, which does not list its objects.
    """
    if isinstance(store, LocalStore):
        return _files(store.root / path)
    if isinstance(store, ZipStore):
        return _members(store.path, f"{path}/" if path else "")
    # Imported here, because obstore is installed for certain only where such a store was made.
    from obstore.store import HTTPStore

    if isinstance(store.store, HTTPStore):
        return None
    prefix = f"{path}/" if path else ""
    found = {}
    for batch in store.store.list(prefix or None):
        for entry in batch:
            version = f"{entry['size']} {entry['e_tag']} {entry['last_modified'].isoformat()}"
            found[entry["path"].removeprefix(prefix)] = version
    return found


def _members(path: Path, prefix: str) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        return {
            member.filename.removeprefix(prefix): f"{member.file_size} {member.CRC}"
            for member in archive.infolist()
            if member.filename.startswith(prefix)
        }


def _files(root: Path) -> dict[str, str]:
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            file = Path(folder, name)
            stat = file.stat()
            found[file.relative_to(root).as_posix()] = f"{stat.st_size}\n{stat.st_mtime_ns}"
    return found
