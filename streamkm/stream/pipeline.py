"""Source to device in one call: slots, reader threads and transfer put together."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from streamkm.stream.prefetch import prefetch
from streamkm.stream.transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamkm.sources.base import Source
    from streamkm.sources.weights import Weights
    from streamkm.stream.plan import Window
    from streamkm.stream.slots import HostSlots
    from streamkm.stream.stages import StageTimes
    from streamkm.stream.transfer import DeviceWindow

__all__ = ["stream"]


@contextmanager
def stream(
    source: Source,
    windows: Iterator[Window],
    slots: HostSlots,
    times: StageTimes,
    weights: Weights | None = None,
) -> Iterator[Iterator[DeviceWindow]]:
    """`windows` of `source` on the slots' device, in order, read ahead as far as slots allow.

    With `weights`, those of the rows come along.
    """
    times.n_readers = max(slots.memory.n_readers, 1)
    with (
        prefetch(source, windows, slots, slots.memory.n_readers, times, weights) as host_windows,
        closing(to_device(host_windows, source.spec, slots, times)) as device_windows,
    ):
        yield device_windows
