"""Moves windows from host slots to the device, beside the arithmetic.

On a GPU a queue for copies fills one of two device slots while the queue of the arithmetic
works on the other. The copy of a window is queued before the window ahead of it
is handed over, so it runs beside the work that the caller queues for that one.
Events make each queue wait for the other. The host waits for a copy only when
it gives the host slot back to the readers. On the CPU a window is used where it
lies. Rows that are on the device already, of a tensor or from an earlier pass, go
through the same slots and queues, by copies within the device, or are used in
their home if they follow one another there. The caller sees one iterator of
`DeviceWindow`.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from streamkm.devices import queues_of
from streamkm.ranges import named
from streamkm.stream.slots import pinned

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from streamkm.devices import Event, Queue, Queues
    from streamkm.sources.base import ArraySpec
    from streamkm.stream.plan import Window
    from streamkm.stream.prefetch import HostWindow
    from streamkm.stream.residency import DeviceRows
    from streamkm.stream.slots import HostSlots
    from streamkm.stream.stages import StageTimes

__all__ = ["N_DEVICE_SLOTS", "ORDER_BYTES", "DeviceWindow", "as_stored_tensor", "to_device"]

logger = logging.getLogger("streamkm")

#: Windows on a GPU: one worked on, one being copied. And bytes of a position in the order of use.
N_DEVICE_SLOTS, ORDER_BYTES = 2, 4


@dataclass
class DeviceWindow:
    """A window on the device, valid until the next one is asked for."""

    window: Window
    x_ND: torch.Tensor
    """Rows in their stored dtype, in the order of reading."""
    order_N: torch.Tensor | None
    """Positions in `x_ND` in the order of use; None for the order of reading."""
    weights_N: torch.Tensor | None = None
    """Weights of the rows, float64, in the order of reading; None where they have none."""
    is_shared: bool = False
    """Whether `x_ND` must not be changed: it is memory of the source, or other runs use it too."""

    def batches(self, start: int = 0) -> Iterator[tuple[int, torch.Tensor | slice]]:
        """(number within the epoch, rows of `x_ND`) of each batch from number `start` on."""
        first = self.window.first_batch
        edges = self.window.batch_edges
        for i in range(max(start - first, 0), self.window.n_batches):
            rows = slice(edges[i], edges[i + 1])
            yield first + i, rows if self.order_N is None else self.order_N[rows]

    def taken(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """`rows` of `x_ND`, as `batches` gives them: a view of a slice, a copy of others."""
        # Indexing by a tensor is slower, and on a GPU knows no uint16, uint32 and uint64.
        return self.x_ND[rows] if isinstance(rows, slice) else self.x_ND.index_select(0, rows)

    def take_into(self, out_BD: torch.Tensor, rows: torch.Tensor | slice) -> None:
        """Copy `rows` of `x_ND` to `out_BD`, which may be of another dtype."""
        if isinstance(rows, slice) or out_BD.dtype != self.x_ND.dtype:
            out_BD.copy_(self.taken(rows))
        else:
            torch.index_select(self.x_ND, 0, rows, out=out_BD)


def as_stored_tensor(rows_ND: np.ndarray, dtype: str) -> torch.Tensor:
    """`rows_ND` as a tensor on the same memory; uint16 becomes bfloat16 if that is `dtype`."""
    tensor = torch.from_numpy(rows_ND)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def to_device(
    host_windows: Iterator[HostWindow],
    spec: ArraySpec,
    slots: HostSlots,
    times: StageTimes,
    resident: DeviceRows | None = None,
) -> Generator[DeviceWindow]:
    """Move each window to the slots' device and release its host slot as soon as possible.

    Rows that are `resident` on the device do not come from the host; others that have a home there
    are copied to it on the way. A window that is no copy is shared, because who uses a window may
    change it.
    """
    queues = queues_of(slots.device)
    if queues is None:
        return _use_in_place(host_windows, spec, times, resident)
    return _copy_there(host_windows, spec, slots, times, queues, resident)


def _use_in_place(
    host_windows: Iterator[HostWindow],
    spec: ArraySpec,
    times: StageTimes,
    resident: DeviceRows | None,
) -> Generator[DeviceWindow]:
    while True:
        with times.waiting("arithmetic"):
            host = next(host_windows, None)
        if host is None:
            return
        order_N = None if host.order is None else torch.from_numpy(host.order)
        x_ND, is_shared = as_stored_tensor(host.rows_ND, spec.dtype), host.is_shared
        if is_shared:
            times.add("reading", n_bytes=host.rows_ND.nbytes)
        if resident is not None and host.on_device:
            home_ND = resident.in_place(host.window, host.on_device)
            if home_ND is not None:
                x_ND, is_shared = home_ND, True
            else:
                with times.working("copying", host.rows_ND.nbytes):
                    _copy_resident(x_ND, resident, host)
        with times.working("arithmetic"):
            weights_N = None if host.weights_N is None else torch.from_numpy(host.weights_N)
            yield DeviceWindow(host.window, x_ND, order_N, weights_N, is_shared)
        host.release()


def _copy_there(
    host_windows: Iterator[HostWindow],
    spec: ArraySpec,
    host_slots: HostSlots,
    times: StageTimes,
    queues: Queues,
    resident: DeviceRows | None = None,
) -> Generator[DeviceWindow]:
    compute, copy = queues.current(), queues.new()
    slots = [_DeviceSlot(host_slots, spec, queues) for _ in range(N_DEVICE_SLOTS)]
    # torch may give the slots memory that queued work still uses: the copies wait for that work.
    copy.wait_stream(compute)
    clock = _EventClock(times, queues)
    held: deque[tuple[_DeviceSlot, HostWindow]] = deque()
    ahead: tuple[_DeviceSlot, DeviceWindow] | None = None
    try:
        for i, host in enumerate(host_windows):
            slot = slots[i % N_DEVICE_SLOTS]
            with named("copy"), queues.within(copy), clock.timing("copying", copy):
                window = slot.fill(host, spec, copy, resident)
            times.add("copying", n_bytes=host.bytes_on_device)
            held.append((slot, host))
            if ahead is not None:
                yield from _hand_over(*ahead, compute, clock)
            ahead = slot, window
            # A host slot held too long starves the readers. One released before its copy is
            # done would be overwritten during the copy.
            while len(held) >= max(len(host_slots) - 1, 1):
                filled, oldest = held.popleft()
                filled.copied.synchronize()
                oldest.release()
            clock.collect()
        if ahead is not None:
            yield from _hand_over(*ahead, compute, clock)
    finally:
        # Neither host nor device memory may be freed during a copy.
        copy.synchronize()
        clock.collect()


def _hand_over(
    slot: _DeviceSlot, window: DeviceWindow, compute: Queue, clock: _EventClock
) -> Generator[DeviceWindow]:
    """Let the caller queue its work on a window: after its copy, before the slot's next one."""
    compute.wait_event(slot.copied)
    with clock.timing("arithmetic", compute):
        yield window
    slot.freed.record(compute)


