"""`partition`: rows grouped by cluster on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.errors import ConfigError, Option, ParameterError
from streamkm.estimators.inputs import open_rows
from streamkm.estimators.loading import load_run
from streamkm.estimators.parameters import execution_config
from streamkm.estimators.stopping import stoppable
from streamkm.files import expanded
from streamkm.kernels import torch_alone_after_fork
from streamkm.runs.partitioning.grouping import Grouping
from streamkm.runs.partitioning.partition import partition as verb
from streamkm.runs.partitioning.record import OFFSETS, ORDER

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Partition", "partition"]


@dataclass(frozen=True, repr=False)
class Partition:
    """What `partition` has written; the arrays are memory maps of its files."""

    path: Path
    """The folder."""
    offsets: np.ndarray
    """int64, K + 1: where each cluster begins in `order`, and after the last where it ends."""
    order: np.ndarray
    """int64: row numbers, cluster after cluster."""
    n_dropped: int
    """Rows that are in no cluster: ``labels.npy`` has -1 for them."""

    def members(self, cluster: int) -> np.ndarray:
        """The numbers of the rows of a cluster, in the order in which they are written."""
        if not 0 <= cluster < len(self.offsets) - 1:
            raise IndexError(f"there are clusters 0 to {len(self.offsets) - 2}, not {cluster}")
        return self.order[self.offsets[cluster] : self.offsets[cluster + 1]]

    def __repr__(self) -> str:
        rows, clusters = len(self.order), len(self.offsets) - 1
        return f"<Partition {self.path}: {rows:,} rows in {clusters:,} clusters>"


@torch_alone_after_fork()
def partition(
    run: str | os.PathLike[str],
    X: Any,
    out: str | os.PathLike[str],
    *,
    rows: str | None = None,
    labels: str | os.PathLike[str] | None = None,
    only: Sequence[int] | None = None,
    sort: str = "row",
    nan: str | None = None,
    resume: bool = False,
    verbose: bool = False,
    device: str = "auto",
    max_host_memory: int | str | None = None,
) -> Partition:
    """Group the rows of `X` by the clusters of a run, on disk and in bounded memory.

    The folder `out` gets ``order.npy`` and ``offsets.npy``, ``labels.npy``, and if asked the rows
    themselves, as ``streamkm partition`` writes them.

    Parameters
    ----------
    run : path
        The folder of a finished run.
    X : array-like of shape (n_samples, n_features), path, Zarr array or Source
        As in `KMeans.predict`. Rows are written as they are stored, not scaled.
    out : path
        Folder to write. It must not exist, unless `resume` is true.
    rows : {"npy", "zarr", "parquet"}, default=None
        Write the rows in this order too: ``rows.npy``, ``rows.zarr``, or Parquet files in folders
        ``rows/centroid=17``, with the other columns of `X` if it is a table.
    labels : path, default=None
        Labels that ``streamkm predict`` has written. By default the model labels the rows.
    only : sequence of int, default=None
        The clusters to write; all by default.
    sort : {"row", "distance"}, default="row"
        What the rows of a cluster are sorted by: their number, or their distance to the centroid.
    nan : {"error", "drop"}, default=None
        What to do about rows with NaN or infinity; by default as in the run.
    resume : bool, default=False
        Go on with the partition in `out`, or start.
    verbose : bool, default=False
        Say on stderr how far it is.
    device, max_host_memory
        As in `KMeans`.

    Returns
    -------
    Partition

    Raises
    ------
    ValueError
        If a parameter or the data cannot be used; the message names a remedy.
    streamkm.errors.Interrupted
        If a signal stops it, after what was written is saved.
    streamkm.errors.StorageError
        If the disk refuses; what was written is kept for `resume`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import streamkm
    >>> x = np.array([[0.0], [9.0], [0.2], [9.1], [0.1]])
    >>> folder = Path(tempfile.mkdtemp())
    >>> init = np.array([[0.0], [9.0]])
    >>> km = streamkm.KMeans(2, init=init, random_state=0, run_dir=folder / "run").fit(x)
    >>> found = streamkm.partition(folder / "run", x, folder / "grouped", rows="npy")
    >>> found.members(0).tolist()
    [0, 2, 4]
    >>> np.load(folder / "grouped" / "rows.npy").ravel()
    array([0. , 0.2, 0.1, 9. , 9.1])
    """
    run = _path("run", run, "give the folder of the run, which fit writes to run_dir")
    folder = _path("out", out, "give the folder to write")
    if labels is not None:
        labels = _path("labels", labels, "save them with numpy.save to a .npy, and give its path")
    grouping = Grouping(
        rows=rows,
        labels=labels,
        only=None if only is None else _whole(only),
        sort=sort,
        nan=nan,
    )
    estimator = load_run(run)
    if nan is not None:
        estimator.set_params(nan=nan)
    with open_rows(estimator, X, reset=False) as found:
        at = found.device if device == "auto" else device
        execution = execution_config(at, max_host_memory, is_small=False)
        with stoppable(is_saved=True) as stop_request:
            record = verb(
                run,
                found.source,
                execution,
                folder,
                grouping,
                resume=resume,
                stop_request=stop_request,
                quiet=not verbose,
            )
    offsets = np.load(folder / OFFSETS)
    order = np.load(folder / ORDER, mmap_mode="r")
    return Partition(folder, offsets, order, int(record["n_dropped"]))


def _path(name: str, value: object, remedy: str) -> Path:
    """The path that the parameter `name` has; refuses what is none."""
    if not isinstance(value, str | os.PathLike):
        raise ParameterError(
            Option(name), f" must be a path, not an object of type {type(value).__name__}; {remedy}"
        )
    return expanded(value)


def _whole(only: Sequence[int]) -> tuple[int, ...]:
    """The numbers of clusters; refuses what a cast would cut off."""
    array = np.atleast_1d(np.asarray(only))
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ConfigError(
            Option("only"), f" must be numbers of clusters, such as [17, 23], not {only!r}"
        )
    return tuple(array.tolist())
