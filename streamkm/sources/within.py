"""Tells which paths would become part of a source, so that no output is written there.

A Zarr array takes every file in its folder, and a folder or pattern of shards every name that fits.
An output with such a name would change the data of this run, and the next run would read it as
rows.
"""

from __future__ import annotations

import glob
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol, runtime_checkable

__all__ = ["folder_takes", "is_inside", "pattern_takes", "tree_takes", "would_take"]


@runtime_checkable
class _Extensible(Protocol):
    """A source that files can be added to."""

    def would_take(self, path: Path) -> bool:
        """Whether a file or folder written at `path` would become part of it."""


def would_take(source: object, path: Path) -> bool:
    """Whether a file or folder written at `path` would become part of `source`."""
    return isinstance(source, _Extensible) and source.would_take(path)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or lies in it, with links followed in both."""
    return path.resolve().is_relative_to(folder.resolve())


def folder_takes(folder: Path, suffixes: tuple[str, ...], path: Path) -> bool:
    """Whether `path` is, or lies in, an entry that a folder of shards reads for its suffix."""
    if not is_inside(path, folder):
        return False
    entry = Path(*path.resolve().relative_to(folder.resolve()).parts[:1])
    return entry.name[:1] not in {"", ".", "_"} and entry.suffix.lower() in suffixes


def tree_takes(folder: Path, suffixes: tuple[str, ...], path: Path) -> bool:
    """Whether `path` is, or lies in, an entry that the partitions of `folder` hold or may hold."""
    if not is_inside(path, folder):
        return False
    parts = path.resolve().relative_to(folder.resolve()).parts
    entry = next((part for part in parts if "=" not in part), "")
    return entry[:1] not in {"", ".", "_"} and Path(entry).suffix.lower() in suffixes


def pattern_takes(pattern: Path, path: Path) -> bool:
    """Whether `pattern` names `path`, or a folder above it, or may name something in it."""
    parts = pattern.parts
    n_fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    fixed = Path(*parts[:n_fixed])
    if not is_inside(path, fixed):
        return False
    return _meets(parts[n_fixed:], path.resolve().relative_to(fixed.resolve()).parts)


def _meets(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    if not pattern or not path:
        return True
    if pattern[0] == "**":
        return any(_meets(pattern[1:], path[i:]) for i in range(len(path) + 1))
    return fnmatchcase(path[0], pattern[0]) and _meets(pattern[1:], path[1:])
