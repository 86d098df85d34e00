"""Brings the tensors of a state to the host while the device works on.

A copy is made on the device, in the queue of the arithmetic, so that it is of one moment. From
there a queue of its own brings it to page-locked memory, which is allocated once. To copy from the
state itself was rejected: the next step would have to wait for the link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkm.devices import is_host, queues_of
from streamkm.stream.slots import pinned

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import torch

    from streamkm.devices import Queue

__all__ = ["Fetcher"]


class Fetcher:
    """Fetches tensors from `device`, which queues its work; see `streamkm.devices`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._queue: Queue | None = None
        self._held: dict[str, torch.Tensor] = {}

    def fetch(self, tensors: dict[str, torch.Tensor]) -> Callable[[], dict[str, np.ndarray]]:
        """Begin to fetch `tensors` as they are now; what is returned waits for them.

        Call it before the next `fetch`: its arrays are overwritten then.
        """
        queues = queues_of(self._device)
        assert queues is not None
        self._queue = self._queue or queues.new()
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        arrays, event = {}, queues.event()
        self._queue.wait_stream(queues.current())
        with queues.within(self._queue):
            for name, copy in copies.items():
                fetched = copy
                if not is_host(copy.device):
                    held = self._held.get(name)
                    if held is None or (held.shape, held.dtype) != (copy.shape, copy.dtype):
                        held = self._held[name] = pinned(queues, tuple(copy.shape), copy.dtype)
                    fetched = held.copy_(copy, non_blocking=True)
                arrays[name] = fetched.contiguous().numpy()
            event.record(self._queue)

        def wait() -> dict[str, np.ndarray]:
            event.synchronize()
            copies.clear()  # Nothing reads from their memory any more.
            return arrays

        return wait
