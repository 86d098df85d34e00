"""Labels that ``--labels`` names: checked, and copied to the folder of the partition.

A partition reads labels several times. A copy of its own stays as it is, and says of every row
where it went. Labels that this model's `predict` has written of another source are refused, by the
record in the run folder. Labels that no record knows are taken, which is said.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.errors import ConfigError, Option, SourceError
from streamkm.runs.engine.labelling import label_dtype
from streamkm.runs.partitioning.placing import SCAN_ROWS
from streamkm.runs.storage.output_records import record_of
from streamkm.sinks import IN_STORE, kind_of, open_sink
from streamkm.sources.base import RowRange
from streamkm.sources.layout import one_line
from streamkm.sources.npy import open_npy
from streamkm.sources.registry import open_source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streamkm.sources.base import Source

__all__ = ["GivenLabels"]

#: Columns of a table that `predict` writes.
_LABEL, _DISTANCE = "cluster", "distance"


class GivenLabels:
    """One label a row, in an ``.npy`` file, a Zarr array or a ``.parquet`` table.

    A table has the column ``cluster``, and beside it ``distance``.

    Raises
    ------
    SourceError
        If it holds no whole numbers, or not `n_rows` of them, or several a row.
    """

    def __init__(self, path: Path, n_rows: int, *, with_distances: bool) -> None:
        self.path, self._n_rows = path, n_rows
        self._stack = ExitStack()
        self._distances: Callable[[RowRange], np.ndarray] | None = None
        try:
            self._labels, count, dtype = self._open(with_distances)
            if dtype.kind not in "iu":
                raise SourceError(f"{path}: labels are whole numbers, these are {dtype}")
            if count != n_rows:
                raise SourceError(
                    f"{path}: one label is needed for each of {n_rows:,} rows, there are "
                    f"{count:,}; name the labels of this source"
                )
        except BaseException:
            self.close()
            raise

    def _open(
        self, with_distances: bool
    ) -> tuple[Callable[[RowRange], np.ndarray], int, np.dtype[Any]]:
        """What reads labels, how many there are, and their dtype."""
        path, suffix = self.path, self.path.suffix.lower()
        if not path.exists():
            raise SourceError(f"{path}: does not exist; name labels that predict has written")
        if with_distances and suffix != ".parquet":
            raise ConfigError(
                Option("sort", "distance"),
                f" needs distances, and {path} has none; leave out ",
                Option("labels"),
                ", or name a .parquet that predict has written",
            )
        if kind_of(path) in (".zarr", IN_STORE):
            return self._open_zarr()
        if suffix == ".npy":
            source = self._kept(open_npy(path, column=True))
        elif suffix == ".parquet":
            source = self._kept(open_source(path, columns=[_LABEL]))
        else:
            raise SourceError(
                f"{path}: labels are a .npy, .zarr or .parquet, or an array in a Zarr store "
                "(store.zarr/cluster); write them so with predict"
            )
        self._check_width(source.spec.n_features)
        if with_distances:
            self._distances = _reader(self._kept(open_source(path, columns=[_DISTANCE])))
        return _reader(source), source.spec.n_rows, source.spec.storage

    def _open_zarr(self) -> tuple[Callable[[RowRange], np.ndarray], int, np.dtype[Any]]:
        import zarr

        try:
            array = zarr.open_array(self.path, mode="r")
        except Exception as error:  # metadata may be wrong in any way
            raise SourceError(
                f"{self.path}: is no Zarr array that can be read: {one_line(error)}"
            ) from error
        # Those of one nearest centroid have a second axis, of one label.
        is_nearest = array.ndim == 2 and array.shape[1] == 1
        if array.ndim != 1 and not is_nearest:
            raise SourceError(
                f"{self.path}: labels have one axis, this array has the shape {array.shape}; "
                "write them with predict to a .npy, without ",
                Option("nearest"),
            )

        def read(rows: RowRange) -> np.ndarray:
            try:
                return np.asarray(array[rows.start : rows.stop]).reshape(-1)
            except Exception as error:  # so may chunks
                raise SourceError(
                    f"{self.path}: {rows} cannot be read: {one_line(error)}"
                ) from error

        return read, array.shape[0], np.dtype(array.dtype)

    def _check_width(self, n_labels: int) -> None:
        if n_labels != 1:
            raise SourceError(
                f"{self.path}: a partition takes one label a row, here are {n_labels:,} columns; "
                "predict again without ",
                Option("nearest"),
            )

    def _kept(self, source: Source) -> Source:
        return self._stack.enter_context(closing(source))

    def check_origin(self, run_dir: Path, job: dict[str, str], k: int) -> str | None:
        """A note if nothing tells whose labels they are.

        Raises
        ------
        ConfigError
            If the run has a record that they are of another model, or of other rows.
        SourceError
            If it has none, and one of them is no label of `k` clusters.
        """
        record = record_of(run_dir, self.path)
        if record is None:
            return (
                f"{run_dir} has no record of {self.path}: its labels are taken as those of the "
                f"source; the largest is {self._largest(k):,}, the run has clusters 0 to {k - 1:,}"
            )
        for name, what in (("model", "by another model"), ("data", "of another source")):
            if record.get(name) != job[name]:
                raise ConfigError(
                    f"{self.path}: these labels were made {what}, or it has changed since; "
                    "predict again, or leave out ",
                    Option("labels"),
                )
        return None

    def copy(self, labels: Path, distances: Path | None, n_rows: int, k: int) -> None:
        """Write them to `labels`, and the distances to `distances`, as `predict` would.

        Raises
        ------
        SourceError
            If a label is below -1, or `k` or more.
        """
        _copy(self._checked(k), labels, n_rows, label_dtype(k))
        if distances is not None and self._distances is not None:
            _copy(self._distances, distances, n_rows, np.dtype(np.float32))

    def _largest(self, k: int) -> int:
        read = self._checked(k)
        return max(int(read(rows).max()) for rows in RowRange(0, self._n_rows).split(SCAN_ROWS))

    def _checked(self, k: int) -> Callable[[RowRange], np.ndarray]:
        def read(rows: RowRange) -> np.ndarray:
            labels_B = self._labels(rows)
            wrong = np.flatnonzero((labels_B >= k) | (labels_B < -1))
            if wrong.size:
                raise SourceError(
                    f"{self.path}: row {rows.start + int(wrong[0]):,} has the label "
                    f"{labels_B[wrong[0]]}, the run has {k:,} clusters: labels are 0 to {k - 1:,}, "
                    "and -1 for a row that was dropped"
                )
            return labels_B

        return read

    def close(self) -> None:
        """Release files."""
        self._stack.close()


def _reader(source: Source) -> Callable[[RowRange], np.ndarray]:
    def read(rows: RowRange) -> np.ndarray:
        out = np.empty((len(rows), 1), source.spec.storage)
        source.read(rows, out)
        return out[:, 0]

    return read


def _copy(
    read: Callable[[RowRange], np.ndarray], target: Path, n_rows: int, dtype: np.dtype[Any]
) -> None:
    """Write the values that `read` gives to the file `target`; nothing if it is there."""
    if target.exists():
        return
    with open_sink(target, n_rows=n_rows, dtype=dtype) as sink:
        for rows in RowRange(0, n_rows).split(SCAN_ROWS):
            try:
                sink.write(rows.start, read(rows).astype(dtype))
            except SourceError:
                sink.discard()
                raise
        sink.commit()
