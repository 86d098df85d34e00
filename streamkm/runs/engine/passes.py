"""Passes over the data: several epochs in one stream, from the cursor on.

With one stream for all epochs the readers go from one to the next without a pause. The caller
asks for the batches of one epoch after the other, and so sees where each begins and ends.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

import torch

from streamkm.distributed.world import ALONE
from streamkm.stream.pipeline import stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamkm.clustering.batch import Batch
    from streamkm.clustering.preparation import Preparation
    from streamkm.distributed.world import World
    from streamkm.runs.engine.snapshot import Cursor
    from streamkm.runs.planning.fit_plan import FitPlan
    from streamkm.stream.slots import HostSlots
    from streamkm.stream.stages import StageTimes
    from streamkm.stream.transfer import DeviceWindow

__all__ = ["PASSES", "Passes", "open_passes"]

#: The phases that read the whole array, in the order in which a run comes to them.
PASSES = ("scale", "rounds", "train", "close", "sizes")


class Passes:
    """The batches of several epochs, which the caller takes in order."""

    def __init__(self, windows: Iterator[DeviceWindow], first: Cursor, n_batches: int) -> None:
        """`n_batches` counts the batches of the epoch of `first`; unused where that begins."""
        self._windows, self._first, self._n_batches = windows, first, n_batches

    def batches(self, epoch: int) -> Iterator[tuple[int, DeviceWindow, torch.Tensor | slice]]:
        """(number within the epoch, window, rows of it) for each batch left of `epoch`."""
        start = self._first.batch if epoch == self._first.epoch else 0
        if start and start == self._n_batches:
            return  # The last attempt stopped after the last batch, before the end of the epoch.
        for window in self._windows:
            for index, rows in window.batches(start):
                yield index, window, rows
            if window.window.last:
                return

    def prepared(self, epoch: int, prepare: Preparation) -> Iterator[tuple[int, Batch]]:
        """(number within the epoch, batch) for each batch left of `epoch`, ready for a kernel."""
        for index, window, rows in self.batches(epoch):
            batch = prepare(window.x_ND, rows, window.weights_N, is_shared=window.is_shared)
            planned = window.window
            if planned.numbers is not None:
                place = index - planned.first_batch
                own = slice(*planned.batch_edges[place : place + 2])
                batch.numbers_B = torch.from_numpy(planned.numbers[own]).to(batch.x_ND.device)
                batch.n_shared = planned.whole_rows(place)
            yield index, batch


@contextmanager
def open_passes(
    plan: FitPlan,
    first: Cursor,
    epochs: range,
    slots: HostSlots,
    times: StageTimes,
    world: World = ALONE,
) -> Iterator[Passes]:
    """Stream `epochs` in the order that the phase of `first` reads in, from `first` on.

    Every process of `world` streams its share; batches of which it has no row are empty.
    """
    reading = plan.reading_of(first.phase)
    windows = chain.from_iterable(
        reading.windows(
            epoch,
            first.batch if epoch == first.epoch else 0,
            rank=world.rank,
            n_processes=world.size,
        )
        for epoch in epochs
    )
    n_batches = reading.n_batches(first.epoch) if first.batch else 0
    order = PASSES.index(first.phase)
    with stream(plan.source, windows, slots, times, plan.weights, order) as device_windows:
        yield Passes(device_windows, first, n_batches)
