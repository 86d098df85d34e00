"""The options of sources: what the files of a format do not say of themselves.

An option is declared here and not beside its opener, because the command line makes its help of
all of them without importing zarr, pyarrow or h5py. The table in `streamkm.sources.formats` says
which format takes which.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from streamkm.errors import ConfigError, Option, SourceError
from streamkm.sources.base import DTYPES
from streamkm.sources.chosen import span_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "COLUMNS",
    "DATASET",
    "DTYPE",
    "ID_COLUMN",
    "NODATA",
    "N_FEATURES",
    "OFFSET",
    "OF_ALL",
    "OF_GROUPS",
    "SourceOption",
    "SourceOptions",
]

DtypeLike = str | np.dtype[np.generic] | type[np.generic]


class SourceOptions(TypedDict, total=False):
    """The options of `open_source`: what a location does not say of itself.

    A key that is missing, or None, says nothing.
    """

    dtype: DtypeLike | None
    """Element type of a raw file: ``"bfloat16"``, or anything that NumPy takes for a dtype, in
    either byte order. Of any other array it must be the type, except that ``"bfloat16"`` also
    reads arrays stored as uint16."""
    n_features: int | None
    """Number of features of a raw file. Any other array must have as many."""
    offset: int | None
    """Bytes before the first row of a raw file, 0 by default."""
    dataset: str | None
    """Name of the array in a file that holds several: a dataset of HDF5, such as ``obsm/X_pca``,
    the path of an array in a Zarr group, an array of ``.npz``, a tensor of safetensors. By default
    the only one of numbers in two or more dimensions."""
    variable: str | Sequence[str] | None
    """Arrays of one shape in an HDF5 or netCDF file or a Zarr group: each is a feature, and all
    its axes are rows. With `dataset` they lie in that group."""
    feature_dim: str | int | Sequence[str | int] | None
    """The axes of an HDF5 or Zarr array that are features, by name or number, flattened in this
    order; all others are rows. By default the last."""
    nodata: float | int | Sequence[float | int] | None
    """Stored values that mean "no data". They are read as NaN, so that a row which holds one is an
    error or, with ``nan="drop"``, left out. Integers are read as floats then."""
    apply_scale: bool | None
    """Whether values are ``stored * scale_factor + add_offset``, where the attributes of an HDF5 or
    Zarr array say so."""
    fill_is_nan: bool | Sequence[float | int] | None
    """Whether the values that the attributes ``_FillValue`` and ``missing_value`` of an HDF5 or
    Zarr array name are no data, as in `nodata`. ``--nan drop`` says so on the command line. Numbers
    say so too, and are no data themselves where an array has no such attributes."""
    columns: Sequence[str] | None
    """Columns of a Parquet or Arrow file: one column of lists, or columns of numbers in the order
    of the features. By default the only column of lists, or else all columns."""
    id_column: str | None
    """Column of a Parquet or Arrow file that names the rows; it is no feature, and outputs that are
    Parquet files have it."""
    row_range: str | slice | Sequence[int | None] | None
    """The rows that are read, ``"A:B"``, a slice or a pair: from A up to but not including B, as
    in NumPy. By default all. Weights of a file are still those of all rows."""
    sample: float | None
    """Share of the blocks that are read, above 0 and at most 1: a sample of whole blocks, drawn by
    `sample_seed` and the number of the block alone. 1 by default."""
    sample_seed: int | None
    """Decides which blocks are in the sample, 0 by default."""


def _as_given(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class SourceOption:
    """One option of a format: something that its files do not say of themselves."""

    name: str
    """Its keyword in Python; `streamkm.errors.Option` makes the flag from it."""
    help: str
    """What it is, for the help of the command line."""
    parse: Callable[[str], Any] = str
    """Turns the text of the command line into a value."""
    checked: Callable[[Any], Any] = _as_given
    """Turns a value into the opener's argument; raises `SourceError` for an impossible value."""
    default: Any = None
    """A value that counts as not given."""
    metavar: str | None = None
    is_repeatable: bool = False
    """Whether the command line takes it several times, for a list."""
    is_needed: bool = False
    """Whether a file of the format cannot be opened without it."""
    is_general: bool = False
    """Whether other formats take it too; there it must agree with the array."""
    heading: str = "files that hold several arrays"
    """The heading that it stands under in the help."""
    is_switch: bool = False
    """Whether its flag takes no value."""
    has_flag: bool = True
    """Whether the command line has it as an option."""

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return Option(self.name).flag


def _dtype(dtype: DtypeLike) -> str | np.dtype[np.generic]:
    if isinstance(dtype, str) and dtype in DTYPES:
        return dtype
    try:
        return np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):  # NumPy parses a text with Python's grammar.
        known = ", ".join(DTYPES)
        raise SourceError(Option("dtype"), f" must be one of {known}, not {dtype!r}") from None


def _n_features(n_features: int) -> int:
    if n_features < 1:
        raise SourceError(Option("n_features"), f" must be at least 1, got {n_features}")
    return n_features


def _offset(offset: int) -> int:
    if offset < 0:
        raise SourceError(Option("offset"), f" must be at least 0 bytes, got {offset}")
    return offset


