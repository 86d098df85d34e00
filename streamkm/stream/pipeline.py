"""The way from a source to the device: slots, reader threads and transfer in one call."""

from __future__ import annotations

from contextlib import closing, contextmanager
from itertools import chain
from typing import TYPE_CHECKING

from streamkm.devices import is_host
from streamkm.stream.prefetch import prefetch
from streamkm.stream.slots import HostSlots
from streamkm.stream.tensor_source import rows_in_memory, tensor_on
from streamkm.stream.transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from streamkm.sources.base import Source
    from streamkm.sources.weights import Weights
    from streamkm.stream.plan import Window
    from streamkm.stream.slots import StreamMemory
    from streamkm.stream.stages import StageTimes
    from streamkm.stream.transfer import DeviceWindow

__all__ = ["open_slots", "stream"]


def open_slots(source: Source, memory: StreamMemory, device: torch.device) -> HostSlots:
    """The slots of a run of `source` on `device`, page-locked there if rows are read into them."""
    return HostSlots(memory, device, locked=tensor_on(source, device) is None)


@contextmanager
def stream(
    source: Source,
    windows: Iterator[Window],
    slots: HostSlots,
    times: StageTimes,
    weights: Weights | None = None,
) -> Iterator[Iterator[DeviceWindow]]:
    """Yield an iterator of `windows` of `source` on the slots' device, in order.

    Windows are read ahead as far as the slots allow. With `weights` each window brings those of
    its rows. Rows that lie on the device already are copied there, or used there, not read.
    """
    times.n_readers = max(slots.memory.n_readers, 1)
    there_ND = tensor_on(source, slots.device)
    first = next(windows, None)
    if first is not None:
        windows = chain((first,), windows)
        # Of windows of many parts the readers make copies, beside the arithmetic.
        if is_host(slots.device) and there_ND is None and first.one_read is not None:
            there_ND = rows_in_memory(source)
    ahead = prefetch(
        source, windows, slots, slots.memory.n_readers, times, weights, rows=there_ND is None
    )
    with (
        ahead as host_windows,
        closing(to_device(host_windows, source.spec, slots, times, there_ND)) as device_windows,
    ):
        yield device_windows
