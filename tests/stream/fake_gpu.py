"""Queues and events of a GPU, played by fakes that log what is asked of them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch


class FakeGpu:
    """What is queued on every stream, in the order in which the host queues it."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.copy, self.compute = FakeStream(self, "copy"), FakeStream(self, "compute")

    def current(self) -> FakeStream:
        return self.compute

    def new(self) -> FakeStream:
        return self.copy

    def event(self, *, timed: bool = False) -> FakeEvent:
        return FakeEvent(self, is_clock=timed)

    def within(self, queue: FakeStream) -> AbstractContextManager[None]:
        return nullcontext()

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    def lock(self, buffer: np.ndarray) -> str:
        raise AssertionError("the slots are those of a CPU")

    def unlock(self, buffer: np.ndarray) -> None:
        raise AssertionError("the slots are those of a CPU")

    def synchronize(self) -> None:
        self.log.append(("host waits", "all"))

    def position(self, *entry) -> int:
        return self.log.index(entry)


class FakeStream:
    def __init__(self, gpu: FakeGpu, name: str) -> None:
        self.gpu, self.name = gpu, name

    def wait_event(self, event: FakeEvent) -> None:
        self.gpu.log.append(("wait", self.name, event, event.n_records))

    def wait_stream(self, other: FakeStream) -> None:
        self.gpu.log.append(("wait stream", self.name, other.name))

    def synchronize(self) -> None:
        self.gpu.log.append(("host waits", self.name))


class FakeEvent:
    def __init__(self, gpu: FakeGpu, *, is_clock: bool) -> None:
        self.gpu, self.is_clock, self.n_records = gpu, is_clock, 0

    def record(self, stream: FakeStream) -> None:
        self.n_records += 1
        if not self.is_clock:
            self.gpu.log.append(("record", stream.name, self, self.n_records))

    def synchronize(self) -> None:
        self.gpu.log.append(("host waits", self, self.n_records))

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: FakeEvent) -> float:
        return 0.0
