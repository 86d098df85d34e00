"""The formats that can be read: a line each, with the options that a format takes.

`open_source`, the command line and its help are made from `FORMATS`, so that a new format is its
file, its line here and its test. A line names its opener as text, and the opener is imported when
the first file of that format is opened: zarr, pyarrow and h5py take longer to import than a
mistyped path may take to be refused, and the last two need not be installed. For that reason an
option is declared here and not beside its opener.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from streamkm.errors import Option, SourceError
from streamkm.sources.base import DTYPES
from streamkm.sources.flat import BIN_DTYPES
from streamkm.sources.vecs import VECS_DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from streamkm.sources.base import Source

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
    "refuse_strange",
    "source_options",
    "suffixes",
]

DtypeLike = str | np.dtype[np.generic] | type[np.generic]


class SourceOptions(TypedDict, total=False):
    """Keywords of `open_source`, for type checkers; None says nothing."""

    dtype: DtypeLike | None
    """Element type of a raw file: a key of `DTYPES`, or anything NumPy takes, byte order included.
    ``"bfloat16"`` also reads arrays stored as uint16. Any other array must have this type."""
    n_features: int | None
    """Features of a raw file. Any other array must have as many."""
    offset: int | None
    """Bytes before the first row of a raw file; 0 by default."""
    columns: Sequence[str] | None
    """Of a Parquet file: a column of lists, or columns of numbers in the order of the features. By
    default the only column of lists, or all."""
    dataset: str | None
    """Of an HDF5 file: which dataset, such as ``obsm/X_pca``. By default the only one of numbers in
    two or more dimensions."""


def _as_given(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class SourceOption:
    """What has to be said of a file that does not say it itself."""

    name: str
    """Its keyword in Python. The command line calls it the same, see `streamkm.errors.Option`."""
    help: str
    parse: Callable[[str], Any] = str
    """From the text of an option of the command line to a value."""
    checked: Callable[[Any], Any] = _as_given
    """From a value to the opener's argument; raises `SourceError` for one that will not do."""
    default: Any = None
    """To give this value is to say nothing."""
    metavar: str | None = None
    is_repeatable: bool = False
    """Whether the command line takes it several times, for a list."""
    is_needed: bool = False
    """Whether a file of the format cannot be opened without it."""
    is_general: bool = False
    """Whether it may be said of other formats too, where it must agree with the array."""
    heading: str = "files of several arrays"
    """What it stands under in the help."""

    @property
    def flag(self) -> str:
        """What the command line calls it."""
        return Option(self.name).flag


@dataclass(frozen=True, slots=True)
class Format:
    """One line of `FORMATS`."""

    name: str
    """As errors call an array of it."""
    home: str
    """``module:function`` of its opener, which takes the path, `options` by keyword, and
    ``keep_open`` if `keeps_open`."""
    suffixes: tuple[str, ...]
    """What its files and folders end in, in lower case."""
    options: tuple[SourceOption, ...] = ()
    extra: str | None = None
    """The extra of streamkm that brings the package it needs, if streamkm itself does not."""
    keeps_open: bool = True
    """Whether its source holds a file open, unless it is told not to."""
    markers: tuple[str, ...] = ()
    """For a format whose arrays are folders: the folder of an array, or of a group of arrays, holds
    one of these files."""
    members: str | None = None
    """``module:function`` that says, as a phrase, which arrays such a folder holds."""

    def open(self, location: Path | str, given: Mapping[str, Any], *, keep_open: bool) -> Source:
        """The source at `location`, which `given` is known to suit."""
        arguments = {o.name: given[o.name] for o in self.options if o.name in given}
        if self.keeps_open:
            arguments["keep_open"] = keep_open
        try:
            opener = pkgutil.resolve_name(self.home)
        except ModuleNotFoundError as error:
            if self.extra is None:
                raise
            raise SourceError(
                f"{location}: reading it needs {error.name}, which is not installed; "
                f"install streamkm[{self.extra}]"
            ) from error
        source: Source = opener(location, **arguments)
        return source

    def holds(self, folder: Path) -> bool:
        """Whether `folder` is an array of this format, or a group of them."""
        return any((folder / name).is_file() for name in self.markers)

    def members_of(self, folder: Path) -> str:
        """What to open in `folder`, as a phrase after a semicolon; nothing if it cannot tell."""
        if self.members is None:
            return ""
        return f"; of {folder}: {pkgutil.resolve_name(self.members)(folder)}"


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


