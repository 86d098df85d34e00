"""What predict writes for each row: which outputs, of which types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.errors import ConfigError, Option
from streamkm.runs.engine.labelling import label_dtype
from streamkm.runs.engine.writing import CLUSTER, DISTANCE, SECOND
from streamkm.sinks import chunk_rows_of, is_copy, is_table
from streamkm.sources import id_row_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamkm.runs.storage.model import Model
    from streamkm.sources import IdColumn

__all__ = ["columns_of", "fields_of", "n_ranked", "output_dtypes", "table_bytes"]


def n_ranked(second: Path | None, nearest: int | None) -> int:
    """How many of the nearest centroids of each row must be found."""
    return max(nearest or 1, 1 if second is None else 2)


def output_dtypes(
    model: Model,
    labels: Path,
    distances: Path | None,
    second: Path | None = None,
    nearest: int | None = None,
) -> list[tuple[Path, np.dtype[Any]]]:
    """(path, dtype) of each output, labels first; a table has a field for each column."""
    _check_nearest(model, second, nearest)
    several = () if nearest is None else (nearest,)
    cluster = (CLUSTER, np.dtype((label_dtype(model.k), several)))
    distance = (DISTANCE, np.dtype((np.float32, several)))
    of_labels = np.dtype([cluster, distance]) if is_table(labels) else cluster[1]
    outputs: list[tuple[Path, np.dtype[Any]]] = [(labels, of_labels)]
    for column, path in _beside(distances, second).items():
        if is_copy(path):
            raise ConfigError(
                f"{path}: only ",
                Option("labels"),
                " can be a copy of the source; write the distances as .npy or .parquet",
            )
        dtype: np.dtype[Any] = distance[1] if column == DISTANCE else np.dtype(np.float32)
        outputs.append((path, np.dtype([(column, dtype)]) if is_table(path) else dtype))
    _refuse_same({"labels": labels, "distances": distances, "second": second})
    return outputs


def _check_nearest(model: Model, second: Path | None, nearest: int | None) -> None:
    """Refuse more centroids of a row than there are."""
    if nearest is not None and not 1 <= nearest <= model.k:
        raise ConfigError(
            Option("nearest", nearest),
            f" must be from 1 to {model.k}, the number of centroids of the run",
        )
    if second is not None and model.k == 1:
        raise ConfigError(
            Option("second"), " is the distance to the second nearest centroid, the run has only 1"
        )


def _refuse_same(outputs: dict[str, Path | None]) -> None:
    """Refuse two outputs of one path; `outputs` are by option."""
    seen: dict[Path, str] = {}
    for option, path in outputs.items():
        other = None if path is None else seen.setdefault(path.resolve(), option)
        if other not in (None, option):
            both = f" must differ, both are {path}"
            raise ConfigError(Option(str(other)), " and ", Option(option), both)


def columns_of(distances: Path | None, second: Path | None) -> tuple[str, ...]:
    """The column that each output is of, or that a table of one column has, labels first."""
    return (CLUSTER, *_beside(distances, second))


def _beside(distances: Path | None, second: Path | None) -> dict[str, Path]:
    """The outputs beside the labels by the name of their column."""
    outputs = {DISTANCE: distances, SECOND: second}
    return {column: path for column, path in outputs.items() if path is not None}


def fields_of(
    outputs: list[tuple[Path, np.dtype[Any]]], columns: Sequence[str]
) -> list[tuple[str, np.dtype[Any]]]:
    """(name, dtype) of all columns that the outputs have, each once."""
    fields: dict[str, np.dtype[Any]] = {}
    for (_, dtype), column in zip(outputs, columns, strict=True):
        fields |= {name: dtype[name] for name in dtype.names or ()} or {column: dtype}
    return list(fields.items())


def table_bytes(outputs: list[tuple[Path, np.dtype[Any]]], ids: IdColumn | None) -> int:
    """Host bytes of a chunk of each output that is a table: values and ids, three times each.

    Once as they come, once as the columns of a chunk, once as the chunk is written.
    """
    id_bytes = 0 if ids is None else id_row_bytes(ids)
    return 3 * sum(
        chunk_rows_of(dtype) * (dtype.itemsize + id_bytes)
        for path, dtype in outputs
        if is_table(path)
    )
