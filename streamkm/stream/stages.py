"""How long reading, copying and arithmetic each worked and waited.

The stage that worked longest holds the others up: that is the bottleneck which
a run names at its end.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["STAGES", "StageTimes"]

STAGES = ("reading", "copying", "arithmetic")


@dataclass
class StageTimes:
    """Seconds that each stage worked and waited since the start of a phase; thread-safe."""

    n_readers: int = 1
    busy_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    wait_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    bytes_read: int = 0
    working_since: dict[str, float] = field(default_factory=dict, repr=False)
    """When the work that a stage has in hand began, where it has any."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _started: float = field(default_factory=time.perf_counter, repr=False)

    def add(self, stage: str, *, busy: float = 0.0, wait: float = 0.0, n_bytes: int = 0) -> None:
        """Add to a stage; a reader thread adds its share of the readers' time."""
        share = self.n_readers if stage == "reading" else 1
        with self._lock:
            self.busy_s[stage] += busy / share
            self.wait_s[stage] += wait / share
            self.bytes_read += n_bytes

    def waiting(self, stage: str) -> AbstractContextManager[None]:
        """Count the time of a ``with`` block as waiting."""
        return _Span(self, stage, "wait")

    def working(self, stage: str, n_bytes: int = 0) -> AbstractContextManager[None]:
        """Count the time of a ``with`` block as work, and `n_bytes` as read in it."""
        return _Span(self, stage, "busy", n_bytes)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    def busy(self, stage: str) -> float:
        """Seconds that `stage` has worked, its work in hand included."""
        since = self.working_since.get(stage)
        return self.busy_s[stage] + (time.perf_counter() - since if since is not None else 0.0)

    def bottleneck(self) -> str:
        """The stage that worked longest; of equals, the one nearest to the result."""
        return max(reversed(STAGES), key=self.busy)

    def summary(self, reached: str = "") -> str:
        """One line: which stage held the others up, and how long each worked and waited.

        `reached` says what that stage did of what it could have done.
        """
        parts = ", ".join(
            f"{stage} worked {self.busy(stage):.2f} s and waited {self.wait_s[stage]:.2f} s"
            for stage in STAGES
            if self.busy(stage) > 0
        )
        stage, elapsed_s = self.bottleneck(), self.elapsed_s
        busy = (
            f"busy {self.busy(stage) / elapsed_s:.0%} of the {elapsed_s:.1f} s that rows streamed"
        )
        return "; ".join(filter(None, (f"bottleneck: {stage}, {busy}", reached, parts)))

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Seconds by stage, for JSON."""
        with self._lock:
            return {
                stage: {
                    "busy_s": round(self.busy(stage), 4),
                    "wait_s": round(self.wait_s[stage], 4),
                }
                for stage in STAGES
            }


class _Span:
    """A ``with`` block whose time goes to one stage."""

    def __init__(self, times: StageTimes, stage: str, kind: str, n_bytes: int = 0) -> None:
        self._times, self._stage, self._kind, self._n_bytes = times, stage, kind, n_bytes

    def __enter__(self) -> None:
        self._from = time.perf_counter()
        # Readers are several; the other stages work on one thing at a time.
        if self._kind == "busy" and self._stage != "reading":
            self._times.working_since[self._stage] = self._from

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._from
        self._times.working_since.pop(self._stage, None)
        self._times.add(self._stage, **{self._kind: spent}, n_bytes=self._n_bytes)
