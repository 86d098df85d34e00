"""Writes what predict finds of each row, and makes it durable as often as asked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.errors import Interrupted, Option
from streamkm.runs.engine.agreement import Agreement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamkm.config import ExecutionConfig
    from streamkm.distributed.world import World
    from streamkm.runs.engine.labelling import LabelledBatch
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.sinks import Sink
    from streamkm.stream.plan import Place

__all__ = ["CLUSTER", "DISTANCE", "SECOND", "FoundRows", "Writer"]

#: Names of the columns of a table.
CLUSTER, DISTANCE, SECOND = "cluster", "distance", "second_distance"


class FoundRows:
    """What is written of each row: its cluster or several, and the distances that outputs have.

    Parameters
    ----------
    fields : sequence of (str, dtype)
        The columns, `CLUSTER` first; a subarray type is of several nearest centroids.
    unit : float
        By which scaled distances are divided.
    """

    def __init__(self, fields: Sequence[tuple[str, np.dtype[Any]]], unit: float) -> None:
        self.dtype = np.dtype(list(fields))
        self._unit = unit

    def of(self, batch: LabelledBatch) -> np.ndarray:
        """The rows of a batch."""
        found_B = np.empty(len(batch.labels_B), self.dtype)
        labels_BM, sq_distances_BM = batch.labels_B[:, None], batch.sq_distances_B[:, None]
        if batch.several is not None:
            labels_BM, sq_distances_BM = batch.several
        for name in self.dtype.names or ():
            is_label, shape = name == CLUSTER, self.dtype[name].shape
            values_BM = labels_BM if is_label else sq_distances_BM.sqrt() / self._unit
            chosen = values_BM[:, : shape[0]] if shape else values_BM[:, int(name == SECOND)]
            found_B[name] = chosen.cpu().numpy()
        return found_B

    @staticmethod
    def n_dropped(found_B: np.ndarray) -> int:
        """How many of the rows are not finite."""
        labels = found_B[CLUSTER]
        return int((labels.reshape(len(labels), -1)[:, :1] < 0).sum())


class Writer:
    """Writes rows to the sinks and makes them durable as often as asked.

    A sink gets the one of `columns` that stands in its place, or those that its own type names. The
    first process has the sinks; the others stop when it stops.
    """

    def __init__(
        self,
        sinks: list[Sink],
        columns: Sequence[str],
        job: dict[str, str],
        execution: ExecutionConfig,
        stop_request: StopRequest,
        start_row: int,
        world: World,
    ) -> None:
        self._sinks, self._columns = sinks, columns
        self.job, self._stop_request = job, stop_request
        self._world, self._agreement = world, Agreement(world)
        self._cadence = execution.checkpoint_every
        self._saved_at, self._batches = time.monotonic(), 0
        self.n_dropped = 0
        self.start_row = self._counted_to = start_row

    def write(self, start_row: int, found_B: np.ndarray) -> None:
        """Write the rows of a batch."""
        # A resumed predict begins with the batch of the first missing row: some of it was counted.
        self.n_dropped += FoundRows.n_dropped(found_B[max(self._counted_to - start_row, 0) :])
        self._counted_to = start_row + len(found_B)
        for sink, name in zip(self._sinks, self._columns, strict=bool(self._sinks)):
            sink.write(start_row, _as_stored(sink.dtype, found_B, name))

    def after(self, place: Place) -> None:
        """Make the rows so far durable if that is due; raise `Interrupted` if asked."""
        self._batches += 1
        if not place.ends_round:
            return
        asked = self._stop_request.signal_name
        elapsed_s = time.monotonic() - self._saved_at
        stops, is_due = self._agreement.after_step(
            stop=asked is not None,
            due=self._world.is_first and self._cadence.is_due(self._batches, elapsed_s),
        )
        if stops or is_due:
            self.save()
            self._world.meet()
        if stops:
            names = [name for name in self._world.gather(asked) if name]
            rows = self._sinks[0].durable_rows if self._sinks else 0
            raise Interrupted(
                f"stopped by {names[0]}; rows up to {rows:,} are saved: repeat with ",
                Option("resume", value=True),
                " to go on",
            )

    def finish(self) -> None:
        """All rows are written: nobody stops any more."""
        self._agreement.finish()

    def doing(self) -> str:
        """How far labelling has come, for the message of an `AllocationError`."""
        return f"labelling, after row {self._counted_to:,}"

    def save(self) -> None:
        """Make the rows so far durable."""
        for sink in self._sinks:
            sink.write_cursor(self.job)
        self._saved_at, self._batches = time.monotonic(), 0


def _as_stored(dtype: np.dtype[Any], found_B: np.ndarray, name: str) -> np.ndarray:
    """The column `name` of `found_B`, or those that `dtype` names."""
    if dtype.names is None:
        return np.ascontiguousarray(found_B[name], dtype.base)
    table = np.empty(len(found_B), dtype)
    for each in dtype.names:
        table[each] = found_B[each]
    return table
