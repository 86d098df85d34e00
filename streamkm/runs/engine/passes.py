"""Passes over the data as a run makes them: several epochs in one stream, from the cursor on.

Readers go from one epoch to the next without a pause. The loop that takes the batches says by
itself where an epoch begins and where it ends.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

from streamkm.stream.pipeline import stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from streamkm.runs.engine.snapshot import Cursor
    from streamkm.sources.base import Source
    from streamkm.sources.weights import Weights
    from streamkm.stream.plan import ReadingPlan
    from streamkm.stream.slots import HostSlots
    from streamkm.stream.stages import StageTimes
    from streamkm.stream.transfer import DeviceWindow

__all__ = ["Passes", "open_passes"]


class Passes:
    """The batches of several epochs, to be asked for one epoch after the other."""

    def __init__(self, windows: Iterator[DeviceWindow], first: Cursor, n_batches: int) -> None:
        """`n_batches` is what the epoch of `first` has in all."""
        self._windows, self._first, self._n_batches = windows, first, n_batches

    def batches(self, epoch: int) -> Iterator[tuple[int, DeviceWindow, torch.Tensor | slice]]:
        """(number within the epoch, window, rows of it) for each batch that is left of `epoch`."""
        start = self._first.batch if epoch == self._first.epoch else 0
        if start and start == self._n_batches:
            return  # Stopped between the last batch and the end of the epoch.
        for window in self._windows:
            for index, rows in window.batches(start):
                yield index, window, rows
            if window.window.last:
                return


@contextmanager
def open_passes(
    source: Source,
    weights: Weights | None,
    reading: ReadingPlan,
    epochs: range,
    first: Cursor,
    slots: HostSlots,
    times: StageTimes,
) -> Iterator[Passes]:
    """Stream `epochs` in the order of `reading`, the first of them from `first` on."""
    windows = chain.from_iterable(
        reading.windows(epoch, first.batch if epoch == first.epoch else 0) for epoch in epochs
    )
    n_batches = reading.n_batches(first.epoch) if first.batch else 0
    with stream(source, windows, slots, times, weights) as device_windows:
        yield Passes(device_windows, first, n_batches)
