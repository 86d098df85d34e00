"""What a sweep has found, for people: a line for each fit, the best of each column marked.

Imports no torch: a sweep is described at once.
"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

from streamkm.runs.storage.checkpoint import load_checkpoint
from streamkm.runs.storage.run_folder import MODEL, run_owner
from streamkm.runs.sweeping.record import read_sweep
from streamkm.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["describe_sweep", "recommendation_lines", "stability_figures", "table_lines"]

#: What marks the best of a column.
BEST = "*"
#: Columns of figures: the head, the key in sweep.json, the format, and which value is best. The
#: inertia falls and the explained variance rises with K whatever the data: none is marked there.
COLUMNS: tuple[tuple[str, str, str, Callable[[Sequence[float]], float] | None], ...] = (
    ("inertia", "inertia", ".6g", None),
    ("explained", "explained_variance", ".1%", None),
    ("silhouette", "silhouette", ".4f", max),
    ("simplified", "simplified_silhouette", ".4f", max),
    ("Calinski-Harabasz", "calinski_harabasz", ".6g", max),
    ("Davies-Bouldin", "davies_bouldin", ".4f", min),
    ("stability", "stability", ".4f", max),
)


def stability_figures(k: int, indices: Sequence[float]) -> dict[str, Any]:
    """How well the fits of one K agree, from the adjusted Rand indices of all pairs of seeds."""
    return {"k": k, "pairs": list(indices), "mean": fmean(indices), "least": min(indices)}


def table_lines(
    figures: Sequence[Mapping[str, Any]], stability: Sequence[Mapping[str, Any]]
) -> list[str]:
    """The lines of the table, its head first."""
    agreed = {each["k"]: each["mean"] for each in stability}
    rows = [{**each, "stability": agreed.get(each["k"])} for each in figures]
    several = len({row["seed"] for row in rows}) > 1
    columns = [_column("k", [f"{row['k']:,}" for row in rows])]
    if several:
        columns.append(_column("seed", [str(row["seed"]) for row in rows]))
    for head, key, form, best_of in COLUMNS:
        values = [row[key] for row in rows]
        known = [value for value in values if value is not None]
        if not known:
            continue
        best = best_of(known) if best_of is not None and len(known) > 1 else None
        cells = [_cell(value, form, best) for value in values]
        columns.append(_column(head, cells if best_of else [cell.rstrip() for cell in cells]))
    sizes = [
        f"{row['least_rows']:,} / {row['median_rows']:,} / {row['most_rows']:,}" for row in rows
    ]
    columns.append(_column("rows: least / median / most", sizes))
    if any(row["empty_clusters"] for row in rows):
        columns.append(_column("empty", [f"{row['empty_clusters']:,}" for row in rows]))
    lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    mark = f"{BEST} the best of its column; " if any(BEST in line for line in lines) else ""
    return [*lines, mark + _about(rows)]


def _about(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the silhouette is of."""
    n_rows, n_taken = rows[0]["rows"], max(row["silhouette_rows"] for row in rows)
    if not n_taken:
        if any(row["simplified_silhouette"] is not None for row in rows):
            return "silhouette: of rows with weights only the simplified one"
        return "silhouette: none of fewer than two clusters with rows"
    of = "all rows" if n_taken >= n_rows else f"{n_taken:,} rows, among all {n_rows:,}"
    return f"silhouette: by squared distances, of {of}"


def _cell(value: float | None, form: str, best: float | None) -> str:
    if value is None:
        return "- "
    return f"{value:{form}}{BEST if value == best else ' '}"


def _column(head: str, cells: Sequence[str]) -> list[str]:
    """Cells of equal width, to the right, the head before them."""
    # What is marked needs a place that numbers above it leave free.
    padded = f"{head} " if any(cell.endswith((BEST, " ")) for cell in cells) else head
    width = max(map(len, (padded, *cells)))
    return [each.rjust(width) for each in (padded, *cells)]


def recommendation_lines(recommendation: Mapping[str, Any]) -> list[str]:
    """The recommendation and its reasons."""
    return [recommendation["verdict"], *(f"  {reason}" for reason in recommendation["reasons"])]


def describe_sweep(path: Path) -> str:
    """The sweep in the folder `path`: its data, how far it is, and its table if it is finished."""
    record = read_sweep(path)
    (n_rows, n_features), dtype = record["data"]["shape"], record["data"]["dtype"]
    runs = record["runs"]
    n_finished = sum((path / run["name"] / MODEL).exists() for run in runs)
    lines = [
        f"sweep        {path}",
        f"source       {record['source']}",
        f"shape        {n_rows:,} x {n_features:,} {dtype}",
        *([f"chosen       {chosen}"] if (chosen := record["data"].get("chosen")) else []),
        f"fits         {n_finished:,} of {counted(len(runs), 'fit')} finished",
    ]
    if "figures" not in record:
        owner = run_owner(path)
        hint = "add --resume to its command to go on" if owner is None else f"{owner} is at work"
        lines.append(f"figures      none yet; {hint}")
        return "\n".join([*lines, *(_standing(path, run["name"]) for run in runs)])
    lines += ["", *table_lines(record["figures"], record["stability"])]
    return "\n".join([*lines, "", *recommendation_lines(record["recommendation"])])


def _standing(path: Path, name: str) -> str:
    """How far one fit of a sweep under way has come."""
    if (path / name / MODEL).exists():
        return f"{name:<12} finished"
    checkpoint = load_checkpoint(path / name / "checkpoints")
    if checkpoint is None:
        return f"{name:<12} no checkpoint yet"
    cursor = checkpoint.manifest["cursor"]
    return f"{name:<12} {cursor['phase']}, epoch {cursor['epoch']}, batch {cursor['batch']}"
