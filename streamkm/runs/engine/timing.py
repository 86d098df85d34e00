"""Accounts for the time of an attempt: by phase, and by what held the passes up."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from streamkm.runs.engine.probe import Probe
    from streamkm.stream.stages import StageTimes

__all__ = ["PhaseClock", "stage_figures", "stage_line"]


class PhaseClock:
    """Seconds that one attempt has spent in each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of a ``with`` block as time of the phase `name`."""
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def __str__(self) -> str:
        total = time.perf_counter() - self._began
        # Between the phases: taking up a checkpoint, saving the last one.
        rest = total - sum(self.seconds.values())
        seconds = self.seconds | ({"other": rest} if rest >= total / 200 else {})
        shares = (f"{name} {spent / total:.0%}" for name, spent in seconds.items())
        return f"time: {total:.1f} s ({', '.join(shares)})"


def stage_figures(
    times: StageTimes, probe: Probe | None, clock: PhaseClock, assigned: Counter[str]
) -> dict[str, Any]:
    """Figures of time, for the last record of metrics.jsonl; rates only if rows were assigned.

    `assigned` counts those rows by phase.
    """
    figures: dict[str, Any] = {
        "seconds": {name: round(spent, 4) for name, spent in clock.seconds.items()}
    }
    if assigned:
        stage, rate = times.bottleneck(), assigned.total() / times.elapsed_s
        figures["bottleneck"] = stage
        figures["busy_share"] = round(times.busy(stage) / times.elapsed_s, 4)
        figures["rows_per_s"] = round(rate, 1)
        if probe is not None:
            ceiling = replace(probe, rows=assigned).ceiling(stage)
            figures["probe_rows_per_s"] = round(ceiling, 1)
            figures["share_of_probe"] = round(rate / ceiling, 4)
    return figures


def stage_line(
    times: StageTimes, probe: Probe | None, assigned: Counter[str], figures: dict[str, Any]
) -> str:
    """The same for people, from the `figures` that `stage_figures` gives."""
    if probe is None:
        return times.summary()
    bounds = replace(probe, rows=assigned)
    return times.summary(bounds.reached(figures["bottleneck"], figures["rows_per_s"]))