_DTYPE = SourceOption(
    "dtype",
    "element type, such as float16, bfloat16 or >f4",
    checked=_dtype,
    is_needed=True,
    is_general=True,
    heading="raw files",
)
_N_FEATURES = SourceOption(
    "n_features",
    "features of a row",
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
    "of Parquet: a column of lists, or one of numbers; repeat it for each feature "
    "(default: the only column of lists, or all)",
    checked=_columns,
    metavar="NAME",
    is_repeatable=True,
)
_DATASET = SourceOption(
    "dataset", "of HDF5, such as obsm/X_pca (default: the only one)", metavar="NAME"
)


# ---- the table ---------------------------------------------------------------

#: Files of any other suffix, if their options are given.
RAW = Format("raw", "streamkm.sources.flat:open_raw", (), (_DTYPE, _N_FEATURES, _OFFSET))

#: Every format; a file is of the first that has its suffix.
FORMATS: tuple[Format, ...] = (
    RAW,
    Format("NumPy", "streamkm.sources.npy:open_npy", (".npy",)),
    Format(
        "Zarr",
        "streamkm.sources.zarr:open_zarr",
        (".zarr",),
        keeps_open=False,
        markers=("zarr.json", ".zarray", ".zgroup"),
        members="streamkm.sources.zarr:array_names",
    ),
    Format(
        "Parquet",
        "streamkm.sources.parquet:ParquetSource",
        (".parquet",),
        (_COLUMNS,),
        extra="parquet",
        keeps_open=False,
    ),
    Format("bin", "streamkm.sources.flat:open_bin", tuple(BIN_DTYPES)),
    Format("vecs", "streamkm.sources.vecs:VecsSource", tuple(VECS_DTYPES)),
    Format(
        "HDF5",
        "streamkm.sources.hdf5:open_hdf5",
        (".h5", ".hdf5", ".h5ad"),
        (_DATASET,),
        extra="hdf5",
    ),
)

#: What lies behind an address (``s3://``, ``https://``), whatever its suffix.
ADDRESSES = Format(
    "Zarr", "streamkm.sources.zarr:open_remote", (".zarr",), extra="s3", keeps_open=False
)


# ---- questions to the table --------------------------------------------------


def suffixes() -> tuple[str, ...]:
    """Suffixes of files and folders that say themselves what they hold."""
    return tuple(suffix for entry in FORMATS for suffix in entry.suffixes)


def format_of(suffix: str) -> Format:
    """The format of files that end in `suffix`; `RAW` if it is no other's."""
    return next((entry for entry in FORMATS if suffix in entry.suffixes), RAW)


def folder_formats() -> list[Format]:
    """Formats whose arrays are folders."""
    return [entry for entry in FORMATS if entry.markers]


def folder_format(folder: Path) -> Format | None:
    """The format of the array that `folder` is; None if it is just a folder."""
    return next((entry for entry in folder_formats() if entry.holds(folder)), None)


def source_options() -> list[SourceOption]:
    """Every option of a format, once."""
    return list(dict.fromkeys(option for entry in FORMATS for option in entry.options))


def given_options(said: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `said` that say something, as openers take them.

    Raises
    ------
    SourceError
        If a value will not do.
    TypeError
        If no format has an option of that name.
    """
    known = {option.name: option for option in source_options()}
    strange = said.keys() - known
    if strange:
        raise TypeError(
            f"open_source() got an unexpected keyword argument {min(strange)!r}; there are "
            f"{', '.join(known)}"
        )
    given = {name: known[name].checked(value) for name, value in said.items() if value is not None}
    # (Nothing is compared with None, for which NumPy takes float64.)
    defaults = {
        name: option.default for name, option in known.items() if option.default is not None
    }
    return {
        name: value
        for name, value in given.items()
        if name not in defaults or value != defaults[name]
    }


def refuse_strange(
    location: object, given: Mapping[str, Any], entry: Format | None, kind: str
) -> None:
    """Raise `SourceError` if something is said of `location` that its format does not take.

    Parameters
    ----------
    location : object
        As errors name it.
    given : mapping
        Options by name.
    entry : Format or None
        Its format; None if it is no file but an array.
    kind : str
        Its suffix, for the message; ``""`` if it has none.
    """
    for option in source_options():
        is_taken = option.is_general or (entry is not None and option in entry.options)
        if option.name in given and not is_taken:
            taking = [other.suffixes for other in FORMATS if option in other.options]
            of = " ".join(chain.from_iterable(taking)) or "raw files"
            raise SourceError(
                f"{location}: ",
                Option(option.name),
                f" is for {of}, not for {kind or 'this'}; leave it out",
            )
