"""Reads metrics.jsonl, the records of a run's progress. Imports no torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from streamkm.files import read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["METRICS", "inertia_course", "read_metrics"]

METRICS = "metrics.jsonl"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records in the run folder `run`, in order; none if the file is missing.

    Lines that are no records are passed over: a process that was killed may have left half a line,
    and one at work may be writing the last. No result depends on these records.
    """
    try:
        content = read_bytes(run / METRICS)
    except (FileNotFoundError, NotADirectoryError):
        return []
    records = []
    for line in content.split(b"\n"):
        try:
            record = json.loads(line, parse_constant=_refuse)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("phase"), str):
            records.append(record)
    return records


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def inertia_course(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of training and closing, in the order of the rows that they were made after.

    Each gets ``total_rows``: the rows of both phases so far. A record that a later attempt has
    made again, because it went on from a checkpoint before it, is left out.
    """
    kept: list[dict[str, Any]] = []
    trained = 0
    for record in records:
        phase, rows = record["phase"], record.get("rows")
        if phase not in ("train", "close") or type(rows) is not int:
            continue
        if not isinstance(record.get("inertia_per_row"), int | float):
            continue
        if phase == "train":
            trained = rows
        total = rows if phase == "train" else trained + rows
        while kept and kept[-1]["total_rows"] >= total:
            kept.pop()
        kept.append({**record, "total_rows": total})
    return kept
