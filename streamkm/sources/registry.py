"""Opens the source at a location: a path, an address, or an array that is already open.

A path names a file, the folder of an array, or shards: all entries of a folder, or all names that a
pattern fits. The table in `streamkm.sources.formats` says which format a file has and which options
its opener takes. No format is named here, except Zarr for arrays that the caller has opened.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from streamkm.errors import Option, SourceError
from streamkm.files import expanded
from streamkm.sources.base import Source, check_dtype
from streamkm.sources.bfloat16 import Bfloat16Source
from streamkm.sources.concat import ConcatSource
from streamkm.sources.formats import (
    ADDRESSES,
    RAW,
    SourceOptions,
    folder_format,
    folder_formats,
    format_of,
    given_options,
    refuse_foreign_options,
    suffixes,
)
from streamkm.sources.memory import MemorySource
from streamkm.sources.sparse import CsrInMemory, CsrSource
from streamkm.sources.within import folder_takes, pattern_takes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    #: The options that were given, by name.
    Given = Mapping[str, Any]

__all__ = ["open_source"]

#: Shards that are held open, at most, and never more than a quarter of the process's descriptors.
#: If there are more shards, none is held open: each read opens its file anew.
MAX_OPEN_SHARDS = 256


def open_source(location: Any, **options: Unpack[SourceOptions]) -> Source:
    """Open an array of rows, wherever it lies.

    Parameters
    ----------
    location : str, Path, ndarray, sparse matrix, zarr.Array or Source
        A path, a glob or a folder of shards, the address of a Zarr array (``s3://``, ``gs://``,
        ``https://``), or an array in memory. A sparse matrix of scipy is read as CSR, and each row
        is made dense where it is read. A path names a file whose suffix is that of a known
        format, the folder of a Zarr array, or any other file if `dtype` and `n_features` are
        given. Shards are read as one array along rows, in natural order of their names
        (``part-2`` before ``part-10``). A Source is returned as it is.
    **options : SourceOptions
        What the location does not say of itself. ``dtype``, ``n_features`` and ``offset`` describe
        a raw file; ``columns`` chooses from a Parquet file, and ``dataset`` from an HDF5 file.
        ``dtype`` and ``n_features`` must agree with any other array, except that
        ``dtype="bfloat16"`` also reads arrays stored as uint16.

    Returns
    -------
    Source
        The array, to be closed after use. It has ``spec`` (shape, element type and layout),
        ``read``, ``fingerprint``, ``notes`` and ``close``.

    Raises
    ------
    SourceError
        If the location does not exist, or holds no array of numbers in two or more dimensions, or
        if its format does not take one of `options`, or its array contradicts one.
    TypeError
        If no format has an option of that name.

    Examples
    --------
    >>> import numpy as np
    >>> from streamkm import open_source
    >>> source = open_source(np.zeros((3, 2), np.float32))
    >>> source.spec.n_rows, source.spec.n_features, source.spec.dtype
    (3, 2, 'float32')
    >>> source.close()
    """
    given = given_options(options)
    if isinstance(location, str) and "://" in location:
        refuse_foreign_options(location, given, ADDRESSES, ".zarr")
        source = ADDRESSES.open(location, given, keep_open=True)
    elif isinstance(location, str | os.PathLike):
        source = _open_path(expanded(location), given)
    else:
        source = _open_object(location)
        refuse_foreign_options(source.name, given, None, "")
    return _reconciled(source, given)


def _reconciled(source: Source, given: Given) -> Source:
    """`source` with the element type that is given; `SourceError` if it contradicts an option."""
    spec = source.spec
    wanted = check_dtype(given["dtype"], source.name) if "dtype" in given else None
    if wanted == "bfloat16" and spec.dtype == "uint16":
        source = Bfloat16Source(source)
    elif wanted is not None and wanted != spec.dtype:
        source.close()
        raise SourceError(
            f"{source.name}: ",
            Option("dtype", wanted),
            f" was given, the array holds {spec.dtype}; leave it out",
        )
    n_features = given.get("n_features", spec.n_features)
    if n_features != spec.n_features:
        source.close()
        raise SourceError(
            f"{source.name}: ",
            Option("n_features", n_features),
            f" was given, the array has {spec.n_features}; leave it out",
        )
    return source


def _open_object(location: Any) -> Source:
    """Source of an array in memory or an open Zarr array."""
    if isinstance(location, np.ndarray):
        return MemorySource(location)
    if isinstance(location, Source):
        return location
    # The caller who has a Zarr array has imported zarr: it need not be imported to find out.
    zarr = sys.modules.get("zarr")
    if zarr is not None and isinstance(location, zarr.Array | zarr.Group):
        from streamkm.sources.zarr import open_zarr_node

        return open_zarr_node(location)
    # Likewise scipy, which need not be installed for anything else here.
    scipy_sparse = sys.modules.get("scipy.sparse")
    if scipy_sparse is not None and scipy_sparse.issparse(location):
        matrix = location.tocsr()
        return CsrSource(CsrInMemory(matrix), matrix.shape, "in memory")
    raise SourceError(
        "a source is a path, a NumPy array, a Zarr array, a sparse matrix or a Source, "
        f"not {type(location).__module__}.{type(location).__qualname__}"
    )


def _open_path(path: Path, given: Given) -> Source:
    """Source of a file, a folder or a pattern."""
    if path.is_dir():
        is_array = folder_format(path) or format_of(path.suffix.lower()) in folder_formats()
        return _open_one(path, given) if is_array else _open_folder(path, given)
    if path.exists():
        return _open_one(path, given)
    if glob.has_magic(str(path)):
        found = _matches(path)
        if not found:
            raise SourceError(f"{path}: no file matches this pattern")
        return _open_shards(_natural(found), str(path), given, partial(pattern_takes, path))
    raise SourceError(_absent(path))


def _matches(pattern: Path) -> list[Path]:
    """The entries that `pattern` names, without hidden ones."""
    # Path.glob takes only relative patterns, glob.glob any.
    return [Path(name) for name in glob.glob(str(pattern), recursive=True)]  # noqa: PTH207


def _absent(path: Path) -> str:
    """Why nothing is at `path`, and the arrays that the folder above it holds instead."""
    for parent in path.parents:
        if parent.is_dir():
            entry = folder_format(parent)
            instead = entry.members_of(parent) if entry else ""
            instead = instead or f"; the folder {parent} does, check what follows"
            return f"{path}: does not exist{instead}"
    return f"{path}: does not exist"


def _open_one(path: Path, given: Given, *, keep_open: bool = True) -> Source:
    """Source of one file, or of one array's folder."""
    suffix = path.suffix.lower()
    if path.is_dir():
        entry = folder_format(path)
        if entry is None:
            raise SourceError(f"{path}: {_no_array(suffix)}")
        suffix = entry.suffixes[0]
    elif not path.is_file():
        raise SourceError(f"{path}: is no regular file, it cannot be read by position")
    else:
        entry = format_of(suffix)
        if entry.markers:
            raise SourceError(f"{path}: is a file, a {entry.name} array is a folder")
    refuse_foreign_options(path, given, entry, suffix)
    if entry is RAW and not _describes_raw(given):
        raise SourceError(
            f"{path}: unknown kind of file '{suffix}'; known are {' '.join(suffixes())}, "
            "for raw rows give ",
            *_raw_options(),
        )
    return entry.open(path, given, keep_open=keep_open)


def _no_array(suffix: str) -> str:
    """Why a folder with this suffix is no array."""
    entries = [entry for entry in folder_formats() if suffix in entry.suffixes] or folder_formats()
    markers = ", ".join(name for entry in entries for name in entry.markers)
    return f"is a folder without {markers}, so no {' or '.join(e.name for e in entries)} array"


def _describes_raw(given: Given) -> bool:
    """Whether all options are given that a raw file needs."""
    return all(option.name in given for option in RAW.options if option.is_needed)


def _raw_options() -> list[str | Option]:
    """The options that a raw file needs, as parts of a message."""
    needed = [Option(option.name) for option in RAW.options if option.is_needed]
    return [part for option in needed for part in (" and ", option)][1:]


def _open_folder(folder: Path, given: Given) -> Source:
    """Source of all shards in `folder`, which must be of one kind."""
    entries = [entry for entry in folder.iterdir() if entry.name[0] not in "._"]
    known = suffixes()
    shards = [entry for entry in entries if entry.suffix.lower() in known or folder_format(entry)]
    if _describes_raw(given) and not shards:
        shards = [entry for entry in entries if entry.is_file()]
    if not shards:
        raise SourceError(
            f"{folder}: is a folder without an array; shards end in {' '.join(known)}, "
            "for raw shards give ",
            *_raw_options(),
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
    takes = partial(folder_takes, folder, known)
    return _open_shards(shards, str(folder), given, takes, remarks)


def _kind(shard: Path) -> str:
    """What the shards of one folder must have in common: their suffix, or their folder's format."""
    entry = folder_format(shard)
    return entry.suffixes[0] if entry else shard.suffix.lower()


def _open_shards(
    paths: Sequence[Path],
    name: str,
    given: Given,
    takes: Callable[[Path], bool],
    remarks: tuple[str, ...] = (),
) -> Source:
    """One source of `paths` in their order; see `ConcatSource` for the other parameters."""
    limit = os.sysconf("SC_OPEN_MAX")
    keep_open = len(paths) <= (min(MAX_OPEN_SHARDS, limit // 4) if limit > 0 else MAX_OPEN_SHARDS)
    parts: list[Source] = []
    try:
        parts.extend(_open_one(path, given, keep_open=keep_open) for path in paths)
        return ConcatSource(parts, name, remarks=remarks, takes=takes)
    except SourceError:
        for part in parts:
            part.close()
        raise


def _natural(paths: Sequence[Path]) -> list[Path]:
    """Sort paths in natural order: runs of digits as numbers, the rest as text."""

    def key(path: Path) -> tuple[list[tuple[int, str]], str]:
        # Text and digits alternate, so that like is compared with like. The text decides a tie.
        runs = re.split(r"(\d+)", str(path))
        return [(int(r), "") if i % 2 else (0, r) for i, r in enumerate(runs)], str(path)

    return sorted(paths, key=key)
