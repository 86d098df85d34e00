"""The table of formats: one line for each that can be read, with its options.

`open_source`, the command line and its help read `FORMATS`, so that a new format is its file, its
line here and its test. A line names the opener as text, and the first file of the format imports
it: a mistyped path must not wait for zarr, pyarrow or h5py, and the last two need not be installed.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from streamkm.errors import Option, SourceError
from streamkm.sources.base import check_dtype
from streamkm.sources.bfloat16 import Bfloat16Source
from streamkm.sources.decoded import honoured
from streamkm.sources.flat import BIN_DTYPES
from streamkm.sources.options import (
    COLUMNS,
    DATASET,
    DTYPE,
    ID_COLUMN,
    N_FEATURES,
    NODATA,
    OF_ALL,
    OF_GROUPS,
    OFFSET,
)
from streamkm.sources.vecs import VECS_DTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from streamkm.sources.base import Source
    from streamkm.sources.options import SourceOption
    from streamkm.sources.rowfile import Stored

__all__ = [
    "ADDRESSES",
    "FORMATS",
    "RAW",
    "Format",
    "folder_format",
    "folder_formats",
    "format_of",
    "given_options",
    "imported",
    "refuse_foreign_options",
    "source_options",
    "suffixes",
]


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
        if NODATA in self.options:
            return source
        nodata, fill = given.get("nodata", ()), given.get("fill_is_nan", False)
        # Values are compared as numbers, not as the bits that an array of uint16 holds.
        has_values = nodata or not isinstance(fill, bool)
        is_bits = has_values and "dtype" in given and source.spec.dtype == "uint16"
        if is_bits and check_dtype(given["dtype"], source.name) == "bfloat16":
            source = Bfloat16Source(source)
        return honoured(source, nodata, fill)

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


# ---- the table ---------------------------------------------------------------

#: Files of any suffix that no other format has, if the options that it needs are given.
RAW = Format("raw", "streamkm.sources.flat:open_raw", (), (DTYPE, N_FEATURES, OFFSET))

#: All formats; a file belongs to the first that has its suffix.
FORMATS: tuple[Format, ...] = (
    RAW,
    Format("NumPy", "streamkm.sources.npy:open_npy", (".npy",), reads_objects=True),
    Format(
        "Zarr",
        "streamkm.sources.zarr:open_zarr",
        (".zarr",),
        OF_GROUPS,
        keeps_open=False,
        markers=("zarr.json", ".zarray", ".zgroup"),
        members="streamkm.sources.zarr:array_names",
    ),
    Format(
        "Parquet",
        "streamkm.sources.parquet:ParquetSource",
        (".parquet",),
        (COLUMNS, ID_COLUMN),
        extra="parquet",
        reads_objects=True,
        keeps_open=False,
    ),
    Format(
        "Arrow",
        "streamkm.sources.arrow:ArrowSource",
        (".arrow", ".arrows", ".feather"),
        (COLUMNS, ID_COLUMN),
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
        OF_GROUPS,
        extra="hdf5",
    ),
    Format(
        "zipped Zarr",
        "streamkm.sources.zarr:open_zip",
        (".zip",),
        OF_GROUPS,
        keeps_open=False,
    ),
    Format("npz", "streamkm.sources.npz:open_npz", (".npz",), (DATASET,), reads_objects=True),
    Format(
        "safetensors",
        "streamkm.sources.safetensors:open_safetensors",
        (".safetensors",),
        (DATASET,),
        reads_objects=True,
    ),
)

#: The format of every address (``s3://``, ``https://``), whatever its suffix.
ADDRESSES = Format(
    "Zarr",
    "streamkm.sources.zarr:open_remote",
    (".zarr",),
    OF_GROUPS,
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
    """The options of all formats, each once, and those of every source."""
    of_formats = (option for entry in FORMATS for option in entry.options)
    return list(dict.fromkeys((*of_formats, *OF_ALL)))


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