class _DeviceSlot:
    """Memory for one window on the device, with an event for each queue to wait for."""

    def __init__(self, host_slots: HostSlots, spec: ArraySpec, queues: Queues) -> None:
        device, slot_rows = host_slots.device, host_slots.memory.slot_rows
        example = as_stored_tensor(np.empty((0, spec.n_features), spec.storage), spec.dtype)
        self._x_ND = example.new_empty((slot_rows, spec.n_features), device=device)
        self._order_N = torch.empty(slot_rows, dtype=torch.int32, device=device)
        n_weights = slot_rows if host_slots.memory.weighted else 0
        self._weights_N = torch.empty(n_weights, dtype=torch.float64, device=device)
        # Pinned: from other memory the host would wait for this copy and the one before it.
        self._host_order_N = pinned(queues, (slot_rows,), torch.int32)
        self.copied, self.freed = queues.event(), queues.event()

    def fill(
        self,
        host: HostWindow,
        spec: ArraySpec,
        copy: Queue,
        resident: DeviceRows | None,
    ) -> DeviceWindow:
        """Queue the copy of `host`, to begin when the window in the slot has been used."""
        copy.wait_event(self.freed)
        x_ND, order_N = self._x_ND[: len(host.rows_ND)], None
        home_ND = None if resident is None else resident.in_place(host.window, host.on_device)
        if home_ND is None:
            _copy_from_host(x_ND, as_stored_tensor(host.rows_ND, spec.dtype), host)
            if resident is not None:
                _copy_resident(x_ND, resident, host)
        else:
            x_ND = home_ND
        if host.order is not None:
            # The last copy from this memory: two windows ago, so it is over by now.
            self.copied.synchronize()
            host_order_N = self._host_order_N[: len(host.order)]
            host_order_N.copy_(torch.from_numpy(host.order))
            order_N = self._order_N[: len(host.order)]
            order_N.copy_(host_order_N, non_blocking=True)
        weights_N = None
        if host.weights_N is not None:
            weights_N = self._weights_N[: len(host.weights_N)]
            weights_N.copy_(torch.from_numpy(host.weights_N), non_blocking=True)
        self.copied.record(copy)
        return DeviceWindow(host.window, x_ND, order_N, weights_N, home_ND is not None)


