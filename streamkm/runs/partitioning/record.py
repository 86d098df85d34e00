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

from streamkm.errors import Option, ResumeError
from streamkm.runs.storage.record_folder import RecordFolder
from streamkm.text import counted

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "DISTANCES",
    "LABELS",
    "OFFSETS",
    "ORDER",
    "PARTITION",
    "UNFINISHED",
    "PartitionFolder",
    "describe_partition",
]

PARTITION, UNFINISHED = "partition.json", "unfinished"
LABELS, DISTANCES = "labels.npy", "distances.npy"
OFFSETS, ORDER = "offsets.npy", "order.npy"

#: What must be as it was for a partition to go on: its keys in the record, and in words.
_SAME = {"model": "another model", "data": "other data", "settings": "other settings"}


def describe_partition(path: Path) -> str:
    """What the partition in `path` is of, and whether it is finished: a line each."""
    record = PartitionFolder.read(path)
    settings = record["settings"]
    owner = PartitionFolder.owner(path)
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


class PartitionFolder(RecordFolder):
    """The folder of a partition; see `RecordFolder`."""

    file, noun, option, anew = PARTITION, "partition", "out", "write to"
    scratch = (UNFINISHED,)

    @staticmethod
    def _look_for_keys(record: dict[str, Any]) -> None:
        for name in (*_SAME, "source", "run", "k", "done"):
            record[name]

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
