"""Accounts for the time of an attempt: by phase, and by what or who held the passes up."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamkm.distributed.world import World
    from streamkm.runs.engine.probe import Probe
    from streamkm.stream.stages import StageTimes

__all__ = [
    "PhaseClock",
    "Waiting",
    "hosts_of",
    "process_figures",
    "process_lines",
    "stage_figures",
    "stage_line",
]

#: A process held the others up if its busy time exceeds their median by this factor, and by this
#: number of seconds.
HELD_UP, HELD_UP_S = 1.2, 1.0
#: Machines that a line names, at most.
MOST_NAMED = 4


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
    if assigned.total():
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


# ---- several processes ----------------------------------------------------------------------


class Waiting:
    """Tells the time that a process waits for others from that of its own arithmetic.

    Both pass while the process works on a window. Only the host's waiting is known: on a GPU the
    device waits.
    """

    def __init__(self, world: World, *, on_host: bool) -> None:
        self._world, self._on_host = world, on_host
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self.seconds, self._before = 0.0, self._world.waited_s

    def count(self, times: StageTimes) -> None:
        """Move what this process has waited since the last call to the right place in `times`."""
        now = self._world.waited_s
        spent, self._before = now - self._before, now
        self.seconds += spent
        if self._on_host:
            # Some of it may have passed between two windows.
            within = min(spent, times.busy("arithmetic"))
            times.add("arithmetic", busy=-within, wait=spent)


def hosts_of(world: World) -> str:
    """The machines of the processes, each with its number of them: ``a: 2, b: 2``."""
    counts = Counter(world.hosts)
    if len(counts) == 1:
        return world.host
    named = [f"{host}: {n}" for host, n in counts.most_common(MOST_NAMED)]
    more = len(counts) - len(named)
    return ", ".join([*named, *([f"{more} more machines"] if more else [])])


def process_figures(
    world: World, times: StageTimes, waited_s: float, assigned: Counter[str]
) -> list[dict[str, Any]]:
    """Where the time of each process went while rows streamed, in the order of ranks.

    A collective. `assigned` counts the rows of this process.
    """
    own = {
        "rank": world.rank,
        "host": world.host,
        "rows": assigned.total(),
        "elapsed_s": round(times.elapsed_s, 4),
        "waited_s": round(waited_s, 4),
        "stages": times.as_dict(),
    }
    return world.gather(own)


def process_lines(processes: list[dict[str, Any]]) -> list[str]:
    """The same for people: how long they waited for each other, and for whom."""
    waited = [each["waited_s"] for each in processes]
    elapsed_s = max(each["elapsed_s"] for each in processes)
    total = (
        f"waiting for other processes and the network: {median(waited):.2f} s in the median, "
        f"{min(waited):.2f} to {max(waited):.2f} s, of the {elapsed_s:.1f} s that rows streamed"
    )
    busy = [max(each["elapsed_s"] - each["waited_s"], 0.0) for each in processes]
    slowest = max(range(len(processes)), key=busy.__getitem__)
    others = median(busy[:slowest] + busy[slowest + 1 :])
    longer = busy[slowest] - others
    if longer > max((HELD_UP - 1) * others, HELD_UP_S):
        late = processes[slowest]
        stage = max(late["stages"], key=lambda name: late["stages"][name]["busy_s"])
        return [
            total,
            (
                f"note: process {late['rank']} on {late['host']} held the others up: it was busy "
                f"{busy[slowest]:.1f} s, the others {others:.1f} s in the median; its bottleneck "
                f"is {stage}"
            ),
        ]
    return [total]
