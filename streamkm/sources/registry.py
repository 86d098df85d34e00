"""Opens the source at a location: a path, an address, or an array that is already open.

A path names a file, the folder of an array, or shards: all entries of a folder, all names that a
pattern fits, or the lines of a list (`streamkm.sources.places` finds them). The table in
`streamkm.sources.formats` says which format a file has and which options its opener takes. No
format is named here, except Zarr for arrays that the caller has opened.
"""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from streamkm.errors import NoRowsError, Option, SourceError
from streamkm.files import expanded
from streamkm.sources.base import Source, check_dtype
from streamkm.sources.bfloat16 import Bfloat16Source
from streamkm.sources.chosen import choose
from streamkm.sources.concat import ConcatSource
from streamkm.sources.decoded import Decoding, decoded_alike, honoured
from streamkm.sources.formats import (
    ADDRESSES,
    FORMATS,
    RAW,
    folder_format,
    folder_formats,
    format_of,
    given_options,
    imported,
    refuse_foreign_options,
    suffixes,
)
from streamkm.sources.lazy import is_lazy, open_lazy
from streamkm.sources.memory import MemorySource
from streamkm.sources.names import shown
from streamkm.sources.options import OF_ALL
from streamkm.sources.places import (
    absent,
    hive_shards,
    is_address,
    is_partition,
    is_path_list,
    is_prefix,
    is_run,
    list_file,
    listed_paths,
    matches,
    natural,
    nested_advice,
    order_notes,
    python_list,
    unread,
)
from streamkm.sources.sparse import CsrInMemory, CsrSource
from streamkm.sources.within import folder_takes, pattern_takes, tree_takes
from streamkm.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streamkm.sources.objects import Below
    from streamkm.sources.options import SourceOptions
    from streamkm.sources.places import Listed
    from streamkm.sources.rowfile import Stored

    #: The options that were given, by name.
    Given = Mapping[str, Any]

__all__ = ["open_source"]

#: Suffixes of files that people have, but that are not read; what to do instead.
REMEDIES = dict.fromkeys(
    (".csv", ".tsv", ".txt", ".json", ".jsonl"),
    "text is not streamed; convert it to Parquet (pandas.read_csv(...).to_parquet(...)) or .npy",
) | dict.fromkeys(
    (".pkl", ".pickle", ".joblib", ".pt", ".pth"),
    "nothing is unpickled; save the array by numpy.save or safetensors",
)

#: Shards that are held open, at most, and never more than a quarter of the process's descriptors.
#: If there are more shards, none is held open: each read opens its file anew.
MAX_OPEN_SHARDS = 256


