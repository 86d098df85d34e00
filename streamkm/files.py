"""Writing files so that a power cut leaves either the old content or the new.

The order is always the same: write under a temporary name in the same folder,
flush, fsync, rename, fsync the folder. An fsync that fails is a failure and is
never tried again: after it the kernel may have dropped the pages that it could
not write, and a second call would succeed without them.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["file_sha256", "fsync_directory", "fsync_file", "write_atomically", "write_durably"]


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the content of `path`; afterwards it is on disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    write_durably(temporary, content)
    temporary.replace(path)
    fsync_directory(path.parent)


def write_durably(path: Path, content: bytes) -> None:
    """Write `path` and fsync it; its folder's entry is for the caller to fsync."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fsync_file(path: Path) -> None:
    """Bring what was written to `path` to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


#: A folder's entries (names that appeared, vanished, changed) are synced the same way.
fsync_directory = fsync_file


def file_sha256(path: Path) -> str:
    """Hex digest of the content of `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