def _copy_from_host(x_ND: torch.Tensor, host_ND: torch.Tensor, host: HostWindow) -> None:
    """Queue copies of the rows that were read; of neighbours in the slot one copy together."""
    if not host.on_device:
        x_ND.copy_(host_ND, non_blocking=True)
        return
    start = stop = 0
    for rows, is_there in zip((*host.window.reads, None), (*host.on_device, True), strict=True):
        if is_there:
            if stop > start:
                x_ND[start:stop].copy_(host_ND[start:stop], non_blocking=True)
            start = stop + (0 if rows is None else len(rows))
        stop += 0 if rows is None else len(rows)


def _copy_resident(x_ND: torch.Tensor, resident: DeviceRows, host: HostWindow) -> None:
    """Queue copies of rows from their homes to `x_ND`, and of those that were read to theirs."""
    reads = host.window.reads
    stops = accumulate(map(len, reads))
    for rows, stop, is_there in zip(
        reads, stops, host.on_device or (False,) * len(reads), strict=True
    ):
        x_RD = x_ND[stop - len(rows) : stop]
        if is_there:
            x_RD.copy_(resident.of(rows))
        else:
            resident.keep_(rows, x_RD)


class _EventClock:
    """Times stages on queues by events, which are read only after they have passed."""

    def __init__(self, times: StageTimes, queues: Queues) -> None:
        self._times, self._queues = times, queues
        self._spans: deque[tuple[str, Event, Event]] = deque()
        self._last: dict[str, Event] = {}

    def timing(self, stage: str, queue: Queue) -> Any:
        """Count what is queued on `queue` within a ``with`` block as work of `stage`."""
        return _EventSpan(self, stage, queue)

    def event(self) -> Event:
        return self._queues.event(timed=True)

    def add(self, stage: str, start: Event, end: Event) -> None:
        self._spans.append((stage, start, end))

    def collect(self) -> None:
        """Add up the spans that are over."""
        while self._spans and self._spans[0][2].query():
            stage, start, end = self._spans.popleft()
            idle = self._last[stage].elapsed_time(start) if stage in self._last else 0.0
            self._last[stage] = end
            self._times.add(stage, busy=start.elapsed_time(end) / 1e3, wait=idle / 1e3)


class _EventSpan:
    def __init__(self, clock: _EventClock, stage: str, queue: Queue) -> None:
        self._clock, self._stage, self._queue = clock, stage, queue

    def __enter__(self) -> None:
        self._start = self._clock.event()
        self._start.record(self._queue)

    def __exit__(self, *_: object) -> None:
        end = self._clock.event()
        end.record(self._queue)
        self._clock.add(self._stage, self._start, end)
