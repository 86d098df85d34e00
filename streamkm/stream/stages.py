"""Counts how long each stage of a stream worked and waited: reading, copying, arithmetic.

The stage that worked longest is the bottleneck, which a run names at its end.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

__all__ = ["STAGES", "TOO_SHORT_S", "Span", "StageTimes"]

STAGES = ("reading", "copying", "arithmetic")
#: Seconds of streaming below which no stage is called the bottleneck: the line would say 0.0 s.
TOO_SHORT_S = 0.05


@dataclass
class StageTimes:
    """Seconds that each stage has worked and waited in a phase; any thread may add to them."""

    n_readers: int = 1
    busy_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    wait_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    bytes_read: int = 0
    working_since: dict[str, float] = field(default_factory=dict, repr=False)
    """When each stage that is at work began its current work."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _started: float = field(default_factory=time.perf_counter, repr=False)

    def add(self, stage: str, *, busy: float = 0.0, wait: float = 0.0, n_bytes: int = 0) -> None:
        """Add seconds to a stage; those of a reader thread are divided by `n_readers`."""
        share = self.n_readers if stage == "reading" else 1
        with self._lock:
            self.busy_s[stage] += busy / share
            self.wait_s[stage] += wait / share
            self.bytes_read += n_bytes

    def waiting(self, stage: str) -> Span:
        """Count the time of a ``with`` block as waiting."""
        return Span(self, stage, "wait")

    def working(self, stage: str, n_bytes: int = 0) -> Span:
        """Count the time of a ``with`` block as work, in which `n_bytes` are read.

        Where that is known only at the end, the block sets the span's `n_bytes`.
        """
        return Span(self, stage, "busy", n_bytes)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    def busy(self, stage: str) -> float:
        """Seconds that `stage` has worked, its current work included."""
        since = self.working_since.get(stage)
        return self.busy_s[stage] + (time.perf_counter() - since if since is not None else 0.0)

    def bottleneck(self) -> str:
        """The stage that worked longest; of equals the last in the order of `STAGES`."""
        return max(reversed(STAGES), key=self.busy)

    def summary(self, reached: str = "") -> str:
        """One line: the bottleneck, and how long each stage worked and waited.

        `reached` compares the speed of the bottleneck with the most that it can do. The line is
        empty where rows streamed for less than `TOO_SHORT_S`, unless that was compared.
        """
        if self.elapsed_s < TOO_SHORT_S and not reached:
            return ""
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


class Span:
    """A ``with`` block whose time goes to one stage."""

    def __init__(self, times: StageTimes, stage: str, kind: str, n_bytes: int = 0) -> None:
        self._times, self._stage, self._kind, self.n_bytes = times, stage, kind, n_bytes

    def __enter__(self) -> Span:
        self._from = time.perf_counter()
        # There are several readers; each other stage works on one window at a time.
        if self._kind == "busy" and self._stage != "reading":
            self._times.working_since[self._stage] = self._from
        return self

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._from
        self._times.working_since.pop(self._stage, None)
        self._times.add(self._stage, **{self._kind: spent}, n_bytes=self.n_bytes)
