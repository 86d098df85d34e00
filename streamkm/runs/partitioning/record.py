"""The folder of a partition, and its record.

::

    DIR/
      partition.json    source, model and settings; whether it is done, and what it holds
      labels.npy        the cluster of every row; -1 for a row that was dropped
      distances.npy     of every row to its centroid, if it was sorted by them
      offsets.npy       K + 1: cluster k is order[offsets[k]:offsets[k + 1]]
      order.npy         row numbers, cluster after cluster
      rows.npy          the rows in this order: or rows.zarr, or rows/centroid=17/part-0.parquet
      *.partial         an output that is not complete
      unfinished/       what it is made from (see runs.partitioning.work)
      lock              held by the process that writes
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamkm.errors import InputError, Option, OutputExistsError, ResumeError, RunError
from streamkm.files import (
    FileLock,
    discard,
    is_folder,
    make_directory,
    names_in,
    read_bytes,
    remove_empty,
    write_atomically,
)
from streamkm.sealed import DAMAGE, in_words, seal, unseal
from streamkm.text import counted

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

__all__ = [
    "DISTANCES",
    "LABELS",
    "OFFSETS",
    "ORDER",
    "PARTITION",
    "UNFINISHED",
    "PartitionFolder",
    "check_partition_is_free",
    "describe_partition",
    "read_partition",
]

PARTITION, LOCK, UNFINISHED = "partition.json", "lock", "unfinished"
LABELS, DISTANCES = "labels.npy", "distances.npy"
OFFSETS, ORDER = "offsets.npy", "order.npy"

#: What must be as it was for a partition to go on: its keys in the record, and in words.
_SAME = {"model": "another model", "data": "other data", "settings": "other settings"}


def read_partition(path: Path) -> dict[str, Any]:
    """The content of partition.json in the folder `path`; `RunError` if it cannot be used."""
    try:
        record = unseal(read_bytes(path / PARTITION))
        for name in (*_SAME, "source", "run", "k", "done"):
            record[name]
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{path} is no partition: it has no {PARTITION}; name a folder that a partition has "
            "written"
        ) from None
    except DAMAGE as error:
        raise RunError(
            f"{path / PARTITION} is damaged: {in_words(error)}; restore it from a copy, or write "
            "to another ",
            Option("out"),
        ) from None
    return record


def describe_partition(path: Path) -> str:
    """What the partition in `path` is of, and whether it is finished: a line each."""
    record = read_partition(path)
    settings = record["settings"]
    owner = _lock(path).owner()
    lines = [
        f"partition    {path}",
        f"run          {record['run']}: {record['k']:,} clusters",
        f"source       {record['source']}",
    ]
    if settings["only"] is not None:
        lines.append(f"clusters     {', '.join(map(str, settings['only']))} alone")
    lines.append(f"sorted by    cluster, then {settings['sort']}")
    if record["done"]:
        n_asked = record["k"] if settings["only"] is None else len(settings["only"])
        n_full = n_asked - record["n_empty"]
        lines.append(
            f"rows         {record['n_rows']:,} in {counted(n_full, 'cluster')}, the largest of "
            f"{record['largest']:,}"
        )
        lines.append(f"dropped      {record['n_dropped']:,}")
        state = "finished"
    elif owner is not None:
        state = f"{owner} is working on it"
    else:
        state = "not finished: repeat the command with --resume"
    return "\n".join([*lines, f"state        {state}"])


def _lock(path: Path) -> FileLock:
    return FileLock(path / LOCK, path, "working on this partition")


def check_partition_is_free(path: Path, *, resume: bool) -> dict[str, Any] | None:
    """The record of the partition to `resume` in `path`; None if one can begin there.

    Raises
    ------
    InputError
        If `path` is in use, or holds something else.
    """
    out = Option("out")
    if is_folder(path) is False:
        raise OutputExistsError(f"{path} exists and is no folder; choose another ", out)
    names = names_in(path)
    if PARTITION in names:
        if resume:
            return read_partition(path)
        raise OutputExistsError(
            f"{path} exists; add ", Option("resume", value=True),
            " to go on with it, or choose another ", out,
        )  # fmt: skip
    if set(names) - {LOCK, f".{PARTITION}.tmp"}:
        raise OutputExistsError(f"{path} exists and is no partition; choose another ", out)
    return None


class PartitionFolder:
    """The folder of a partition that this process alone may write to, within its ``with`` block."""

    def __init__(self, path: Path, record: dict[str, Any], before: dict[str, Any] | None) -> None:
        """`before` is the record of the partition that goes on; `record` must agree with it."""
        self.path, self.record, self._before = path, record, before
        self._lock = _lock(path)
        if before is not None:
            self._check(before)

    def _check(self, before: dict[str, Any]) -> None:
        for name, what in _SAME.items():
            if before[name] == self.record[name]:
                continue
            was, now = before[name], self.record[name]
            if isinstance(was, dict):
                changed = next(key for key in now if was.get(key) != now[key])
                was, now = f"{changed}: {was.get(changed)}", now[changed]
            raise ResumeError(
                f"{self.path}: holds a partition by {what} ({was} -> {now}); give the former, or "
                "choose another ",
                Option("out"),
            )

    def __enter__(self) -> PartitionFolder:
        make_directory(self.path)
        self._lock.take()
        try:
            if self._before is None:
                # Again: it may have appeared before this process held the lock.
                check_partition_is_free(self.path, resume=False)
                write_atomically(self.path / PARTITION, seal(self.record))
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What was refused before anything was made leaves no folder.
        left = set(names_in(self.path)) - {PARTITION, LOCK, UNFINISHED}
        if isinstance(error, InputError) and self._before is None and not left:
            discard(self.path / UNFINISHED, self.path / PARTITION)
            self._lock.release(remove=True)
            remove_empty(self.path)
        self._lock.release()

    def write(self, **more: Any) -> None:
        """Write partition.json, with `more` of it."""
        self.record |= more
        write_atomically(self.path / PARTITION, seal(self.record))
