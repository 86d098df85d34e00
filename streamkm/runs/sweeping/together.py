"""Carries out the fits of a sweep: group after group, each with one read for all its fits."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from streamkm.clustering.seeding.plan import N_ROUNDS
from streamkm.distributed.world import ALONE
from streamkm.errors import Interrupted
from streamkm.runs.engine.passes import PASSES
from streamkm.runs.fit import fit
from streamkm.runs.reporting.signals import StopRequest
from streamkm.stream.pipeline import open_slots
from streamkm.stream.shared import SharedStream
from streamkm.stream.stages import StageTimes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from streamkm.clustering.state import KMeansState
    from streamkm.config import ExecutionConfig, FitConfig
    from streamkm.distributed.world import World
    from streamkm.runs.planning.fit_plan import FitPlan
    from streamkm.runs.reporting.progress import Progress
    from streamkm.runs.storage.model import Model
    from streamkm.runs.sweeping.planning import Group, SweepPlan
    from streamkm.runs.sweeping.variants import Variant
    from streamkm.sources.base import Source
    from streamkm.sources.weights import Weights
    from streamkm.stream.seat import Seat
    from streamkm.stream.transfer import DeviceWindow

__all__ = ["StopAll", "fit_group"]

#: What a pass is called in the progress of a sweep.
NAMES = {"scale": "scale", "rounds": "k-means||", "train": "train", "close": "close"}


class StopAll(StopRequest):
    """Stops every fit of a sweep: after a signal, and after an error of one of them.

    On several processes an error of one may be unknown to the others, who wait for it in the fit
    that failed. Then no other fit is given the turn, in which it would save.
    """

    def __init__(self, asked: StopRequest, world: World = ALONE) -> None:
        self._asked, self._world, self.failed = asked, world, False

    @property
    def signal_name(self) -> str | None:  # type: ignore[override]
        """The signal that came, or what else stops the fits; None if they go on."""
        return self._asked.signal_name or ("an error of another fit" if self.failed else None)

    def after(self, error: BaseException) -> None:
        """Stop the others after an error of one; raises it if they cannot even save."""
        self.failed = True
        if self._world.size > 1 and not isinstance(error, Interrupted):
            raise error


class _Heard:
    """Says when a fit has found its first centroids; see `Listener`."""

    def __init__(self, progress: Progress, variant: Variant) -> None:
        self._progress, self._variant = progress, variant

    def after_seeding(self) -> None:
        self._progress.say(f"{self._variant}: seeded")

    def after_step(self, state: KMeansState, unit: float, n_steps: int) -> None:
        """Nothing: the windows are counted once for all."""

    def after_pass(self, state: KMeansState, unit: float, epoch: int) -> None:
        """Nothing."""


class _Teller:
    """Shows how far the reads of a group are."""

    def __init__(self, progress: Progress, plan: FitPlan, n_seeds: int) -> None:
        config, rounds = plan.config, N_ROUNDS + 1
        n_orders = n_seeds if plan.reading.seed is not None else 1
        self._passes = {"scale": 1, "rounds": rounds, "train": config.epochs * n_orders, "close": 1}
        self._progress, self._n_rows, self._phase = progress, plan.reading.n_rows, ""
        self.times = StageTimes()

    def __call__(self, window: DeviceWindow, order: int) -> None:
        """Count a window that all who wait for it are about to get."""
        phase = PASSES[order]
        if phase != self._phase:
            self._phase = phase
            total = self._passes[phase] * self._n_rows
            self._progress.begin(NAMES[phase], total, self.times)
        self._progress.advance(window.window.whole.n_rows)
        if self._progress.is_due():
            self._progress.report({})


def fit_group(
    plan: SweepPlan,
    group: Group,
    source: Source,
    base: FitConfig,
    execution: ExecutionConfig,
    out: Path | None,
    *,
    resume: bool,
    stop: StopAll,
    weights: Weights | None,
    progress: Progress,
    world: World = ALONE,
) -> dict[Variant, Model]:
    """Fit the variants of `group` with one read for all; the model of each.

    On several processes each has its own stream, of its shares of the windows. Which fit has the
    turn follows from the windows alone, so that all processes come to the same collectives in the
    same order.

    Parameters are those of `streamkm.runs.sweeping.sweep.sweep`. `source` may be a view of that of
    the plan that keeps rows.
    """

    def one(variant: Variant, seat: Seat) -> Model:
        return fit(
            source,
            variant.config(base),
            execution,
            None if out is None else out / variant.name,
            resume=resume,
            stop_request=stop,
            quiet=True,
            weights=weights,
            listener=_Heard(progress, variant),
            world=world,
            seat=seat,
        )

    any_plan = plan.plans[group.variants[0]]
    teller = _Teller(progress, any_plan, len({each.seed for each in group.variants}))
    with open_slots(source, group.memory.stream, any_plan.device) as slots:
        shared = SharedStream(source, slots, weights, on_window=teller)
        teller.times = shared.times
        works: list[Callable[[Seat], Model]] = [partial(one, each) for each in group.variants]
        models = shared.run(works, stop.after)
    return dict(zip(group.variants, models, strict=True))
