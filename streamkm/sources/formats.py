"""The table of formats: one line for each that can be read, with its options.

`open_source`, the command line and its help read `FORMATS`, so that a new format is its file, its
line here and its test. A line names the opener as text, and the first file of the format imports
it: a mistyped path must not wait for zarr, pyarrow or h5py, and the last two need not be installed.
That is also why an option is declared here and not beside its opener.
"""

from __future__ import annotations

import numbers
import pkgutil
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from streamkm.errors import ConfigError, Option, SourceError
from streamkm.sources.base import DTYPES
from streamkm.sources.decoded import honoured
from streamkm.sources.flat import BIN_DTYPES
from streamkm.sources.vecs import VECS_DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from streamkm.sources.base import Source
    from streamkm.sources.rowfile import Stored

__all__ = [
    "ADDRESSES",
    "FORMATS",
    "RAW",
    "Format",
    "SourceOption",
    "SourceOptions",
    "folder_format",
    "folder_formats",
    "format_of",
    "given_options",
    "imported",
    "refuse_foreign_options",
    "source_options",
    "suffixes",
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
    fill_is_nan: bool | None
    """Whether the values that the attributes ``_FillValue`` and ``missing_value`` of an HDF5 or
    Zarr array name are no data, as in `nodata`. ``--nan drop`` says so on the command line."""
    columns: Sequence[str] | None
    """Columns of a Parquet or Arrow file: one column of lists, or columns of numbers in the order
    of the features. By default the only column of lists, or else all columns."""
    id_column: str | None
    """Column of a Parquet or Arrow file that names the rows; it is no feature, and outputs that are
    Parquet files have it."""


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


@dataclass(frozen=True, slots=True)
class Format:
    """One line of `FORMATS`."""

    name: str
    """Its name in errors."""
    home: str
    """``module:function`` of the opener. It takes the path, the `options` by keyword, and
    ``keep_open`` if `keeps_open`."""
    suffixes: tuple[str, ...]
    """The suffixes of its files and folders, in lower case."""
    options: tuple[SourceOption, ...] = ()
    extra: str | None = None
    """The extra of streamkm that installs the package it needs; None if streamkm itself does."""
    keeps_open: bool = True
    """Whether its source holds a file open, unless ``keep_open`` is false."""
    markers: tuple[str, ...] = ()
    """Of a format whose arrays are folders: an array's folder, or a group's, holds one of these
    files."""
    reads_objects: bool = False
    """Whether its opener takes a file behind an address as well, a `Stored`."""
    members: str | None = None
    """``module:function`` that lists, as a phrase, the arrays in such a folder."""

    def open(
        self, location: Path | Stored | str, given: Mapping[str, Any], *, keep_open: bool
    ) -> Source:
        """Open the array at `location` with the options `given`, all of which it takes."""
        arguments = {o.name: given[o.name] for o in self.options if o.name in given}
        if self.keeps_open:
            arguments["keep_open"] = keep_open
        source: Source = imported(self.home, location, self.extra)(location, **arguments)
        # Openers that take the option decode by themselves, for each variable its own way.
        return source if _NODATA in self.options else honoured(source, given.get("nodata", ()))

    def holds(self, folder: Path) -> bool:
        """Whether `folder` is an array of this format, or a group of arrays."""
        return any((folder / name).is_file() for name in self.markers)

    def members_of(self, folder: Path) -> str:
        """The arrays in `folder`, as a phrase after a semicolon; ``""`` without `members`."""
        if self.members is None:
            return ""
        return f"; of {folder}: {pkgutil.resolve_name(self.members)(folder)}"


def imported(home: str, location: object, extra: str | None) -> Any:
    """What ``module:name`` names; `SourceError` if a package of the `extra` is not installed."""
    try:
        return pkgutil.resolve_name(home)
    except ModuleNotFoundError as error:
        if extra is None:
            raise
        raise SourceError(
            f"{location}: reading it needs {error.name}, which is not installed; "
            f"install streamkm[{extra}]"
        ) from error


# ---- options -----------------------------------------------------------------


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


def _nodata(values: float | int | Sequence[float | int]) -> tuple[float | int, ...]:
    found = []
    for value in _several(values):
        if not isinstance(value, numbers.Real):
            raise SourceError(Option("nodata"), f" must be a number, not {value!r}")
        found.append(int(value) if isinstance(value, numbers.Integral) else float(value))
    return tuple(found)


_DTYPE = SourceOption(
    "dtype",
    "element type, such as float16, bfloat16 or >f4 (big-endian float32)",
    checked=_dtype,
    is_needed=True,
    is_general=True,
    heading="raw files",
)
_N_FEATURES = SourceOption(
    "n_features",
    "number of features",
    parse=int,
    checked=_n_features,
    metavar="D",
    is_needed=True,
    is_general=True,
    heading="raw files",
)
_OFFSET = SourceOption(
    "offset",
    "bytes before the first row (default: 0)",
    parse=int,
    checked=_offset,
    default=0,
    metavar="BYTES",
    heading="raw files",
)
_COLUMNS = SourceOption(
    "columns",
    "Parquet, Arrow: a column of lists, or a column of numbers; repeat the option for each "
    "feature (default: the only column of lists, or else all columns)",
    checked=_columns,
    metavar="NAME",
    is_repeatable=True,
)
_ID_COLUMN = SourceOption(
    "id_column",
    "Parquet and Arrow: the column that names the rows; it is no feature, and predict writes it to "
    "outputs that are .parquet files",
    metavar="NAME",
)
_DATASET = SourceOption(
    "dataset",
    "name of the array in a file that holds several, such as obsm/X_pca or layers/counts of HDF5 "
    "and Zarr (default: X of AnnData, or else the only one)",
    metavar="NAME",
)
_VARIABLE = SourceOption(
    "variable",
    "HDF5, netCDF and Zarr: an array that is one feature, all its axes rows; repeat the option for "
    "each feature",
    checked=_several,
    metavar="NAME",
    is_repeatable=True,
)
_FEATURE_DIM = SourceOption(
    "feature_dim",
    "HDF5, netCDF and Zarr: the axis that is features, by name or number; repeat the option for "
    "several (default: the last)",
    checked=_several,
    metavar="AXIS",
    is_repeatable=True,
    heading="what stored values mean",
)
_NODATA = SourceOption(
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
_APPLY_SCALE = SourceOption(
    "apply_scale",
    "read stored * scale_factor + add_offset where the array (HDF5, netCDF, Zarr) has such "
    "attributes",
    default=False,
    is_general=True,
    heading="what stored values mean",
    is_switch=True,
)
_FILL_IS_NAN = SourceOption(
    "fill_is_nan",
    "values that attributes mark as no data are NaN",
    default=False,
    is_general=True,
    has_flag=False,
)
#: The options of formats whose arrays lie in groups and have named axes and attributes.
_OF_GROUPS = (_DATASET, _VARIABLE, _FEATURE_DIM, _NODATA, _APPLY_SCALE, _FILL_IS_NAN)


# ---- the table ---------------------------------------------------------------

#: Files of any suffix that no other format has, if the options that it needs are given.
RAW = Format("raw", "streamkm.sources.flat:open_raw", (), (_DTYPE, _N_FEATURES, _OFFSET))

#: All formats; a file belongs to the first that has its suffix.
FORMATS: tuple[Format, ...] = (
    RAW,
    Format("NumPy", "streamkm.sources.npy:open_npy", (".npy",), reads_objects=True),
    Format(
        "Zarr",
        "streamkm.sources.zarr:open_zarr",
        (".zarr",),
        _OF_GROUPS,
        keeps_open=False,
        markers=("zarr.json", ".zarray", ".zgroup"),
        members="streamkm.sources.zarr:array_names",
    ),
    Format(
        "Parquet",
        "streamkm.sources.parquet:ParquetSource",
        (".parquet",),
        (_COLUMNS, _ID_COLUMN),
        extra="parquet",
        reads_objects=True,
        keeps_open=False,
    ),
    Format(
        "Arrow",
        "streamkm.sources.arrow:ArrowSource",
        (".arrow", ".arrows", ".feather"),
        (_COLUMNS, _ID_COLUMN),
        extra="parquet",
        reads_objects=True,
        keeps_open=False,
    ),
    Format("bin", "streamkm.sources.flat:open_bin", tuple(BIN_DTYPES), reads_objects=True),
    Format("vecs", "streamkm.sources.vecs:VecsSource", tuple(VECS_DTYPES), reads_objects=True),
    Format(
        "HDF5",
        "streamkm.sources.hdf5:open_hdf5",
        (".h5", ".hdf5", ".h5ad", ".nc", ".nc4"),
        _OF_GROUPS,
        extra="hdf5",
    ),
    Format(
        "zipped Zarr",
        "streamkm.sources.zarr:open_zip",
        (".zip",),
        (_DATASET,),
        keeps_open=False,
    ),
    Format("npz", "streamkm.sources.npz:open_npz", (".npz",), (_DATASET,), reads_objects=True),
    Format(
        "safetensors",
        "streamkm.sources.safetensors:open_safetensors",
        (".safetensors",),
        (_DATASET,),
        reads_objects=True,
    ),
)

#: The format of every address (``s3://``, ``https://``), whatever its suffix.
ADDRESSES = Format(
    "Zarr",
    "streamkm.sources.zarr:open_remote",
    (".zarr",),
    _OF_GROUPS,
    extra="s3",
    keeps_open=False,
)


# ---- questions to the table --------------------------------------------------


def suffixes() -> tuple[str, ...]:
    """The suffixes of all formats."""
    return tuple(suffix for entry in FORMATS for suffix in entry.suffixes)


def format_of(suffix: str) -> Format:
    """The format of files that end in `suffix`; `RAW` if no other has it."""
    return next((entry for entry in FORMATS if suffix in entry.suffixes), RAW)


def folder_formats() -> list[Format]:
    """The formats whose arrays are folders."""
    return [entry for entry in FORMATS if entry.markers]


def folder_format(folder: Path) -> Format | None:
    """The format of an array's or a group's folder; None for any other folder."""
    return next((entry for entry in folder_formats() if entry.holds(folder)), None)


def source_options() -> list[SourceOption]:
    """The options of all formats, each once."""
    return list(dict.fromkeys(option for entry in FORMATS for option in entry.options))


def given_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `options` that differ from their defaults, checked, as openers take them.

    Raises
    ------
    SourceError
        If a value is impossible.
    TypeError
        If no format has an option of that name.
    """
    known = {option.name: option for option in source_options()}
    unknown = options.keys() - known
    if unknown:
        raise TypeError(
            f"open_source() got an unexpected keyword argument {min(unknown)!r}; there are "
            f"{', '.join(known)}"
        )
    given = {
        name: known[name].checked(value) for name, value in options.items() if value is not None
    }
    # Nothing is compared with None, because the dtype float64 equals None.
    defaults = {
        name: option.default for name, option in known.items() if option.default is not None
    }
    return {
        name: value
        for name, value in given.items()
        if name not in defaults or value != defaults[name]
    }


def refuse_foreign_options(
    location: object, given: Mapping[str, Any], entry: Format | None, suffix: str
) -> None:
    """Raise `SourceError` if an option is given that the format of `location` does not take.

    Parameters
    ----------
    location : object
        The location, for the message.
    given : mapping
        The options by name.
    entry : Format or None
        Its format; None for an array in memory.
    suffix : str
        Its suffix, for the message; ``""`` if it has none.
    """
    for option in source_options():
        is_taken = option.is_general or (entry is not None and option in entry.options)
        if option.name in given and not is_taken:
            taking = [other.suffixes for other in FORMATS if option in other.options]
            of = " ".join(dict.fromkeys(chain.from_iterable(taking))) or "raw files"
            raise SourceError(
                f"{location}: ",
                Option(option.name),
                f" is for {of}, not for {suffix or 'this'}; leave it out",
            )
