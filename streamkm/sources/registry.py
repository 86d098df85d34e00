"""From a location to a source: the one place that knows which format is read by what."""

from __future__ import annotations

import glob
import os
import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.errors import Option, SourceError
from streamkm.sources.base import DTYPES, Source, check_dtype
from streamkm.sources.bfloat16 import Bfloat16Source
from streamkm.sources.concat import ConcatSource
from streamkm.sources.flat import BIN_DTYPES, open_bin, open_raw
from streamkm.sources.memory import MemorySource
from streamkm.sources.npy import open_npy
from streamkm.sources.vecs import VECS_DTYPES, VecsSource
from streamkm.sources.within import folder_takes, pattern_takes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["open_source"]

#: Of more shards than this, or than a quarter of the descriptors that a process may have, none
#: is held open.
MAX_OPEN_SHARDS = 256

HDF5_SUFFIXES = (".h5", ".hdf5", ".h5ad")

#: Suffixes whose files or folders say themselves what they hold.
SUFFIXES = (".npy", ".zarr", ".parquet", *BIN_DTYPES, *VECS_DTYPES, *HDF5_SUFFIXES)

#: What says how the rows of a raw file lie.
RAW_OPTIONS = (Option("dtype"), " and ", Option("n_features"))

_ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")


@dataclass(frozen=True, slots=True)
class _Options:
    """What the caller says of files that do not say it themselves."""

    dtype: str | np.dtype[np.generic] | None
    n_features: int | None
    offset: int
    columns: tuple[str, ...] | None = None
    dataset: str | None = None

    def refuse_strange(self, path: object, suffix: str) -> None:
        """`SourceError` if something is said of a file that is of another kind."""
        for name, given, kinds in (
            ("offset", self.offset, tuple(s for s in (suffix,) if s not in SUFFIXES)),
            ("columns", self.columns, (".parquet",)),
            ("dataset", self.dataset, HDF5_SUFFIXES),
        ):
            if given and suffix not in kinds:
                of = " ".join(kinds) or "raw files"
                raise SourceError(
                    f"{path}: ",
                    Option(name),
                    f" is for {of}, not for {suffix or 'this'}; leave it out",
                )


def open_source(
    location: Any,
    *,
    dtype: str | np.dtype[np.generic] | type[np.generic] | None = None,
    n_features: int | None = None,
    offset: int = 0,
    columns: Sequence[str] | None = None,
    dataset: str | None = None,
) -> Source:
    """Open an array of rows, wherever it lies.

    Parameters
    ----------
    location : str, Path, ndarray, zarr.Array or Source
        A path (``.npy``, a Zarr array's folder, ``.fbin`` ``.u8bin`` ``.i8bin``
        ``.fvecs`` ``.bvecs``, ``.parquet``, ``.h5`` ``.hdf5`` ``.h5ad``, any
        other file with `dtype` and `n_features`), a
        glob or a folder of shards, which are taken as one array along rows in
        natural order of their names (``part-2`` before ``part-10``), the
        address of a Zarr array (``s3://``, ``gs://``, ``https://``), or an
        array in memory. A Source is returned as it is.
    dtype : str or dtype, optional
        Element type of a raw file: a key of `DTYPES` or anything NumPy takes,
        byte order included. ``"bfloat16"`` also reads arrays stored as uint16.
        For a location that knows its type it must agree.
    n_features : int, optional
        Features of a raw file; elsewhere it must agree.
    offset : int
        Bytes before the first row of a raw file.
    columns : sequence of str, optional
        Of a Parquet file: a column of lists, or columns of numbers in the order
        of the features. By default the only column of lists, or all.
    dataset : str, optional
        Of an HDF5 file: which dataset, such as ``obsm/X_pca``. By default the
        only one of numbers in two or more dimensions.

    Returns
    -------
    Source
        Close it after use.

    Raises
    ------
    SourceError
        If there is no such location, or it holds no array of numbers in two or
        more dimensions, or the array contradicts `dtype` or `n_features`.
    """
    if n_features is not None and n_features < 1:
        raise SourceError(Option("n_features"), f" must be at least 1, got {n_features}")
    if offset < 0:
        raise SourceError(Option("offset"), f" must be at least 0 bytes, got {offset}")
    if isinstance(columns, str):
        columns = (columns,)
    options = _Options(
        _normal_dtype(dtype),
        n_features,
        offset,
        None if columns is None else tuple(columns),
        dataset,
    )
    if isinstance(location, str) and "://" in location:
        source = _open_address(location, options)
    elif isinstance(location, str | os.PathLike):
        source = _open_path(Path(location).expanduser(), options)
    else:
        source = _open_object(location)
    return _as_asked(source, options)


