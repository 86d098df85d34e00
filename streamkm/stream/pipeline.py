"""The way from a source to the device: slots, reader threads and transfer in one call."""

from __future__ import annotations

import logging
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from streamkm.sources.kept import KeptRows
from streamkm.stream.prefetch import prefetch
from streamkm.stream.residency import DeviceRows
from streamkm.stream.seat import Seat
from streamkm.stream.slots import HostSlots
from streamkm.stream.tensor_source import tensor_on
from streamkm.stream.transfer import as_stored_tensor, to_device

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamkm.sources.base import ArraySpec, Source
    from streamkm.sources.kept import Homes
    from streamkm.sources.weights import Weights
    from streamkm.stream.plan import Window
    from streamkm.stream.slots import StreamMemory
    from streamkm.stream.stages import StageTimes
    from streamkm.stream.transfer import DeviceWindow

__all__ = ["open_slots", "stream"]

logger = logging.getLogger("streamkm")


def open_slots(
    source: Source,
    memory: StreamMemory,
    device: torch.device,
    homes: tuple[Homes, Homes] | None = None,
) -> HostSlots:
    """The slots of a run of `source` on `device`, page-locked there if rows are read into them.

    `homes` are those of rows that stay on the device, and in host memory, once they were read.
    """
    slots = HostSlots(
        memory, device,
        locked=tensor_on(source, device) is None, first_byte=source.spec.first_byte,
    )  # fmt: skip
    on_device, on_host = homes or (None, None)
    if on_host is not None and on_host.n_kept:
        slots.kept = KeptRows(source, on_host)
    if on_device is not None and on_device.n_kept:
        slots.on_device = _device_rows(source.spec, on_device, device)
    return slots


def _device_rows(spec: ArraySpec, homes: Homes, device: torch.device) -> DeviceRows | None:
    """Memory for `homes` on `device`; None if it refuses, which a warning says."""
    example = as_stored_tensor(np.empty((0, spec.n_features), spec.storage), spec.dtype)
    shape = (homes.room_rows, spec.n_features)
    try:
        return DeviceRows(example.new_empty(shape, device=device), homes, spec.block_rows)
    except torch.OutOfMemoryError:
        logger.warning(
            "%s refuses %d bytes to keep rows in: every pass copies them there again; a smaller "
            "max-device-memory keeps fewer",
            device, homes.room_rows * spec.row_bytes,
        )  # fmt: skip
        return None


@contextmanager
def stream(
    source: Source,
    windows: Iterator[Window],
    slots: HostSlots,
    times: StageTimes,
    weights: Weights | None = None,
    order: int | None = None,
) -> Iterator[Iterator[DeviceWindow]]:
    """Yield an iterator of `windows` of `source` on the slots' device, in order.

    Windows are read ahead as far as the slots allow. With `weights` each window brings those of
    its rows. Rows that lie on the device are copied there, or used there, and not read. Nor are
    those that stay in host memory, which are of the `source` that the slots were opened with.

    `order` says where the pass stands among those of a run; None if it is no whole pass. Runs that
    have seats in place of slots share the windows of passes.
    """
    if isinstance(slots, Seat):
        with slots.stream(windows, times, order) as device_windows:
            yield device_windows
        return
    times.n_readers = max(slots.memory.n_readers, 1)
    there_ND = tensor_on(source, slots.device)
    resident = slots.on_device if there_ND is None else DeviceRows.of_all(there_ND)
    kept = source if slots.kept is None else slots.kept
    ahead = prefetch(kept, windows, slots, slots.memory.n_readers, times, weights, resident)
    with (
        ahead as host_windows,
        closing(to_device(host_windows, source.spec, slots, times, resident)) as device_windows,
    ):
        yield device_windows
