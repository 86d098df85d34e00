"""What each stage of a run can do alone: a short measurement before the first epoch.

Each stage is measured on the run's own rows and settings while nothing else runs: reading
by as many threads into the same slots, copying out of them, arithmetic by the same kernel
on a copy of the state that is thrown away. On the CPU reading and arithmetic
share the cores: beside what each does alone there is the bound that cores x time must hold
the processor time of both. What was read is in the page cache afterwards.
"""

from __future__ import annotations

import os
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, count, islice, takewhile
from typing import TYPE_CHECKING, Any

from streamkm.clustering.algorithm import closing_algorithm, make_algorithm
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import RunningMoments
from streamkm.clustering.state import KMeansState
from streamkm.config import format_bytes
from streamkm.devices import is_host, synchronize
from streamkm.runs.engine.run_kernel import RunKernel
from streamkm.stream.prefetch import prefetch
from streamkm.stream.stages import StageTimes
from streamkm.stream.transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from streamkm.clustering.algorithm import Algorithm
    from streamkm.clustering.scaling import Scaling
    from streamkm.runs.planning.fit_plan import FitPlan
    from streamkm.stream.plan import Window
    from streamkm.stream.prefetch import HostWindow
    from streamkm.stream.slots import HostSlots
    from streamkm.stream.transfer import DeviceWindow

__all__ = ["PROBE_S", "Alone", "Probe", "Prober", "format_rate"]

#: How long a stage is measured, and on how many windows at most (a window is 64 MiB, or one
#: block where that is more; the one that is in hand is finished).
PROBE_S, PROBE_WINDOWS = 0.4, 8
#: The unit, at least, in which the system gives memory.
PAGE_BYTES = 4096


@dataclass(frozen=True)
class Alone:
    """One stage with nothing beside it."""

    rows_per_s: float
    core_s_per_row: float
    """Seconds of processor time that a row takes on the host, all threads together."""


@dataclass(frozen=True)
class Probe:
    """What was measured, and what follows for all stages together."""

    moving: dict[str, Alone]
    """``reading``, and ``copying`` where there is any."""
    arithmetic: dict[str, Alone]
    """By phase: the closing pass does other work than those of mini-batches."""
    rows: dict[str, int]
    """Rows of each of these phases: what their arithmetic is averaged by."""
    n_cores: int
    on_host: bool
    """Whether the arithmetic takes the cores that reading needs too."""
    overlaps: bool
    """Whether there are threads that read beside the arithmetic."""
    row_bytes: int
    seconds: float
    """How long the probe took."""

    @property
    def stages(self) -> dict[str, Alone]:
        """Every stage by its name, the arithmetic as an average."""
        total = sum(self.rows.values())
        shares = {phase: n_rows / total for phase, n_rows in self.rows.items() if n_rows}
        # Only Lloyd's algorithm closes without having planned to, by nearly the same work.
        (*_, last) = self.arithmetic.values()
        done = {phase: self.arithmetic.get(phase, last) for phase in shares}
        average = Alone(
            1 / sum(shares[phase] / alone.rows_per_s for phase, alone in done.items()),
            sum(shares[phase] * alone.core_s_per_row for phase, alone in done.items()),
        )
        return {**self.moving, "arithmetic": average}

    @property
    def together(self) -> float | None:
        """Rows a second that the cores allow for all stages; None if no stage takes another's."""
        if not self.on_host:
            return None
        if not self.overlaps:
            return 1 / sum(1 / stage.rows_per_s for stage in self.stages.values())
        return self.n_cores / sum(stage.core_s_per_row for stage in self.stages.values())

    @property
    def most_rows_per_s(self) -> float:
        """Rows a second of the slowest stage, or of all together if that is less."""
        return min(self.ceiling(stage) for stage in self.stages)

    def ceiling(self, stage: str) -> float:
        """Rows a second that `stage` can do at most beside the others."""
        alone = self.stages[stage].rows_per_s
        return alone if self.together is None else min(alone, self.together)

    def reached(self, stage: str, rows_per_s: float) -> str:
        """What share of the ceiling of `stage` a rate is, in words."""
        ceiling = self.ceiling(stage)
        alone = ceiling == self.stages[stage].rows_per_s
        of = "what the probe measured for it alone" if alone else self._shared_by()
        rates = f"{_millions(rows_per_s)} of {_millions(ceiling)} million rows/s"
        return f"{rows_per_s / ceiling:.2f} of {of} ({rates})"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        measured = self._measured()
        return {
            "seconds": round(self.seconds, 3),
            "cores": self.n_cores,
            "rows_per_s": {name: round(alone.rows_per_s, 1) for name, alone in measured.items()},
            "core_s_per_million_rows": {
                name: round(1e6 * alone.core_s_per_row, 4) for name, alone in measured.items()
            },
            "together_rows_per_s": None if self.together is None else round(self.together, 1),
        }

    def lines(self) -> list[str]:
        """The same for people."""
        said = [
            f"{name} {format_rate(alone.rows_per_s)}" for name, alone in self._measured().items()
        ]
        said[0] += f" ({format_bytes(self.moving['reading'].rows_per_s * self.row_bytes)}/s)"
        line = f"probe ({self.seconds:.1f} s), each alone: {', '.join(said)}"
        if self.together is not None and self.together == self.most_rows_per_s:
            line += f"; {self._shared_by()}: {format_rate(self.together)}"
        return [line, "note: what the probe read is in the page cache now"]

    def _measured(self) -> dict[str, Alone]:
        arithmetic = {f"arithmetic ({phase})": alone for phase, alone in self.arithmetic.items()}
        return {**self.moving, **arithmetic}

    def _shared_by(self) -> str:
        if not self.overlaps:
            return "what reading and arithmetic can do in turns"
        cores = "1 core" if self.n_cores == 1 else f"{self.n_cores} cores"
        return f"what {cores} can do of reading and arithmetic together"