def open_source(location: Any, **options: Unpack[SourceOptions]) -> Source:
    """Open an array of rows, wherever it lies.

    Parameters
    ----------
    location : path, list of paths, ndarray, sparse matrix, zarr.Array, lazy array or Source
        A path, a glob or a folder of shards, a list of paths, the address of a Zarr array
        (``s3://``, ``gs://``, ``https://``), or an array in memory. A sparse matrix of scipy is
        read as CSR, and each row is made dense where it is read. A dataset of h5py, an array of
        dask or xarray, and the X of a backed AnnData are streamed, never loaded as a whole. A
        path names a file whose suffix is that of a known format, the folder of a Zarr array, or
        any other file if `dtype` and `n_features` are given. Shards are read as one array along
        rows, in natural order of their names (``part-2`` before ``part-10``). ``@files.txt`` names
        a text file with one path a line; it and a list of paths keep their own order. A Source is
        returned as it is.
    **options : SourceOptions
        What the location does not say of itself. ``dtype``, ``n_features`` and ``offset`` describe
        a raw file; ``columns`` chooses from a Parquet file, and ``dataset`` and ``variable`` from
        an HDF5 file or a Zarr group. ``feature_dim`` says which axes of theirs are features,
        ``nodata``, ``fill_is_nan`` and ``apply_scale`` what stored values mean.
        ``row_range``, ``sample`` and ``sample_seed`` choose some rows of any source.
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
    chosen = {option.name: given.pop(option.name, None) for option in OF_ALL}
    if is_path_list(location):
        paths = [os.fspath(path) for path in location]
        name = f"list of {counted(len(paths), 'path')} ({paths[0]}{', ...' * (len(paths) > 1)})"
        source = _open_list(python_list(location), name, given)
    elif (file := list_file(location)) is not None:
        source = _open_list(listed_paths(file), f"@{file}", given)
    elif is_address(location):
        source = _open_address(location, given)
    elif isinstance(location, str | os.PathLike):
        source = _open_path(expanded(location), given)
    else:
        source = _open_object(location, given)
    return choose(_reconciled(source, given), **chosen)


def _reconciled(source: Source, given: Given) -> Source:
    """`source` with the element type that is given; `SourceError` if it contradicts an option."""
    spec = source.spec
    wanted = check_dtype(given["dtype"], source.name) if "dtype" in given else None
    if wanted == "bfloat16" and spec.dtype == "uint16":
        source = Bfloat16Source(source)
    elif wanted == "bfloat16" and spec.is_decoded and spec.dtype != wanted:
        source.close()
        raise SourceError(
            f"{source.name}: ",
            Option("dtype", wanted),
            " reads numbers as they are stored, and some are decoded here (no data, or a scale); "
            "write the array as float32",
        )
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


def _open_object(location: Any, given: Given) -> Source:
    """Source of an array in memory or an open Zarr array."""
    nodata = given.get("nodata", ())
    source = MemorySource(location) if isinstance(location, np.ndarray) else location
    if isinstance(source, Source):
        refuse_foreign_options(source.name, given, None, "")
        return honoured(source, nodata)
    # The caller who has a Zarr array has imported zarr: it need not be imported to find out.
    zarr = sys.modules.get("zarr")
    if zarr is not None and isinstance(location, zarr.Array | zarr.Group):
        from streamkm.sources.zarr import open_zarr_node

        refuse_foreign_options("an open Zarr array", given, format_of(".zarr"), "")
        how = Decoding(nodata, given.get("fill_is_nan", False), given.get("apply_scale", False))
        chosen = ("dataset", "variable", "feature_dim")
        return open_zarr_node(
            location, **{name: given[name] for name in chosen if name in given}, how=how
        )
    # Likewise scipy, which need not be installed for anything else here.
    scipy_sparse = sys.modules.get("scipy.sparse")
    if scipy_sparse is not None and scipy_sparse.issparse(location):
        refuse_foreign_options("a sparse matrix", given, None, "")
        matrix = location.tocsr()
        return honoured(CsrSource(CsrInMemory(matrix), matrix.shape, "in memory"), nodata)
    if is_lazy(location):
        return open_lazy(location, given)
    if isinstance(location, list | tuple) and not location:
        raise SourceError("a list of paths must name at least one, this one is empty")
    raise SourceError(
        "a source is a path, a list of paths, a NumPy array, a Zarr array, a sparse matrix or "
        "a Source, "
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
        found = matches(path)
        if not found:
            raise SourceError(f"{path}: no file matches this pattern")
        return _open_shards(found, str(path), given, takes=partial(pattern_takes, path))
    raise SourceError(absent(path))


def _open_address(url: str, given: Given, *, keep_open: bool = True) -> Source:
    """Source of what lies at an address: an object, objects below a prefix, or a Zarr array."""
    entry = format_of(Path(url).suffix.lower())
    if is_prefix(url):
        found = imported("streamkm.sources.objects:found_below", url, ADDRESSES.extra)(url)
        names = {each.key.rpartition("/")[2] for each in found.objects} if found else set()
        markers = {name for each in folder_formats() for name in each.markers}
        if found is not None and not names & markers:
            return _open_objects(found, url, given)
    elif entry.reads_objects:
        stored = imported("streamkm.sources.objects:stored_object", url, ADDRESSES.extra)(url)
        return _open_stored(stored, given, keep_open=keep_open)
    refuse_foreign_options(url, given, ADDRESSES, ".zarr")
    return ADDRESSES.open(url, given, keep_open=keep_open)


def _open_objects(found: Below, url: str, given: Given) -> Source:
    """Source of the objects below a prefix, or that a pattern names, in natural order."""
    known = tuple(suffix for each in FORMATS if each.reads_objects for suffix in each.suffixes)
    shards: list[Stored] = [each for each in found.objects if each.suffix.lower() in known]
    if not shards:
        advice = f"; for those in its folders give a pattern, such as '{url}**/*.npy'"
        raise SourceError(
            f"{url}: there is no object below this address that ends in {' '.join(known)}"
            f"{advice * bool(found.folders)}"
        )
    kinds = {each.suffix.lower(): each for each in reversed(shards)}
    if len(kinds) > 1:
        one, other = list(kinds.values())[:2]
        raise SourceError(
            f"{url}: shards must be of one kind, {other} and {one} differ; choose with a pattern, "
            f"such as '{url.rpartition('/')[0]}/*{shards[0].suffix}'"
        )
    n_others = len(found.objects) - len(shards)
    remarks: tuple[str, ...] = ()
    if n_others:
        remarks = (f"{url}: {counted(n_others, 'other object')} not read",)
    if found.folders:
        are = f"{counted(len(found.folders), 'folder')} below it not read: {shown(found.folders)}"
        remarks += (f"{url}: {are}",)
    return _open_shards(natural(shards), url, given, remarks=remarks)


def _open_stored(stored: Stored, given: Given, *, keep_open: bool) -> Source:
    """Source of one object behind an address."""
    entry = format_of(stored.suffix.lower())
    refuse_foreign_options(stored, given, entry, stored.suffix.lower())
    return entry.open(stored, given, keep_open=keep_open)


def _open_list(listed: Sequence[Listed], name: str, given: Given) -> Source:
    """Source of the files of a list, in its order."""
    paths: list[str | Path] = []
    for where, location in listed:
        if is_address(location):
            paths.append(location)
            continue
        paths.append(path := expanded(location))
        if not path.exists():
            advice = "; write a pattern's files one by one" if glob.has_magic(location) else ""
            raise SourceError(f"{where}: {absent(path)}{advice}")
    twice = [str(path) for path, times in Counter(paths).items() if times > 1]
    remarks: tuple[str, ...] = ()
    if twice:
        times = f"{counted(len(twice), 'path')} in it more than once, whose rows count as often"
        remarks = (f"{name}: {times}: {twice[0]}",)
    return _open_shards(paths, name, given, remarks=remarks, by_name=False)


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
        if suffix in REMEDIES:
            raise SourceError(f"{path}: {REMEDIES[suffix]}")
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
    if is_run(folder):
        raise SourceError(
            f"{folder}: is a run folder, which holds results; name the array that was clustered"
        )
    entries = [entry for entry in folder.iterdir() if entry.name[0] not in "._"]
    known = suffixes()
    shards = [entry for entry in entries if entry.suffix.lower() in known or folder_format(entry)]
    remarks: list[str] = []
    takes = partial(folder_takes, folder, known)
    if _describes_raw(given) and not shards:
        shards = [entry for entry in entries if entry.is_file()]
    others = list(set(entries).difference(shards))
    if not shards and any(is_partition(entry) for entry in entries):
        shards, others, keys = hive_shards(folder)
        takes = partial(tree_takes, folder, known)
        remarks.append(
            f"{folder}: the names of its folders give {', '.join(keys)}: these are no features"
        )
    if not shards:
        advice = nested_advice(folder) or f"shards end in {' '.join(known)}, for raw shards give "
        raw = [] if advice[-1] == "'" else _raw_options()
        raise SourceError(f"{folder}: is a folder without an array; {advice}", *raw)
    shards = natural(shards)
    kinds = {_kind(shard): shard for shard in reversed(shards)}
    if len(kinds) > 1:
        one, other = list(kinds.values())[:2]
        raise SourceError(
            f"{folder}: shards must be of one kind, {other.name} and {one.name} differ; "
            f"choose with a pattern, such as '{folder}/*{shards[0].suffix}'"
        )
    if others:
        are = "are" if len(others) > 1 else "is"
        n_others = counted(len(others), "other entry")
        remarks.append(f"{folder}: {n_others} {are} not read: {unread(others)}")
    return _open_shards(shards, str(folder), given, takes=takes, remarks=tuple(remarks))


def _kind(shard: Path) -> str:
    """What the shards of one folder must have in common: their suffix, or their folder's format."""
    entry = folder_format(shard)
    return entry.suffixes[0] if entry else shard.suffix.lower()


