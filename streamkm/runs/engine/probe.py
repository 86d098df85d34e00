"""The probe: times reading, copying and arithmetic alone, before the first epoch.

Each of these stages is timed on the run's own rows and settings while nothing else runs:
reading by as many threads as the run's into its slots, copying out of them, arithmetic by the
same kind of kernel on a copy of the state that is thrown away. On the CPU reading and arithmetic
share the cores. There a second bound holds for both together: cores x time is at least the
processor time of both. Afterwards the page cache holds what the probe read.
"""

from __future__ import annotations

import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, count, islice, takewhile
from typing import TYPE_CHECKING, Any

from streamkm.clustering.algorithm import closing_algorithm, make_algorithm
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import RunningMoments
from streamkm.devices import is_host, synchronize
from streamkm.machine import n_cores
from streamkm.runs.engine.run_kernel import RunKernel
from streamkm.stream.prefetch import prefetch
from streamkm.stream.stages import StageTimes
from streamkm.stream.transfer import to_device
from streamkm.text import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from streamkm.clustering.algorithm import Algorithm
    from streamkm.clustering.scaling import Scaling
    from streamkm.clustering.state import KMeansState
    from streamkm.runs.planning.fit_plan import FitPlan
    from streamkm.runs.planning.residency import ResidencyPlan
    from streamkm.stream.plan import Window
    from streamkm.stream.prefetch import HostWindow
    from streamkm.stream.slots import HostSlots
    from streamkm.stream.transfer import DeviceWindow

__all__ = ["PROBE_S", "Alone", "Probe", "Prober", "format_rate"]

#: Seconds for which a stage is timed, and windows that it is timed on at most. (A window is
#: 64 MiB, or one block where that is more. What is in hand when the time is up is finished.)
PROBE_S, PROBE_WINDOWS = 0.4, 8
#: The smallest page of memory that a system gives: one byte touched in each touches them all.
PAGE_BYTES = 4096


@dataclass(frozen=True)
class Alone:
    """The speed of one stage while nothing else runs."""

    rows_per_s: float
    core_s_per_row: float
    """Processor time of a row on the host, of all threads together."""


