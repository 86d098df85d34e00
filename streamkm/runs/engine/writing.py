"""Writes what predict finds of each row, and makes it durable as often as asked.

Of several processes each writes a part of every output that can be written so. What only one can
write, such as a Parquet table, the first process writes for all.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from streamkm.devices import queues_of
from streamkm.distributed.transfer import Transfer
from streamkm.errors import Interrupted, Option
from streamkm.runs.engine.agreement import Agreement
from streamkm.runs.reporting.bad_rows import non_finite_error
from streamkm.sinks import Written
from streamkm.sources import RowRange
from streamkm.stream.slots import pinned

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamkm.config import ExecutionConfig
    from streamkm.devices import Queues
    from streamkm.distributed.world import World
    from streamkm.runs.engine.allotment import Allotment
    from streamkm.runs.engine.labelled import LabelledBatch
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.sinks import Part, Sink
    from streamkm.sources import Source
    from streamkm.stream.plan import Place

__all__ = ["CLUSTER", "DISTANCE", "SECOND", "FoundRows", "Output", "Writer"]

#: Names of the columns of a table.
CLUSTER, DISTANCE, SECOND = "cluster", "distance", "second_distance"


class FoundRows:
    """What is written of each row: its cluster or several, and the distances that outputs have.

    From a GPU it is copied beside the arithmetic, to page-locked memory that is used again.

    Parameters
    ----------
    fields : sequence of (str, dtype)
        The columns, `CLUSTER` first; a subarray type is of several nearest centroids.
    unit : float
        By which scaled distances are divided.
    most_ahead : int
        How many more batches may be queued before the rows of one are asked for.
    """

    def __init__(
        self, fields: Sequence[tuple[str, np.dtype[Any]]], unit: float, most_ahead: int = 0
    ) -> None:
        self.dtype = np.dtype(list(fields))
        self._unit, self._most_ahead, self._n_queued = unit, most_ahead, 0
        self._held: dict[tuple[int, str], torch.Tensor] = {}

    def of(self, batch: LabelledBatch) -> np.ndarray:
        """The rows of a batch."""
        return self.queued(batch)()

    def queued(self, batch: LabelledBatch) -> Callable[[], np.ndarray]:
        """Begin to fetch the rows of a batch; what is returned waits for them.

        It must be called before `most_ahead` more batches and another are queued.
        """
        queues, columns = queues_of(batch.labels_B.device), self._columns(batch)
        n_rows, event = len(batch.labels_B), None
        if queues is not None:
            place = self._n_queued % (self._most_ahead + 1)
            self._n_queued += 1
            for name, column in columns.items():
                columns[name] = self._memory(queues, (place, name), column).copy_(
                    column, non_blocking=True
                )
            event = queues.event()
            event.record(queues.current())

        def found() -> np.ndarray:
            if event is not None:
                event.synchronize()
            found_B = np.empty(n_rows, self.dtype)
            for name, column in columns.items():
                found_B[name] = column.numpy()
            return found_B

        return found

    def _columns(self, batch: LabelledBatch) -> dict[str, torch.Tensor]:
        """The columns in the dtypes in which they are kept, on the device."""
        labels_BM, sq_distances_BM = batch.labels_B[:, None], batch.sq_distances_B[:, None]
        if batch.several is not None:
            labels_BM, sq_distances_BM = batch.several
        columns = {}
        for name in self.dtype.names or ():
            is_label, shape = name == CLUSTER, self.dtype[name].shape
            values_BM = labels_BM if is_label else sq_distances_BM.sqrt() / self._unit
            chosen = values_BM[:, : shape[0]] if shape else values_BM[:, int(name == SECOND)]
            kept = torch.from_numpy(np.empty(0, self.dtype[name].base)).dtype
            columns[name] = chosen.to(kept)
        return columns

    def _memory(self, queues: Queues, key: tuple[int, str], column: torch.Tensor) -> torch.Tensor:
        """Page-locked memory for a column of a batch."""
        held = self._held.get(key)
        if held is None or len(held) < len(column):
            held = self._held[key] = pinned(queues, tuple(column.shape), column.dtype)
        return held[: len(column)]

    @staticmethod
    def n_dropped(found_B: np.ndarray) -> int:
        """How many of the rows are not finite."""
        labels = found_B[CLUSTER]
        return int(((labels if labels.ndim == 1 else labels[:, 0]) < 0).sum())


@dataclass(frozen=True)
class Output:
    """One output, as this process sees it."""

    name: str
    """`CLUSTER`, `DISTANCE` or `SECOND`: what is written, unless the dtype names columns."""
    dtype: np.dtype[Any]
    sink: Sink | None
    """In the first process."""
    part: Part | None
    """What this process writes where several do. Otherwise the first writes all."""
    allotment: Allotment

    def write(self, start_row: int, values: np.ndarray) -> None:
        """Write rows that are allotted to this process."""
        writer = self.part or self.sink
        assert writer is not None
        writer.write(start_row, values)

    def values(self, found_B: np.ndarray) -> np.ndarray:
        """What is stored of the rows found."""
        if self.dtype.names is None:
            return np.ascontiguousarray(found_B[self.name], self.dtype.base)
        table = np.empty(len(found_B), self.dtype)
        for name in self.dtype.names:
            table[name] = found_B[name]
        return table

    def received(self, sent: torch.Tensor) -> np.ndarray:
        """What another process has made of rows by `values`, from its bytes."""
        return sent.numpy().view(self.dtype.base).reshape(-1, *self.dtype.shape)


#: What is written next: an output, the first row, and values that are here or on their way.
Job = tuple[Output, int, "np.ndarray | Transfer"]


class Writer:
    """Writes rows to the outputs and makes them durable as often as asked.

    Each process writes the rows that are allotted to it, and the first alone saves how far all have
    come. Rows that another process writes travel there beside the arithmetic. All processes go
    through the same places, and whom a place concerns begins to send or to receive when it comes to
    it, before it waits for anything of a later place. So whoever is waited for gets there.

    Parameters
    ----------
    outputs : list of Output
        What is written.
    job : dict
        What decides the values; saved with the rows.
    source : Source
        Where the rows come from, for the error that names one.
    refuses : bool
        Whether rows that are not finite are an error.
    execution : ExecutionConfig
        Says how often rows are made durable.
    stop_request : StopRequest
        Asked after every batch.
    start_row : int
        The first row that an output lacks.
    most_sent : int
        Places whose rows are on their way to other processes, at most.
    world : World
        The processes.
    """

    def __init__(
        self,
        outputs: list[Output],
        job: dict[str, str],
        source: Source,
        *,
        refuses: bool,
        execution: ExecutionConfig,
        stop_request: StopRequest,
        start_row: int,
        most_sent: int,
        world: World,
    ) -> None:
        self._outputs, self.job, self._stop_request = outputs, job, stop_request
        self._source, self._refuses = source, refuses
        self._world, self._agreement = world, Agreement(world)
        self._cadence = execution.checkpoint_every
        self._saved_at, self._batches = time.monotonic(), 0
        self.n_dropped = 0
        """Rows that this process has found not finite, from `start_row` on."""
        self.start_row = self._reached = start_row
        self._first_refused: tuple[int, int, int] | None = None
        self._coming: deque[list[Job]] = deque()
        self._going: deque[list[Transfer]] = deque()
        self._most_coming = world.size if world.size > 1 else 0
        self._most_going = most_sent

    def write(self, place: Place, found_B: np.ndarray | None) -> None:
        """Write the rows of a place, or pass them on; those of another process are None."""
        self._reached = place.start_row + place.n_rows
        if found_B is not None:
            self._count(place, found_B)
        jobs: list[Job] = []
        sent: list[Transfer] = []
        for output in self._outputs:
            for start, stop, writer in output.allotment.lots(place):
                rows = slice(start - place.start_row, stop - place.start_row)
                if found_B is not None:
                    values = output.values(found_B[rows])
                    if writer == self._world.rank:
                        jobs.append((output, start, values))
                    else:
                        sent.append(_sending(self._world, values, writer))
                elif writer == self._world.rank:
                    n_bytes = (stop - start) * output.dtype.itemsize
                    jobs.append((output, start, _receiving(self._world, n_bytes, place.owner)))
        self._coming.extend([jobs] if jobs else [])
        self._going.extend([sent] if sent else [])
        self._wait(self._most_coming, self._most_going)

    def after(self, place: Place) -> None:
        """Make the rows so far durable if that is due; raise `Interrupted` if asked."""
        self._batches += 1
        if not place.ends_round:
            return
        asked = self._stop_request.signal_name
        elapsed_s = time.monotonic() - self._saved_at
        stops, is_due = self._agreement.after_step(
            stop=asked is not None or self._first_refused is not None,
            due=self._world.is_first and self._cadence.is_due(self._batches, elapsed_s),
        )
        if stops or is_due:
            self._save()
        if stops:
            self._release()
            names = [name for name in self._world.gather(asked) if name]
            sinks = [output.sink for output in self._outputs if output.sink is not None]
            # Whoever says it: the first process knows.
            rows = self._world.gather(sinks[0].durable_rows if sinks else 0)[0]
            raise Interrupted(
                f"stopped by {names[0]}; rows up to {rows:,} are saved: repeat with ",
                Option("resume", value=True),
                " to go on",
            )

    def finish(self) -> None:
        """Make the last rows durable; the first process may give the outputs their names then."""
        self._agreement.finish()
        self._save()
        self._release()
        self.n_dropped = sum(self._world.gather(self.n_dropped))

    def doing(self) -> str:
        """How far labelling has come, for the message of an `AllocationError`."""
        return f"labelling, after row {self._reached:,}"

    def _count(self, place: Place, found_B: np.ndarray) -> None:
        # A resumed predict begins with the batch of the first missing row: some of it was counted.
        self.n_dropped += FoundRows.n_dropped(found_B[max(self.start_row - place.start_row, 0) :])
        n_refused = FoundRows.n_dropped(found_B) if self._refuses else 0
        if n_refused and self._first_refused is None:
            self._first_refused = (place.start_row, place.n_rows, n_refused)

    def _save(self) -> None:
        """Make the rows so far durable, and save that they are; all have come to the same place."""
        self._wait(0, 0)
        self._check_refused()
        written = [[] if each.part is None else each.part.flush() for each in self._outputs]
        self._world.meet()
        for theirs in self._world.gather(written):
            for output, some in zip(self._outputs, theirs, strict=True):
                if output.sink is not None:
                    output.sink.claim(Written(*rows) for rows in some)
        for output in self._outputs:
            if output.sink is not None:
                output.sink.write_cursor(self.job)
        self._world.meet()
        self._saved_at, self._batches = time.monotonic(), 0

    def _check_refused(self) -> None:
        """Refuse rows that are not finite, if a process has found some; the first of all is named.

        All have gone through the same places, so none can find an earlier one.
        """
        found = [refused for refused in self._world.gather(self._first_refused) if refused]
        if not found:
            return
        start, n_rows, n_refused = min(found)
        self._release()
        if not self._world.is_first:
            self._world.meet()  # The first looks for the row, and tells it.
        raise non_finite_error(self._source, n_refused, within=RowRange(start, start + n_rows))

    def _wait(self, most_coming: int, most_going: int) -> None:
        """Write rows that have come, and forget those that have gone, but for these places."""
        while len(self._coming) > most_coming:
            for output, start, values in self._coming.popleft():
                if isinstance(values, Transfer):
                    values = output.received(values.wait())
                output.write(start, values)
        while len(self._going) > most_going:
            for transfer in self._going.popleft():
                transfer.wait()

    def _release(self) -> None:
        """Let go of what the first process is going to give a name, or to delete."""
        for output in self._outputs:
            if output.sink is None and output.part is not None:
                output.part.close()


def _sending(world: World, values: np.ndarray, receiver: int) -> Transfer:
    sent = torch.from_numpy(values.reshape(-1).view(np.uint8))
    return Transfer.of_sending(world, sent, receiver)


def _receiving(world: World, n_bytes: int, sender: int) -> Transfer:
    return Transfer.of_receiving(world, torch.empty(n_bytes, dtype=torch.uint8), sender)