def _columns(columns: Sequence[str]) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns)


def _several(given: Any) -> tuple[Any, ...]:
    return (given,) if isinstance(given, str | int | float) else tuple(given)


def _number(text: str) -> float | int:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"a number is needed, not {text!r}") from None


def _fill_is_nan(given: bool | Sequence[float | int]) -> bool | tuple[float | int, ...]:
    return given if isinstance(given, bool) else _nodata(given)


def _nodata(values: float | int | Sequence[float | int]) -> tuple[float | int, ...]:
    found = []
    for value in _several(values):
        if not isinstance(value, numbers.Real):
            raise SourceError(Option("nodata"), f" must be a number, not {value!r}")
        found.append(int(value) if isinstance(value, numbers.Integral) else float(value))
    return tuple(found)


def _sample(share: float) -> float:
    is_number = isinstance(share, numbers.Real) and not isinstance(share, bool)
    if not is_number or not 0 < share <= 1:
        raise SourceError(
            Option("sample"),
            f" must be a share of the blocks, above 0 and at most 1, such as 0.1, not {share!r}",
        )
    return float(share)


def _sample_seed(seed: int) -> int:
    if not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or seed < 0:
        raise SourceError(
            Option("sample_seed"), f" must be a whole number of at least 0, not {seed!r}"
        )
    return int(seed)


DTYPE = SourceOption(
    "dtype",
    "element type, such as float16, bfloat16 or >f4 (big-endian float32)",
    checked=_dtype,
    is_needed=True,
    is_general=True,
    heading="raw files",
)
N_FEATURES = SourceOption(
    "n_features",
    "number of features",
    parse=int,
    checked=_n_features,
    metavar="D",
    is_needed=True,
    is_general=True,
    heading="raw files",
)
OFFSET = SourceOption(
    "offset",
    "bytes before the first row (default: 0)",
    parse=int,
    checked=_offset,
    default=0,
    metavar="BYTES",
    heading="raw files",
)
COLUMNS = SourceOption(
    "columns",
    "Parquet, Arrow: a column of lists, or a column of numbers; repeat the option for each "
    "feature (default: the only column of lists, or else all columns)",
    checked=_columns,
    metavar="NAME",
    is_repeatable=True,
)
ID_COLUMN = SourceOption(
    "id_column",
    "Parquet and Arrow: the column that names the rows; it is no feature, and predict writes it to "
    "outputs that are .parquet files",
    metavar="NAME",
)
DATASET = SourceOption(
    "dataset",
    "name of the array in a file that holds several, such as obsm/X_pca or layers/counts of HDF5 "
    "and Zarr (default: X of AnnData, or else the only one)",
    metavar="NAME",
)
VARIABLE = SourceOption(
    "variable",
    "HDF5, netCDF and Zarr: an array that is one feature, all its axes rows; repeat the option for "
    "each feature",
    checked=_several,
    metavar="NAME",
    is_repeatable=True,
)
FEATURE_DIM = SourceOption(
    "feature_dim",
    "HDF5, netCDF and Zarr: the axis that is features, by name or number; repeat the option for "
    "several (default: the last)",
    checked=_several,
    metavar="AXIS",
    is_repeatable=True,
    heading="what stored values mean",
)
NODATA = SourceOption(
    "nodata",
    "a stored value that means no data: rows that hold it count as rows with NaN; "
    "repeat the option for several values",
    parse=_number,
    checked=_nodata,
    metavar="VALUE",
    is_repeatable=True,
    is_general=True,
    heading="what stored values mean",
)
APPLY_SCALE = SourceOption(
    "apply_scale",
    "read stored * scale_factor + add_offset where the array (HDF5, netCDF, Zarr) has such "
    "attributes",
    default=False,
    is_general=True,
    heading="what stored values mean",
    is_switch=True,
)
FILL_IS_NAN = SourceOption(
    "fill_is_nan",
    "values that attributes mark as no data are NaN",
    checked=_fill_is_nan,
    default=False,
    is_general=True,
    has_flag=False,
)
ROW_RANGE = SourceOption(
    "row_range",
    "read rows A up to but not including B; numbers below 0 count from the end, and either may be "
    "left out (default: all rows)",
    checked=span_of,
    metavar="A:B",
    is_general=True,
    heading="which rows",
)
SAMPLE = SourceOption(
    "sample",
    "read a sample of this share of the blocks, above 0 and at most 1 (default: all)",
    parse=float,
    checked=_sample,
    default=1.0,
    metavar="SHARE",
    is_general=True,
    heading="which rows",
)
SAMPLE_SEED = SourceOption(
    "sample_seed",
    "decides which blocks are in the sample (default: 0)",
    parse=int,
    checked=_sample_seed,
    metavar="S",
    is_general=True,
    heading="which rows",
)
#: The options of every source.
OF_ALL = (ROW_RANGE, SAMPLE, SAMPLE_SEED)
#: The options of formats whose arrays lie in groups and have named axes and attributes.
OF_GROUPS = (DATASET, VARIABLE, FEATURE_DIM, NODATA, APPLY_SCALE, FILL_IS_NAN)
