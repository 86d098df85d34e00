"""Finds the files that a location names: entries of a folder, of a pattern or of a list.

Nothing is opened here but a list file. `streamkm.sources.registry` opens what is found.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from streamkm.errors import SourceError
from streamkm.files import expanded
from streamkm.sources.formats import folder_format, suffixes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "Listed",
    "absent",
    "hive_shards",
    "is_address",
    "is_partition",
    "is_path_list",
    "is_prefix",
    "is_run",
    "list_file",
    "listed_paths",
    "matches",
    "natural",
    "nested_advice",
    "order_notes",
    "python_list",
    "unread",
]

P = TypeVar("P")

#: Folders that are searched for shards, at most, to make an error helpful.
FOLDERS_SEARCHED = 1000
#: Paths that are counted among the lines of a list file: a longer file is no list of paths.
MAX_LIST_BYTES = 1 << 30


class Listed(NamedTuple):
    """One path of a list."""

    where: str
    """Its place, for errors: ``files.txt, line 3``."""
    location: str
    """The path or address as it is written."""


def is_address(location: object) -> bool:
    """Whether `location` is an address such as ``s3://bucket/x.npy``."""
    return isinstance(location, str) and "://" in location


def is_prefix(url: str) -> bool:
    """Whether an address may name several objects: it ends with ``/``, or is a pattern."""
    is_web = url.lower().startswith("http")
    return url.endswith("/") or (glob.has_magic(url) and not is_web)


# ---- lists -----------------------------------------------------------------------


def is_path_list(location: Any) -> bool:
    """Whether `location` is a list or tuple of paths, at least one."""
    is_list = isinstance(location, list | tuple) and len(location) > 0
    return is_list and all(isinstance(each, str | os.PathLike) for each in location)


def list_file(location: object) -> Path | None:
    """The list file that ``@files.txt`` names; None for any other location.

    A file whose own name begins with ``@`` is that file.
    """
    if not isinstance(location, str | os.PathLike):
        return None
    text = os.fspath(location)
    if not isinstance(text, str) or not text.startswith("@") or expanded(text).exists():
        return None
    return expanded(text[1:])


def listed_paths(path: Path) -> list[Listed]:
    """The paths in a list file, one a line, in their order.

    Blank lines are left out, and lines that begin with ``#``. A relative path counts from the
    working directory, as ``find`` and ``ls`` write them, wherever the list file lies.

    Raises
    ------
    SourceError
        If the file cannot be read, is no text, or names nothing.
    """
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise SourceError(f"{path}: is no list of paths: it takes more than a gigabyte")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SourceError(
            f"{path}: the list of paths cannot be read: {error.strerror}; "
            "after @ stands the name of a text file with one path a line"
        ) from error
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path}: is no text in UTF-8; after @ stands the name of a file with one path a line"
        ) from error
    lines = enumerate(text.splitlines(), start=1)
    found = [
        Listed(f"{path}, line {number}", line.strip())
        for number, line in lines
        if line.strip() and not line.strip().startswith("#")
    ]
    if not found:
        raise SourceError(f"{path}: the list names no file; write one path a line")
    for where, location in found:
        if "\0" in location:
            raise SourceError(f"{where}: {location!r} is no path")
    return found


def python_list(locations: Sequence[Any]) -> list[Listed]:
    """The paths of a list in Python, in their order."""
    return [Listed(f"path {i} of the list", os.fspath(each)) for i, each in enumerate(locations)]


# ---- folders and patterns ----------------------------------------------------------


def matches(pattern: Path) -> list[Path]:
    """The entries that `pattern` names, in natural order, without hidden ones."""
    # Path.glob takes only relative patterns, glob.glob any.
    return natural([Path(name) for name in glob.glob(str(pattern), recursive=True)])  # noqa: PTH207


def unread(entries: Sequence[Path]) -> str:
    """The first names of `entries`, in order, as a phrase."""
    names = sorted(entry.name for entry in entries)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def is_partition(folder: Path) -> bool:
    """Whether a folder's name is that of a partition, ``key=value``, as Hive and Spark write it."""
    return folder.name.find("=") > 0 and folder.is_dir() and folder_format(folder) is None


def is_run(folder: Path) -> bool:
    """Whether `folder` is that of a run, whose centroids are no rows to cluster."""
    has_result = (folder / "centroids.npy").is_file() or (folder / "lock").is_file()
    return has_result and (folder / "config.json").is_file()


def hive_shards(folder: Path) -> tuple[list[Path], list[Path], list[str]]:
    """All entries in the partitions of `folder` that are read, and all others.

    Returns
    -------
    shards, others : list of Path
        Shards have a known suffix or are folders of arrays. Hidden entries are neither.
    keys : list of str
        Names of the partitions' keys, outermost first.
    """
    shards: list[Path] = []
    others: list[Path] = []
    keys: dict[str, None] = {}
    for entry in folder.iterdir():
        if entry.name[0] in "._":
            continue
        if is_partition(entry):
            keys[entry.name.partition("=")[0]] = None
            inner, left, below = hive_shards(entry)
            shards += inner
            others += left
            keys.update(dict.fromkeys(below))
        elif entry.suffix.lower() in suffixes() or (entry.is_dir() and folder_format(entry)):
            shards.append(entry)
        else:
            others.append(entry)
    return shards, others, list(keys)


def nested_advice(folder: Path) -> str:
    """A phrase that names a pattern for shards in the folders below `folder`, or ``""``."""
    for found in islice(_walk(folder), FOLDERS_SEARCHED):
        for entry in found.iterdir():
            if entry.suffix.lower() in suffixes() and entry.name[0] not in "._":
                pattern = f"{folder}/**/*{entry.suffix}"
                return f"its folders hold shards, name them by a pattern: '{pattern}'"
    return ""


def _walk(folder: Path) -> Iterator[Path]:
    """The folders below `folder`, without hidden ones and arrays."""
    for parent, names, _ in os.walk(folder):
        names[:] = sorted(
            name
            for name in names
            if name[0] not in "._" and folder_format(Path(parent, name)) is None
        )
        if Path(parent) != folder:
            yield Path(parent)


def natural(paths: Sequence[P]) -> list[P]:
    """Sort paths in natural order: runs of digits as numbers, the rest as text."""

    def key(path: P) -> tuple[list[tuple[int, str]], str]:
        # Text and digits alternate, so that like is compared with like. The text decides a tie.
        runs = re.split(r"(\d+)", str(path))
        return [(int(r), "") if i % 2 else (0, r) for i, r in enumerate(runs)], str(path)

    return sorted(paths, key=key)


def order_notes(whole: str, names: Sequence[str]) -> tuple[str, ...]:
    """A note if the rows of `names` come in another order than other tools read them in."""
    for name, by_text in zip(names, sorted(names), strict=True):
        if name != by_text:
            note = (
                f"{whole}: rows of {name} come before those of {by_text}; a tool that sorts names "
                "as text has them the other way round, so join labels to rows by file or by id"
            )
            return (note,)
    return ()


def absent(path: Path) -> str:
    """Why nothing is at `path`, and what the folder above it holds instead."""
    for parent in path.parents:
        if parent.is_dir():
            entry = folder_format(parent)
            instead = entry.members_of(parent) if entry else ""
            if not instead and parent == path.parent:
                alike = difflib.get_close_matches(
                    path.name, (p.name for p in parent.iterdir()), n=1
                )
                instead = f"; did you mean {parent / alike[0]}?" if alike else ""
            elif not instead:
                instead = f"; the folder {parent.absolute()} does, check what follows"
            return f"{path}: does not exist{instead}"
    return f"{path}: does not exist"
