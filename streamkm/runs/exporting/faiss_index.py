"""Writes an inverted file index of faiss: a list of rows for each centroid.

faiss makes the index and writes it, so that it is whatever faiss reads. It is told which list a row
is in, and trains and assigns nothing. Lists are filled one after the other, each at its final
length, because lists that grow are moved.

Rows are compared as they are: by squared Euclidean distance, or as unit vectors by their inner
product if the metric is cosine. Features that the run has scaled are refused. An index that scales
its queries (IndexPreTransform) was rejected: its distances would be of no space that the user has.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from streamkm.errors import ConfigError
from streamkm.files import OutputFile, discard, fsync_file, rename_durably
from streamkm.kernels import normalized
from streamkm.runs.exporting.export import lists_path
from streamkm.text import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamkm.runs.exporting.export import Export, GroupedRows
    from streamkm.runs.storage.model import Model

__all__ = ["write_faiss"]

#: Ways of scaling that change which rows are near: not those that an index compares.
_SCALED = ("zscore", "minmax")
#: Bytes of the number of a row in a list.
_NUMBER_BYTES = 8


def write_faiss(what: Export) -> None:
    """Write an IndexIVFFlat; see `streamkm.runs.exporting.export.export`.

    Raises
    ------
    ConfigError
        If the run scales its features.
    OSError
        If faiss cannot write the index, or the lists.
    """
    import faiss

    model, out = what.model, what.out
    scale = model.settings["scale"]
    if scale in _SCALED:
        raise ConfigError(
            f"an index compares rows as they are, and the run scales their features: --scale "
            f"{scale}; scale the rows themselves, and fit without --scale"
        )
    by_product = model.settings["metric"] == "cosine"
    centroids_KD = np.ascontiguousarray(model.centroids, np.float32)
    quantizer = faiss.IndexFlatIP if by_product else faiss.IndexFlatL2
    coarse = quantizer(model.n_features)
    coarse.add(centroids_KD)
    metric = faiss.METRIC_INNER_PRODUCT if by_product else faiss.METRIC_L2
    index = faiss.IndexIVFFlat(coarse, model.n_features, model.k, metric)
    index.is_trained = True
    if model.scaling.normalize:
        what.progress.say("note: rows are divided by their lengths; queries must be, too")
    unfinished, lists = out.with_name(f"{out.name}.partial"), lists_path(out)
    mapped = lists.with_name(f"{lists.name}.partial")
    stored: Any = None
    try:
        with _as_os_error():
            if what.rows is not None:
                sizes_K = np.diff(what.rows.offsets).tolist()
                entry_bytes = index.code_size + _NUMBER_BYTES
                if what.on_disk:
                    stored = _lists_on_disk(mapped, sizes_K, index.code_size)
                    index.replace_invlists(stored, False)  # noqa: FBT003  # faiss takes no keywords
                else:
                    n_bytes = what.rows.n_rows * entry_bytes
                    what.progress.say(f"the lists take {format_bytes(n_bytes)} of memory")
                    for cluster, size in enumerate(sizes_K):
                        index.invlists.resize(cluster, size)
                _fill(index, what.rows, model, what)
                if stored is not None:  # As it will be called.
                    stored.filename = str(lists.resolve())
            faiss.write_index(index, str(unfinished))
        if stored is not None:
            _publish(mapped, lists)
        _publish(unfinished, out)
    except BaseException:
        discard(unfinished, mapped)
        raise


def _lists_on_disk(path: Path, sizes_K: list[int], code_size: int) -> Any:
    """Lists of these lengths in the file `path`, which faiss maps into memory."""
    import faiss

    discard(path)
    lists = faiss.OnDiskInvertedLists(len(sizes_K), code_size, str(path))
    entry_bytes = code_size + _NUMBER_BYTES
    # A list gets a power of two of entries. At its full size at once the file need not grow.
    n_entries = sum(1 << (size - 1).bit_length() for size in sizes_K if size)
    lists.update_totsize(n_entries * entry_bytes)
    file = OutputFile(path)
    try:
        for cluster, size in enumerate(sizes_K):
            lists.resize(cluster, size)
            if size:
                # Of a mapped file a disk that is full ends the process. What is not used stays a
                # hole, which takes no space.
                file.reserve_part(lists.lists.at(cluster).offset, size * entry_bytes)
    finally:
        file.close()
    return lists


def _fill(index: Any, rows: GroupedRows, model: Model, what: Export) -> None:
    """Put the rows of each cluster into its list."""
    import faiss

    if rows.dtype in ("float64", "int32", "uint32", "int64", "uint64"):
        what.progress.say(f"note: the index holds float32; rows of {rows.dtype} are rounded to it")
    for cluster in np.flatnonzero(np.diff(rows.offsets)).tolist():
        done = 0
        for numbers_B, rows_BD in rows.pieces(cluster):
            if model.scaling.normalize:
                unit_BD = normalized(torch.from_numpy(rows_BD).double())
                rows_BD = unit_BD.float().numpy()
            codes = faiss.swig_ptr(rows_BD.view(np.uint8))
            numbers = faiss.swig_ptr(np.ascontiguousarray(numbers_B))
            index.invlists.update_entries(cluster, done, len(numbers_B), numbers, codes)
            done += len(numbers_B)
            what.progress.advance(len(numbers_B))
            if what.progress.is_due():
                what.progress.report({})
    index.ntotal = rows.n_rows


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Turn what faiss raises, which is about files here, into an OSError in one line."""
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise OSError(said) from error


def _publish(path: Path, target: Path) -> None:
    fsync_file(path)
    rename_durably(path, target)