def _open_shards(
    locations: Sequence[str | Path | Stored],
    name: str,
    given: Given,
    *,
    takes: Callable[[Path], bool] | None = None,
    remarks: tuple[str, ...] = (),
    by_name: bool = True,
) -> Source:
    """One source of shards in their order, without those that hold no rows.

    `locations` are paths, addresses as text, or objects. With `by_name` they are in the natural
    order of their names, not in one that the user chose. See `ConcatSource` for the rest.
    """
    limit = os.sysconf("SC_OPEN_MAX")
    most = min(MAX_OPEN_SHARDS, limit // 4) if limit > 0 else MAX_OPEN_SHARDS
    keep_open = len(locations) <= most
    parts: list[Source] = []
    empty: list[tuple[int, str]] = []
    try:
        for location in locations:
            try:
                if isinstance(location, str):
                    parts.append(_open_address(location, given, keep_open=keep_open))
                elif isinstance(location, Path):
                    parts.append(_open_one(location, given, keep_open=keep_open))
                else:
                    parts.append(_open_stored(location, given, keep_open=keep_open))
            except NoRowsError:
                empty.append((len(parts), str(location)))
        if empty:
            are = "hold" if len(empty) > 1 else "holds"
            named = shown([each for _, each in empty])
            remarks += (f"{name}: {counted(len(empty), 'shard')} {are} no rows: {named}",)
        if not parts:
            raise NoRowsError(f"{name}: all {counted(len(empty), 'shard')} hold no rows")
        if by_name:
            remarks += order_notes(name, [part.name for part in parts])
        parts = decoded_alike(parts)
        return ConcatSource(parts, name, remarks=remarks, takes=takes, empty=empty)
    except SourceError:
        for part in parts:
            part.close()
        raise
