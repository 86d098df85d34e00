"""Sources of rows: arrays on disk, behind an address or in memory, read by row range."""

from streamkm.sources.base import (
    DTYPES,
    ArraySpec,
    Grid,
    RowRange,
    Source,
    check_dtype,
    check_shape,
)
from streamkm.sources.beside import BesideColumns, BesideReader, beside_of, beside_row_bytes
from streamkm.sources.choice import Choice
from streamkm.sources.concat import Part, parts_of
from streamkm.sources.ids import IdColumn, id_notes, id_row_bytes, ids_of
from streamkm.sources.lazy import is_lazy
from streamkm.sources.options import SourceOptions
from streamkm.sources.places import is_path_list
from streamkm.sources.registry import open_source
from streamkm.sources.weights import Weights, open_weights

__all__ = [
    "DTYPES",
    "ArraySpec",
    "BesideColumns",
    "BesideReader",
    "Choice",
    "Grid",
    "IdColumn",
    "Part",
    "RowRange",
    "Source",
    "SourceOptions",
    "Weights",
    "beside_of",
    "beside_row_bytes",
    "check_dtype",
    "check_shape",
    "id_notes",
    "id_row_bytes",
    "ids_of",
    "is_lazy",
    "is_path_list",
    "open_source",
    "open_weights",
    "parts_of",
]
