"""What a sweep has found, for people: a line for each fit, the best of each column marked.

Imports no torch: a sweep is described at once.
"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

from streamkm.clustering.choosing import space_of
from streamkm.runs.storage.checkpoint import load_checkpoint
from streamkm.runs.storage.run_folder import MODEL, run_owner
from streamkm.runs.sweeping.record import SweepFolder
from streamkm.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "about",
    "describe_sweep",
    "recommendation_lines",
    "stability_figures",
    "table_columns",
    "table_lines",
]

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
    """The lines of the table, its head first, and what is to be said of it."""
    columns = table_columns(figures, stability)
    padded = [_of_equal_width(head, cells) for head, cells in columns.items()]
    return ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)] + about(figures)


def table_columns(
    figures: Sequence[Mapping[str, Any]], stability: Sequence[Mapping[str, Any]]
) -> dict[str, list[str]]:
    """The cells of each column by its head, the best of each space marked."""
    agreed = {(space_of(each), each["k"]): each["mean"] for each in stability}
    rows = [{**each, "stability": agreed.get((space_of(each), each["k"]))} for each in figures]
    columns = {"k": [f"{row['k']:,}" for row in rows]}
    for name in ("seed", "scale", "metric"):
        if len({row.get(name) for row in rows}) > 1:
            columns[name] = [str(row[name]) for row in rows]
    for head, key, form, best_of in COLUMNS:
        if all(row[key] is None for row in rows):
            continue
        bests = _best_of_each_space(rows, key, best_of)
        cells = [_cell(row[key], form, bests.get(space_of(row))) for row in rows]
        columns[head] = cells if best_of else [cell.rstrip() for cell in cells]
    columns["rows: least / median / most"] = [
        f"{row['least_rows']:,} / {row['median_rows']:,} / {row['most_rows']:,}" for row in rows
    ]
    if any(row["empty_clusters"] for row in rows):
        columns["empty"] = [f"{row['empty_clusters']:,}" for row in rows]
    return columns


def _best_of_each_space(
    rows: Sequence[Mapping[str, Any]],
    key: str,
    best_of: Callable[[Sequence[float]], float] | None,
) -> dict[tuple[str, str], float]:
    """The best value of each space that has several."""
    known: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row[key] is not None:
            known.setdefault(space_of(row), []).append(row[key])
    if best_of is None:
        return {}
    return {space: best_of(values) for space, values in known.items() if len(values) > 1}


def about(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """What marks mean, and of which rows figures are; lines below the table."""
    has_spaces = len({space_of(row) for row in figures}) > 1
    several = any(sum(space_of(other) == space_of(row) for other in figures) > 1 for row in figures)
    of = "column, for each scale and metric" if has_spaces else "column"
    lines = [(f"{BEST} the best of its {of}; " if several else "") + _about(figures)]
    sampled = figures[0].get("sampled_rows")
    if sampled is not None:
        lines.append(
            f"simplified silhouette, Davies-Bouldin and stability: of the same {sampled:,} rows; "
            "all else of all rows, as the last pass of the fits had them"
        )
    return lines


def _about(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the silhouette is of."""
    n_rows, n_taken = rows[0]["rows"], max(row["silhouette_rows"] for row in rows)
    if not n_taken:
        if any(row["simplified_silhouette"] is not None for row in rows):
            return "silhouette: only the simplified one"
        return "silhouette: none of fewer than two clusters with rows"
    of = "all rows" if n_taken >= n_rows else f"{n_taken:,} rows, among all {n_rows:,}"
    return f"silhouette: by squared distances, of {of}"


def _cell(value: float | None, form: str, best: float | None) -> str:
    if value is None:
        return "- "
    return f"{value:{form}}{BEST if value == best else ' '}"


def _of_equal_width(head: str, cells: Sequence[str]) -> list[str]:
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
    record = SweepFolder.read(path)
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
        width = max(12, *(len(run["name"]) for run in runs))
        return "\n".join([*lines, *(_standing(path, run["name"], width) for run in runs)])
    lines += ["", *table_lines(record["figures"], record["stability"])]
    return "\n".join([*lines, "", *recommendation_lines(record["recommendation"])])


def _standing(path: Path, name: str, width: int) -> str:
    """How far one fit of a sweep under way has come."""
    if (path / name / MODEL).exists():
        return f"{name:<{width}} finished"
    checkpoint = load_checkpoint(path / name / "checkpoints")
    if checkpoint is None:
        return f"{name:<{width}} no checkpoint yet"
    cursor = checkpoint.manifest["cursor"]
    return f"{name:<{width}} {cursor['phase']}, epoch {cursor['epoch']}, batch {cursor['batch']}"