@dataclass(frozen=True)
class Prober:
    """Measures the stages of one fit; leaves nothing behind but warm pages."""

    plan: FitPlan
    slots: HostSlots
    scaling: Scaling
    pause: Callable[[], None] = lambda: None
    """Is called between windows and batches, and may raise."""

    def measure(self, state: KMeansState, *, closing_only: bool = False) -> Probe:
        """All stages, the arithmetic on copies of `state`; `closing_only` where training is over.

        Training is averaged as if it made all its epochs.
        """
        plan, began = self.plan, time.perf_counter()
        on_host = is_host(plan.device)
        # Memory that is touched for the first time costs more than what is read into it.
        for buffer in self.slots.buffers:
            buffer[::PAGE_BYTES] = 0
        moving = {"reading": self._reading()}
        if not on_host:
            moving["copying"] = self._copying()
        # Kernels of its own: the run's counts the rows that it had to score again.
        kernel, config, n_rows = RunKernel(plan), plan.config, plan.reading.n_rows
        algorithms: dict[str, Algorithm] = {}
        rows: dict[str, int] = {}
        if not closing_only:
            algorithms["train"] = make_algorithm(kernel.for_clusters, config, n_rows)
            rows["train"] = config.epochs * n_rows
        if closing_only or config.closes:
            algorithms["close"] = closing_algorithm(kernel.for_clusters, config)
            rows["close"] = n_rows
        with kernel.cores():
            arithmetic = {
                phase: self._arithmetic(self._training(state, algorithm))
                for phase, algorithm in algorithms.items()
            }
        return Probe(
            moving,
            arithmetic,
            rows,
            _n_cores(),
            on_host,
            plan.memory.stream.n_readers > 0,
            plan.source.spec.row_bytes,
            time.perf_counter() - began,
        )

    def moments(self) -> Alone:
        """The arithmetic of the pass for the statistics of scaling."""
        moments = RunningMoments.empty(self.plan.source.spec.n_features, self.plan.device)

        def update(window: DeviceWindow, _: int, rows: torch.Tensor | slice) -> None:
            weights_N = window.weights_N
            moments.update_(window.taken(rows), None if weights_N is None else weights_N[rows])

        return self._arithmetic(update)

    def _windows(self) -> Iterator[Window]:
        plan = self.plan.reading
        epochs = (plan.windows(epoch) for epoch in count())
        return islice(chain.from_iterable(epochs), PROBE_WINDOWS)

    @contextmanager
    def _host_windows(self, n_threads: int, times: StageTimes) -> Iterator[Iterator[HostWindow]]:
        source, weights = self.plan.source, self.plan.weights
        with prefetch(source, self._windows(), self.slots, n_threads, times, weights) as windows:
            yield windows

    def _reading(self) -> Alone:
        n_readers = self.plan.memory.stream.n_readers
        times, watch = StageTimes(n_readers=max(n_readers, 1)), _Stopwatch()
        with watch, self._host_windows(n_readers, times) as host_windows:
            for host in host_windows:
                host.release()
                self.pause()
                if times.elapsed_s >= PROBE_S:
                    break
        # Blocks of windows that were not awaited count: the threads have finished them.
        n_rows = times.bytes_read / self.plan.source.spec.row_bytes
        return Alone(n_rows / times.busy_s["reading"], watch.core_s / n_rows)

    def _copying(self) -> Alone:
        """Pinned host memory to the device, by the streams and slots of a run."""
        watch, n_rows = _Stopwatch(), 0
        with self._host_windows(0, StageTimes()) as host_windows:
            host = next(host_windows)
            # (The slot is not given back, whoever releases the window: one window is read.)
            host.release = _keep
            again = takewhile(lambda _: watch.wall_s < PROBE_S, (host for _ in count()))
            with closing(
                to_device(again, self.plan.source.spec, self.slots, StageTimes())
            ) as windows:
                next(windows)  # Which makes the device's slots.
                self._synchronize()
                with watch:
                    for window in windows:
                        n_rows += window.window.n_rows
                        watch.lap()
                    self._synchronize()
        return Alone(n_rows / watch.wall_s, watch.core_s / n_rows)

    def _training(
        self, state: KMeansState, algorithm: Algorithm
    ) -> Callable[[DeviceWindow, int, torch.Tensor | slice], None]:
        plan = self.plan
        state = KMeansState(**{name: held.clone() for name, held in state.tensors().items()})
        prepare = Preparation.for_kernel(
            self.scaling, algorithm.kernel, batch_rows=plan.config.batch_rows,
            stored=plan.stored, dtype=plan.dtype,
        )  # fmt: skip
        algorithm.begin_epoch_(state)

        def update(window: DeviceWindow, index: int, rows: torch.Tensor | slice) -> None:
            batch = prepare(window.x_ND, rows, window.weights_N)
            algorithm.update_(state, batch, epoch=window.window.epoch, index=index)

        return update

    def _arithmetic(
        self, update: Callable[[DeviceWindow, int, torch.Tensor | slice], None]
    ) -> Alone:
        """`update` on batches that are on the device, read between the measured parts."""
        spec = self.plan.source.spec
        watch, n_rows, is_first = _Stopwatch(), 0, True
        with (
            self._host_windows(0, StageTimes()) as host_windows,
            closing(to_device(host_windows, spec, self.slots, StageTimes())) as windows,
        ):
            for window in windows:
                self._synchronize()
                for index, rows in window.batches():
                    with watch:
                        update(window, index, rows)
                        if is_first:
                            self._synchronize()
                    n_rows += len(window.x_ND[rows]) if isinstance(rows, slice) else len(rows)
                    # The first batch touches memory that is new; it counts if it is that slow.
                    if is_first and watch.wall_s < PROBE_S:
                        watch, n_rows = _Stopwatch(), 0
                    is_first = False
                    self.pause()
                    if watch.wall_s >= PROBE_S:
                        break
                with watch:
                    self._synchronize()
                if watch.wall_s >= PROBE_S:
                    break
        return Alone(n_rows / watch.wall_s, watch.core_s / n_rows)

    def _synchronize(self) -> None:
        synchronize(self.plan.device)


class _Stopwatch:
    """Adds up the seconds of ``with`` blocks, and the processor time of all threads in them."""

    def __init__(self) -> None:
        self.wall_s = self.core_s = 0.0

    def __enter__(self) -> None:
        self._from = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.lap()

    def lap(self) -> None:
        """Count up to now, within a block."""
        now = time.perf_counter(), time.process_time()
        self.wall_s += now[0] - self._from[0]
        self.core_s += now[1] - self._from[1]
        self._from = now


def _keep() -> None:
    """Stands for giving a host slot back."""


def _n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def format_rate(rows_per_s: float) -> str:
    """``2.8 million rows/s``."""
    if rows_per_s >= 1e6:
        return f"{_millions(rows_per_s)} million rows/s"
    return f"{rows_per_s:,.0f} rows/s"


def _millions(rows_per_s: float) -> str:
    """To three digits, and never as a power of ten."""
    return f"{float(f'{rows_per_s / 1e6:.3g}'):,.15g}"