@dataclass(frozen=True)
class Probe:
    """The speeds of the stages alone, and the bounds that follow for all of them together."""

    moving: dict[str, Alone]
    """``reading``, and ``copying`` where there is any."""
    arithmetic: dict[str, Alone]
    """By phase: a closing pass does other work than an epoch of mini-batches."""
    rows: dict[str, int]
    """Rows that each phase goes through: the weights by which `arithmetic` is averaged."""
    n_cores: int
    on_host: bool
    """Whether the arithmetic takes the cores that reading needs too."""
    overlaps: bool
    """Whether threads read beside the arithmetic; otherwise one waits for the other."""
    row_bytes: int
    seconds: float
    """How long the probe took."""

    @property
    def stages(self) -> dict[str, Alone]:
        """Every stage by its name; of the arithmetic the average over the phases."""
        total = sum(self.rows.values())
        shares = {phase: n_rows / total for phase, n_rows in self.rows.items() if n_rows}
        # A phase that was not timed is a closing pass that was not planned: after Lloyd's
        # algorithm, whose epochs do nearly the same work.
        (*_, last) = self.arithmetic.values()
        done = {phase: self.arithmetic.get(phase, last) for phase in shares}
        average = Alone(
            1 / sum(shares[phase] / alone.rows_per_s for phase, alone in done.items()),
            sum(shares[phase] * alone.core_s_per_row for phase, alone in done.items()),
        )
        return {**self.moving, "arithmetic": average}

    @property
    def together(self) -> float | None:
        """Rows a second that the cores allow all stages together; None if they share none."""
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
        """Most rows a second that `stage` can do beside the others."""
        alone = self.stages[stage].rows_per_s
        return alone if self.together is None else min(alone, self.together)

    def reached(self, stage: str, rows_per_s: float) -> str:
        """The share of the ceiling of `stage` that `rows_per_s` is, in words."""
        ceiling = self.ceiling(stage)
        alone = ceiling == self.stages[stage].rows_per_s
        of = "what the probe measured for it alone" if alone else self._shared_by()
        rates = f"{_millions(rows_per_s)} of {_millions(ceiling)} million rows/s"
        return f"{rows_per_s / ceiling:.2f} of {of} ({rates})"

    def with_resident(self, plan: ResidencyPlan | None) -> Probe:
        """The same for a pass that finds rows in memory where `plan` keeps them."""
        if plan is None:
            return self
        shares = {"reading": plan.read_share, "copying": plan.copied_share}
        moving = {
            name: Alone(alone.rows_per_s / shares[name], alone.core_s_per_row * shares[name])
            for name, alone in self.moving.items()
            if shares[name] > 0
        }
        return replace(self, moving=moving)

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
        rates = [
            f"{name} {format_rate(alone.rows_per_s)}" for name, alone in self._measured().items()
        ]
        rates[0] += f" ({format_bytes(self.moving['reading'].rows_per_s * self.row_bytes)}/s)"
        line = f"probe ({self.seconds:.1f} s), each alone: {', '.join(rates)}"
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
    """Times the stages of one fit; all that it leaves behind is in the page cache."""

    plan: FitPlan
    slots: HostSlots
    scaling: Scaling
    pause: Callable[[], None] = lambda: None
    """Called between windows and batches; may raise."""

    def measure(self, state: KMeansState, *, closing_only: bool = False) -> Probe:
        """Time every stage, the arithmetic on copies of `state`.

        With `closing_only` training is over and is not timed. Otherwise the average counts all
        epochs of training, though the run may stop early.
        """
        plan, began = self.plan, time.perf_counter()
        on_host = is_host(plan.device)
        # The first touch of memory takes longer than reading into it, and is not reading.
        for buffer in self.slots.buffers:
            buffer[::PAGE_BYTES] = 0
        moving = {"reading": self._reading()}
        if not on_host:
            moving["copying"] = self._copying()
        # A kernel of its own: the run's counts the rows that it rechecks, for the log.
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
            n_cores(),
            on_host,
            plan.memory.stream.n_readers > 0,
            plan.source.spec.row_bytes,
            time.perf_counter() - began,
        )

    def moments(self) -> Alone:
        """Time the arithmetic of the pass that takes the moments for scaling."""
        moments = RunningMoments.empty(self.plan.source.spec.n_features, self.plan.device)

        def update(window: DeviceWindow, _: int, rows: torch.Tensor | slice) -> None:
            weights_N = window.weights_N
            moments.update_(window.taken(rows), None if weights_N is None else weights_N[rows])

        return self._arithmetic(update)

    def _windows(self) -> Iterator[Window]:
        epochs = (self.plan.reading.windows(epoch) for epoch in count())
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
        # By bytes: the threads have also read blocks of windows that nobody waited for.
        n_rows = times.bytes_read / self.plan.source.spec.row_bytes
        return Alone(n_rows / times.busy_s["reading"], watch.core_s / n_rows)

    def _copying(self) -> Alone:
        """Pinned host memory to the device, by the streams and slots of a run."""
        watch, n_rows = _Stopwatch(), 0
        with self._host_windows(0, StageTimes()) as host_windows:
            host = next(host_windows)
            # The same window is copied again and again, so its slot must not go back.
            host.release = _keep
            again = takewhile(lambda _: watch.wall_s < PROBE_S, (host for _ in count()))
            with closing(
                to_device(again, self.plan.source.spec, self.slots, StageTimes())
            ) as windows:
                next(windows)  # Allocates the device's slots, which is not copying.
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
        """A step of `algorithm` on a copy of `state`, to be timed by `_arithmetic`."""
        plan = self.plan
        state = state.clone()
        prepare = Preparation.for_kernel(
            self.scaling, algorithm.kernel, batch_rows=plan.config.batch_rows,
            stored=plan.stored, dtype=plan.dtype, weight_unit=plan.weight_unit,
        )  # fmt: skip
        algorithm.begin_epoch_(state)

        def update(window: DeviceWindow, index: int, rows: torch.Tensor | slice) -> None:
            batch = prepare(window.x_ND, rows, window.weights_N, is_shared=window.is_shared)
            algorithm.update_(state, batch, epoch=window.window.epoch, index=index)

        return update

    def _arithmetic(
        self, update: Callable[[DeviceWindow, int, torch.Tensor | slice], None]
    ) -> Alone:
        """Time `update` on batches that lie on the device; reading and copying do not count."""
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
                    # The first batch touches new memory. It counts only if it takes all the time.
                    if is_first and watch.wall_s < PROBE_S:
                        watch, n_rows = _Stopwatch(), 0
                    is_first = False
                    self.pause()
                    if n_rows and watch.wall_s >= PROBE_S:
                        break
                with watch:
                    self._synchronize()
                # On a busy machine even waiting for nothing can take all the time.
                if n_rows and watch.wall_s >= PROBE_S:
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
        """Within a block, add what has passed so far."""
        now = time.perf_counter(), time.process_time()
        self.wall_s += now[0] - self._from[0]
        self.core_s += now[1] - self._from[1]
        self._from = now


def _keep() -> None:
    """Do nothing, in place of `HostWindow.release`."""


def format_rate(rows_per_s: float) -> str:
    """``2.8 million rows/s``, or ``950,000 rows/s`` below a million."""
    if rows_per_s >= 1e6:
        return f"{_millions(rows_per_s)} million rows/s"
    return f"{rows_per_s:,.0f} rows/s"


def _millions(rows_per_s: float) -> str:
    """Millions to three digits, never as a power of ten."""
    return f"{float(f'{rows_per_s / 1e6:.3g}'):,.15g}"
