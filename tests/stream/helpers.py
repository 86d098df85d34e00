"""Sources that misbehave on purpose, and a guard against tests that hang."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from streamkm.sources.base import ArraySpec, RowRange
from streamkm.stream.slots import HostSlots, StreamMemory, slot_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.stream.plan import ReadingPlan, Window

T = TypeVar("T")


class FakeSource:
    """Row i holds i in every feature; `on_read` may delay, block or fail a read."""

    name = "fake"

    def __init__(
        self,
        n_rows: int,
        *,
        n_features: int = 2,
        block_rows: int = 10,
        dtype: str = "float32",
        on_read: Callable[[RowRange], None] = lambda rows: None,
    ) -> None:
        self.spec = ArraySpec(n_rows, n_features, dtype, block_rows, "fake")
        self.on_read = on_read
        self.reads: list[RowRange] = []

    def read(self, rows: RowRange, out: np.ndarray) -> None:
        self.reads.append(rows)
        self.on_read(rows)
        out[...] = np.arange(rows.start, rows.stop)[:, None]

    def fingerprint(self) -> str:
        return "fake"

    def notes(self) -> list[str]:
        return []

    def close(self) -> None:
        pass


def slots_for(
    plan: ReadingPlan, source: Any, n_slots: int = 2, n_readers: int = 2, *, weighted: bool = False
) -> HostSlots:
    """Slots on the CPU that the plan's windows just fit."""
    rows = plan.window_rows
    n_bytes = slot_bytes(rows, source.spec.row_bytes, weighted=weighted)
    memory = StreamMemory(n_slots, rows, n_bytes, n_readers, weighted)
    return HostSlots(memory, torch.device("cpu"))


def reader_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("streamkm-reader")]


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns; fails instead of hanging if it takes longer."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:  # noqa: BLE001  # it is raised below
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, f"nothing after {seconds} s: a deadlock"
    value, error = outcome[0]
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether `condition` becomes true in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


def rows_of(window: Window) -> np.ndarray:
    """Rows of the array that a window uses, in the order of use."""
    read = np.concatenate([np.arange(rows.start, rows.stop) for rows in window.reads])
    order = window.order()
    return read if order is None else read[order]


def batches_of(window: Window) -> list[np.ndarray]:
    """Rows of the array in each batch of a window."""
    rows, edges = rows_of(window), window.batch_edges
    return [rows[a:b] for a, b in pairwise(edges)]
