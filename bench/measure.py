"""Samples of several contenders, taken in turn, and their statistics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "DEFAULT_FOLDER",
    "SESSION_PLUGIN",
    "Comparison",
    "Session",
    "Target",
    "rate",
    "seconds",
    "take_turns",
]

#: Folder of generated arrays: beside the code, but outside git.
DEFAULT_FOLDER = Path(__file__).parent / ".data"
#: Name by which pytest hands the session to the benchmarks.
SESSION_PLUGIN = "streamkm-bench-session"


@dataclass(frozen=True)
class Target:
    """What a figure should reach, and whether it does."""

    text: str
    reached: bool


@dataclass
class Comparison:
    """Samples of one figure by contender; the first contender is compared with the others."""

    group: str
    name: str
    unit: str
    samples: dict[str, list[float]]
    target: Target | None = None
    remark: str = ""
    """A line below the figure in the table."""
    extra: dict[str, Any] = field(default_factory=dict)
    """For the JSON file only."""

    def median(self, contender: str) -> float:
        return median(self.samples[contender])

    def ratio(self, peer: str) -> float:
        """Median of the first contender over the median of `peer`."""
        return self.median(next(iter(self.samples))) / self.median(peer)

    def statistics(self, contender: str) -> dict[str, float]:
        values = self.samples[contender]
        low, _, high = quantiles(values, n=4) if len(values) > 1 else values * 3
        return {
            "median": median(values),
            "min": min(values),
            "max": max(values),
            "iqr": high - low,
            "rounds": len(values),
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        first, *peers = self.samples
        return {
            "group": self.group,
            "name": self.name,
            "unit": self.unit,
            "contenders": {
                name: {**self.statistics(name), "samples": values}
                for name, values in self.samples.items()
            },
            "compared": {f"{first} / {peer}": self.ratio(peer) for peer in peers},
            "target": None if self.target is None else vars(self.target),
            "remark": self.remark,
            **self.extra,
        }


@dataclass
class Session:
    """What the benchmarks are asked for, and the comparisons that they have made."""

    rounds: int = 5
    quick: bool = True
    data: Path = DEFAULT_FOLDER
    comparisons: list[Comparison] = field(default_factory=list)


def seconds(action: Callable[[], object]) -> Callable[[], float]:
    """A contender whose samples are the seconds that `action` takes."""

    def sample() -> float:
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    return sample


def rate(work: float, action: Callable[[], object]) -> Callable[[], float]:
    """A contender whose samples are `work` divided by the seconds that `action` takes."""
    timed = seconds(action)
    return lambda: work / timed()


def take_turns(
    actions: Mapping[str, Callable[[], object]], n_rounds: int
) -> dict[str, list[float]]:
    """Seconds of each of `actions` in every round, after one that does not count.

    Their order changes from round to round.
    """
    for action in actions.values():
        action()
    samples: dict[str, list[float]] = {name: [] for name in actions}
    for round_ in range(n_rounds):
        for name in sorted(actions, reverse=bool(round_ % 2)):
            samples[name].append(seconds(actions[name])())
    return samples