def _normal_dtype(
    dtype: str | np.dtype[np.generic] | type[np.generic] | None,
) -> str | np.dtype[np.generic] | None:
    if dtype is None or (isinstance(dtype, str) and dtype in DTYPES):
        return dtype
    try:
        return np.dtype(dtype)
    except TypeError:
        known = ", ".join(DTYPES)
        raise SourceError(Option("dtype"), f" must be one of {known}, not {dtype!r}") from None


def _as_asked(source: Source, options: _Options) -> Source:
    """`source`, if it agrees with what the caller says of it."""
    spec = source.spec
    wanted = None if options.dtype is None else check_dtype(options.dtype, source.name)
    if wanted == "bfloat16" and spec.dtype == "uint16":
        source = Bfloat16Source(source)
    elif wanted is not None and wanted != spec.dtype:
        source.close()
        raise SourceError(
            f"{source.name}: ",
            Option("dtype", wanted),
            f" was given, the array holds {spec.dtype}; leave it out",
        )
    if options.n_features not in (None, spec.n_features):
        source.close()
        raise SourceError(
            f"{source.name}: ",
            Option("n_features", options.n_features),
            f" was given, the array has {spec.n_features}; leave it out",
        )
    return source


def _open_object(location: Any) -> Source:
    """Source of something that is no path."""
    if isinstance(location, np.ndarray):
        return MemorySource(location)
    if isinstance(location, Source):
        return location
    # A Zarr array can only have come from a zarr that is imported already.
    zarr = sys.modules.get("zarr")
    if zarr is not None and isinstance(location, zarr.Array | zarr.Group):
        from streamkm.sources.zarr.source import open_zarr_node

        return open_zarr_node(location)
    raise SourceError(
        "a source is a path, a NumPy array, a Zarr array or a Source, "
        f"not {type(location).__module__}.{type(location).__qualname__}"
    )


def _open_address(url: str, options: _Options) -> Source:
    """Source of a Zarr array behind an address."""
    options.refuse_strange(url, ".zarr")
    with _needing("s3", url):
        from streamkm.sources.zarr.remote import open_remote
    return open_remote(url)


def _open_path(path: Path, options: _Options) -> Source:
    """Source of a file, a folder or a pattern."""
    if path.is_dir():
        if _is_zarr(path) or path.suffix.lower() == ".zarr":
            return _open_one(path, options)
        return _open_folder(path, options)
    if path.exists():
        return _open_one(path, options)
    if glob.has_magic(str(path)):
        found = _matches(path)
        if not found:
            raise SourceError(f"{path}: no file matches this pattern")
        return _open_shards(_natural(found), str(path), options, partial(pattern_takes, path))
    raise SourceError(_absent(path))


def _matches(pattern: Path) -> list[Path]:
    """Entries that `pattern` names, hidden ones left out."""
    # Path.glob takes no pattern of a path that starts anywhere, glob.glob does.
    return [Path(name) for name in glob.glob(str(pattern), recursive=True)]  # noqa: PTH207


def _absent(path: Path) -> str:
    """Why there is nothing at `path`: within a Zarr store, what there is instead."""
    for parent in path.parents:
        if parent.is_dir():
            if _is_zarr(parent):
                from streamkm.sources.zarr.source import array_names

                return f"{path}: does not exist; of {parent}: {array_names(parent)}"
            return f"{path}: does not exist; the folder {parent} does, check what follows"
    return f"{path}: does not exist"


def _is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in _ZARR_FILES)


