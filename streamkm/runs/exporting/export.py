"""Hands the centroids of a run, and the rows of a partition, to another program's file."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.errors import ConfigError, Option, OutputExistsError, RunError, StorageError
from streamkm.files import file_sha256
from streamkm.runs.exporting.targets import TARGETS
from streamkm.runs.partitioning.grouping import FORMATS
from streamkm.runs.partitioning.record import OFFSETS, ORDER, PartitionFolder
from streamkm.runs.reporting.progress import Progress
from streamkm.runs.storage.model import load_model
from streamkm.runs.storage.model_file import MODEL
from streamkm.sources import open_source
from streamkm.sources.base import RowRange
from streamkm.sources.npy import open_npy
from streamkm.stream.stages import StageTimes
from streamkm.tables import load_class

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamkm.runs.storage.model import Model
    from streamkm.sources.base import Source

__all__ = ["Export", "GroupedRows", "check_target", "export", "lists_path"]

#: Bytes of rows, as float32, that are read at a time.
PIECE_BYTES = 16 << 20
#: Of these formats the rows lie in one array, in the order of the partition.
_IN_ONE_ARRAY = ("npy", "zarr")


class GroupedRows:
    """The rows of a finished partition, cluster after cluster; closed at the end of ``with``.

    Raises
    ------
    InputError
        If the partition is of another model, is not finished, or holds no rows that can be read in
        its order.
    """

    def __init__(self, path: Path, run_dir: Path, model: Model) -> None:
        record = PartitionFolder.read(path)
        if record["model"] != file_sha256(run_dir / MODEL):
            raise ConfigError(
                Option("partition", str(path)),
                f" was made by another model than that of {run_dir}; name a partition by this one",
            )
        if not record["done"]:
            raise RunError(
                f"{path} is not finished; finish it first: streamkm partition with --resume"
            )
        kind = record["settings"]["rows"]
        if kind not in _IN_ONE_ARRAY:
            has = "no rows" if kind is None else f"its rows as {kind}"
            raise ConfigError(
                Option("partition", str(path)),
                f" has {has}: lists are made of rows.npy or rows.zarr; make the partition again "
                "with --rows npy",
            )
        self.path, self._order_of = path, _order_of(record, model, path)
        self._is_bfloat16 = record["data"]["dtype"] == "bfloat16"
        self.offsets = np.load(path / OFFSETS)
        """Where the rows of each cluster begin, and after the last where they end."""
        self.dtype: str = record["data"]["dtype"]
        self._rows: Source = open_source(path / FORMATS[kind])
        self._numbers: Source = open_npy(path / ORDER, column=True)

    @property
    def n_rows(self) -> int:
        """Rows of all clusters."""
        return int(self.offsets[-1])

    def pieces(self, cluster: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The rows of a cluster: their numbers in the source, int64, and themselves, float32.

        A piece has `PIECE_BYTES` at most.
        """
        begin, end = (int(edge) for edge in self.offsets[cluster : cluster + 2])
        spec = self._rows.spec
        for part in RowRange(begin, end).split(max(PIECE_BYTES // (4 * spec.n_features), 1)):
            numbers_B1 = np.empty((len(part), 1), np.int64)
            self._numbers.read(part, numbers_B1)
            rows_BD = np.empty((len(part), spec.n_features), spec.storage)
            self._rows.read(part, rows_BD)
            if self._is_bfloat16:  # Stored as its bits, which are the upper half of a float32's.
                rows_BD = (rows_BD.astype(np.uint32) << 16).view(np.float32)
            if self._order_of is not None:
                rows_BD = rows_BD[:, self._order_of]
            yield numbers_B1[:, 0], np.ascontiguousarray(rows_BD, np.float32)

    def close(self) -> None:
        """Release files."""
        self._rows.close()
        self._numbers.close()


def _order_of(record: dict[str, Any], model: Model, path: Path) -> list[int] | None:
    """Where each feature of the model stands in the rows, which have the order of their source."""
    if not model.feature_names:
        return None
    names = record.get("feature_names")
    if names is None:
        raise ConfigError(
            Option("partition", str(path)),
            " does not say which feature is which; make it again with this version",
        )
    return [names.index(name) for name in model.feature_names] if names else None


@dataclass(frozen=True)
class Export:
    """What is exported, and where to."""

    model: Model
    rows: GroupedRows | None
    """None without a partition: then centroids alone are exported."""
    out: Path
    on_disk: bool
    """Whether rows go to a file of their own, which is mapped, and not held in memory."""
    progress: Progress


def lists_path(out: Path) -> Path:
    """Where the rows go that are not in the file `out` itself."""
    return out.with_name(f"{out.name}.lists")


def check_target(name: str, out: Path, *, on_disk: bool, partition: Path | None) -> None:
    """Refuse what can be refused before the model is read.

    Raises
    ------
    InputError
        If the target's package is missing, the output exists, or `on_disk` has no rows.
    """
    target = TARGETS[name]
    if find_spec(target.package) is None:
        raise ConfigError(
            Option("to", name),
            f" needs {target.package}, which is not installed: pip install {target.install}",
        )
    for path in (out, *([lists_path(out)] if on_disk else [])):
        if path.exists():
            raise OutputExistsError(f"{path} exists; remove it, or choose another ", Option("out"))
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is no folder; make it, or choose another ", Option("out"))
    if on_disk and partition is None:
        raise ConfigError(
            Option("on_disk", value=True), " is about the rows of a partition; name it with ",
            Option("partition"),
        )  # fmt: skip


def export(
    run_dir: Path,
    to: str,
    out: Path,
    *,
    partition: Path | None = None,
    on_disk: bool = False,
    quiet: bool = False,
) -> None:
    """Write what the target `to` makes of a run to the file `out`.

    Parameters
    ----------
    run_dir : Path
        A finished run.
    to : str
        A key of `TARGETS`.
    out : Path
        The file; it must not exist. It has its name when it is complete.
    partition : Path, optional
        A finished partition by this run, with ``rows.npy`` or ``rows.zarr``.
    on_disk : bool
        Write the rows to ``OUT.lists``, in bounded memory.
    quiet : bool
        Say nothing on stderr.

    Raises
    ------
    InputError
        If the run, the partition or the output cannot be used.
    StorageError
        If the disk refuses; nothing is left at `out`.
    """
    check_target(to, out, on_disk=on_disk, partition=partition)
    model = load_model(run_dir)
    with Progress(quiet=quiet) as progress:
        write = load_class(TARGETS[to].home)
        try:
            if partition is None:
                write(Export(model, None, out, on_disk, progress))
            else:
                with closing(GroupedRows(partition, run_dir, model)) as rows:
                    progress.begin("export", rows.n_rows, StageTimes())
                    write(Export(model, rows, out, on_disk, progress))
        except OSError as error:
            raise StorageError(
                f"{out}: cannot be written ({error}); free space, or mend what keeps the disk "
                "from being written, then repeat"
            ) from error
        progress.say(f"written: {out}")
