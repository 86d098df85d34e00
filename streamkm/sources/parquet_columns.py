"""Which columns of a Parquet or Arrow file are features, and what type holds them all."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from streamkm.errors import Option, SourceError
from streamkm.sources.base import check_dtype
from streamkm.sources.parquet_ids import NAMES_SHOWN, listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow.parquet as pq

__all__ = ["chosen_columns", "common_dtype", "features_of", "index_columns", "is_list"]

#: Rows that are read at once to find the first list that is no null.
NULLS_AT_ONCE = 1024
#: Columns that hold a data frame's index, whatever wrote the file: pandas and dask name them so.
_INDEX_NAME = re.compile(r"__index_level_\d+__|__null_dask_index__")


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists."""
    tests = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
    return any(test(kind) for test in tests)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def index_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold the index of a data frame, by pandas' own metadata or by their name."""
    try:
        described = (schema.pandas_metadata or {}).get("index_columns", [])
        # An index that is a range takes no column: it is described by a mapping.
        of_pandas = [each for each in described if isinstance(each, str)]
    except (ValueError, AttributeError, TypeError):  # What is no JSON, or not as pandas writes it.
        of_pandas = []
    return [each for each in schema.names if each in of_pandas or _INDEX_NAME.fullmatch(each)]


def chosen_columns(
    schema: pa.Schema,
    columns: Sequence[str] | None,
    name: str,
    index: Sequence[str],
    *,
    has_ids: bool = False,
) -> list[str]:
    """The names of the columns to read, in the order of the features; by default none of `index`.

    With `has_ids` the column of ids is known, and not in `schema`.

    Raises
    ------
    SourceError
        If `columns` do not make rows of numbers, or if none are given and it is not clear which do.
    """
    fields = {field.name: field.type for field in schema}
    there_are = listed(schema)
    if len(fields) < len(schema):
        twice = next(each for each, count in Counter(schema.names).items() if count > 1)
        raise SourceError(
            f"{name}: two columns have the same name, {twice!r}; rename one; {there_are}"
        )
    if columns is None:
        usable = {field: kind for field, kind in fields.items() if field not in index}
        if not _are_clear(usable):
            raise SourceError(
                f"{name}: which columns are meant is not clear{_odd_ones(usable)}, ",
                *_choice(usable, has_ids=has_ids),
                f"; {there_are}",
            )
        lists = [field for field, kind in usable.items() if is_list(kind)]
        return chosen_columns(schema, lists or list(usable), name, index)
    chosen = list(columns)
    for column in chosen:
        if column not in fields:
            raise SourceError(f"{name}: there is no column {column!r}; {there_are}")
        kind = fields[column]
        if not _is_number(kind.value_type if is_list(kind) else kind):
            raise SourceError(f"{name}: column {column!r} holds no numbers but {kind}; {there_are}")
        if is_list(kind) and len(chosen) > 1:
            raise SourceError(
                f"{name}: column {column!r} holds lists, which are whole rows; choose it alone"
            )
    if len(set(chosen)) < len(chosen) or not chosen:
        raise SourceError(f"{name}: columns must be chosen once each, not {', '.join(chosen)}")
    return chosen


def _are_clear(fields: dict[str, pa.DataType]) -> bool:
    """Whether there is one column of lists, or there are only columns of one other type."""
    n_lists = sum(map(is_list, fields.values()))
    return n_lists == 1 or (n_lists == 0 and len(set(fields.values())) == 1)


def _choice(fields: dict[str, pa.DataType], *, has_ids: bool) -> list[str | Option]:
    """The remedy as parts of a message; one column of text may hold the ids."""
    texts = [field for field, kind in fields.items() if _is_text(kind)]
    if has_ids or len(texts) != 1:
        return ["choose by ", Option("columns")]
    by_ids = Option("id_column", texts[0])
    if _are_clear({field: kind for field, kind in fields.items() if field != texts[0]}):
        return ["name the ids by ", by_ids, ", or choose by ", Option("columns")]
    return ["choose by ", Option("columns"), ", and ids by ", by_ids]


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _odd_ones(fields: dict[str, pa.DataType]) -> str:
    """A phrase that names the columns of another type, if most are numbers of one type."""
    counts = Counter(fields.values())
    if not counts:
        return ""
    usual, n_usual = counts.most_common(1)[0]
    odd = [f"{field} {kind}" for field, kind in fields.items() if kind != usual]
    if not _is_number(usual) or n_usual <= len(odd):
        return ""
    shown = ", ".join(odd[:NAMES_SHOWN]) + (", ..." if len(odd) > NAMES_SHOWN else "")
    return f" (most are {usual}, but not {shown})"


def features_of(file: pq.ParquetFile, columns: Sequence[str], kind: pa.DataType, name: str) -> int:
    """Features of a row: the length of the first list that is no null, or the number of columns."""
    if not is_list(kind):
        return len(columns)
    if pa.types.is_fixed_size_list(kind):
        n_features = kind.list_size
    else:
        batches = file.iter_batches(batch_size=NULLS_AT_ONCE, columns=columns, use_threads=False)
        lists = (batch.column(0).drop_null() for batch in batches)
        n_features = next((len(some[0]) for some in lists if len(some)), 0)
    if n_features < 1:
        raise SourceError(f"{name}: column {columns[0]!r} holds empty lists, or only nulls")
    return int(n_features)


def common_dtype(types: Sequence[pa.DataType], columns: Sequence[str], name: str) -> str:
    """The key of `DTYPES` whose type holds the numbers of all columns without rounding."""
    dtypes = [
        np.dtype((kind.value_type if is_list(kind) else kind).to_pandas_dtype()) for kind in types
    ]
    common = np.result_type(*dtypes)
    # NumPy calls it safe to turn 64-bit integers into float64, which rounds large ones.
    rounded = [d for d in dtypes if d.kind in "iu" and d.itemsize == 8 and common.kind == "f"]
    if rounded:
        column = columns[dtypes.index(rounded[0])]
        raise SourceError(
            f"{name}: column {column!r} holds {rounded[0]}, others floats, which would round it; "
            "choose by ",
            Option("columns"),
            ", or convert it",
        )
    return check_dtype(common, name)