def _open_one(path: Path, options: _Options, *, keep_open: bool = True) -> Source:
    """Source of one file, or of one Zarr array's folder."""
    suffix = path.suffix.lower()
    options.refuse_strange(path, ".zarr" if path.is_dir() else suffix)
    if path.is_dir():
        if not _is_zarr(path):
            raise SourceError(
                f"{path}: is a folder without {', '.join(_ZARR_FILES)}, so no Zarr array"
            )
        from streamkm.sources.zarr.source import open_zarr

        return open_zarr(path)
    if not path.is_file():
        raise SourceError(f"{path}: is no regular file, it cannot be read by position")
    if suffix == ".npy":
        return open_npy(path, keep_open=keep_open)
    if suffix in BIN_DTYPES:
        return open_bin(path, keep_open=keep_open)
    if suffix in VECS_DTYPES:
        return VecsSource(path, keep_open=keep_open)
    if suffix == ".parquet":
        with _needing("parquet", path):
            from streamkm.sources.parquet import ParquetSource
        return ParquetSource(path, columns=options.columns)
    if suffix in HDF5_SUFFIXES:
        with _needing("hdf5", path):
            from streamkm.sources.hdf5 import open_hdf5
        return open_hdf5(path, dataset=options.dataset, keep_open=keep_open)
    if suffix == ".zarr":
        raise SourceError(f"{path}: is a file, a Zarr array is a folder")
    if options.dtype is None or options.n_features is None:
        raise SourceError(
            f"{path}: unknown kind of file '{suffix}'; known are {' '.join(SUFFIXES)}, "
            "for raw rows give ",
            *RAW_OPTIONS,
        )
    return open_raw(
        path,
        dtype=options.dtype,
        n_features=options.n_features,
        offset=options.offset,
        keep_open=keep_open,
    )


@contextmanager
def _needing(extra: str, what: object) -> Iterator[None]:
    """Say which of streamkm's extras brings the package that an import did not find."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise SourceError(
            f"{what}: reading it needs {error.name}, which is not installed; "
            f"install streamkm[{extra}]"
        ) from error


def _open_folder(folder: Path, options: _Options) -> Source:
    """Source of all shards in `folder`: entries of one kind."""
    entries = [entry for entry in folder.iterdir() if entry.name[0] not in "._"]
    raw = options.dtype is not None and options.n_features is not None
    shards = [entry for entry in entries if entry.suffix.lower() in SUFFIXES or _is_zarr(entry)]
    if raw and not shards:
        shards = [entry for entry in entries if entry.is_file()]
    if not shards:
        raise SourceError(
            f"{folder}: is a folder without an array; shards end in {' '.join(SUFFIXES)}, "
            "for raw shards give ",
            *RAW_OPTIONS,
        )
    shards = _natural(shards)
    kinds = {_kind(shard): shard for shard in reversed(shards)}
    if len(kinds) > 1:
        one, other = list(kinds.values())[:2]
        raise SourceError(
            f"{folder}: shards must be of one kind, {other.name} and {one.name} differ; "
            f"choose with a pattern, such as '{folder}/*{shards[0].suffix}'"
        )
    left = sorted(entry.name for entry in set(entries).difference(shards))
    remarks: tuple[str, ...] = ()
    if left:
        shown = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        remarks = (f"{folder}: {len(left)} other entries are not read: {shown}",)
    takes = partial(folder_takes, folder, SUFFIXES)
    return _open_shards(shards, str(folder), options, takes, remarks)


def _kind(shard: Path) -> str:
    return ".zarr" if _is_zarr(shard) else shard.suffix.lower()


def _open_shards(
    paths: Sequence[Path],
    name: str,
    options: _Options,
    takes: Callable[[Path], bool],
    remarks: tuple[str, ...] = (),
) -> Source:
    """One source of several paths, in the order given; `takes` says what would be one more."""
    limit = os.sysconf("SC_OPEN_MAX")
    keep_open = len(paths) <= (min(MAX_OPEN_SHARDS, limit // 4) if limit > 0 else MAX_OPEN_SHARDS)
    parts: list[Source] = []
    try:
        parts.extend(_open_one(path, options, keep_open=keep_open) for path in paths)
        return ConcatSource(parts, name, remarks=remarks, takes=takes)
    except SourceError:
        for part in parts:
            part.close()
        raise


def _natural(paths: Sequence[Path]) -> list[Path]:
    """Paths in natural order: runs of digits compare as numbers, then everything as text."""

    def key(path: Path) -> tuple[list[tuple[int, str]], str]:
        # Splitting by a group alternates text and digits, so like is compared with like.
        pieces = re.split(r"(\d+)", str(path))
        return [(int(p), "") if i % 2 else (0, p) for i, p in enumerate(pieces)], str(path)

    return sorted(paths, key=key)
