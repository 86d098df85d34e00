"""The fixture that every benchmark measures with.

pytest-benchmark times one function. Contenders must take turns, since the load
of the machine changes. So the function is a round, in which each contender runs
once; the samples of each contender are kept beside it.
"""

from __future__ import annotations

import time
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from bench.measure import SESSION_PLUGIN, Comparison, Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture


class Measure(Protocol):
    """Run each contender once a round, after a warm-up, and keep what they return."""

    def __call__(
        self,
        name: str,
        unit: str,
        contenders: dict[str, Callable[[], float]],
        *,
        rounds: int | None = None,
        warmup: bool = True,
    ) -> Comparison: ...


@pytest.fixture
def session(pytestconfig: pytest.Config) -> Session:
    """What `python -m bench` was asked for; without it, the quick sizes."""
    found: Any = pytestconfig.pluginmanager.get_plugin(SESSION_PLUGIN)
    return found if isinstance(found, Session) else Session()


#: Pause before every sample: threads of OpenMP that the last contender used spin for a while.
PAUSE_S = 0.02


@pytest.fixture
def measure(
    benchmark: BenchmarkFixture, session: Session, request: pytest.FixtureRequest
) -> Measure:
    pedantic: Any = benchmark.pedantic  # it has no types

    def run(
        name: str,
        unit: str,
        contenders: dict[str, Callable[[], float]],
        *,
        rounds: int | None = None,
        warmup: bool = True,
    ) -> Comparison:
        samples: dict[str, list[float]] = {contender: [] for contender in contenders}
        numbers = count()

        def one_round() -> None:
            # Forward, then backward: no contender is always first, or always after the same one.
            order = list(contenders) if next(numbers) % 2 == 0 else list(reversed(contenders))
            for contender in order:
                time.sleep(PAUSE_S)
                samples[contender].append(contenders[contender]())

        if warmup:
            for contender in contenders.values():
                contender()
        benchmark.group = request.node.path.stem.removeprefix("test_")
        pedantic(one_round, rounds=rounds or session.rounds)
        comparison = Comparison(benchmark.group, name, unit, samples)
        benchmark.extra_info.update(comparison.as_dict())
        session.comparisons.append(comparison)
        return comparison

    return run
