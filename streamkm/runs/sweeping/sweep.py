"""A sweep: many fits of one array that share its reads, each in a run folder of its own.

Each fit is `streamkm.runs.fit.fit` itself, and its folder has the bytes that a fit alone would have
written. What is shared is the way of the rows: a window is read, decoded and copied once for all
fits that want it (see `streamkm.stream.shared`).
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from streamkm.clustering.choosing import recommended_by_space
from streamkm.distributed.world import ALONE
from streamkm.errors import Interrupted, Option, StreamkmError
from streamkm.runs.fit import as_begun, run_record
from streamkm.runs.planning.checks import check_outside
from streamkm.runs.reporting.out_of_memory import memory_told
from streamkm.runs.reporting.progress import Progress
from streamkm.runs.sweeping.measuring import SharedRows, measure, plan_figures
from streamkm.runs.sweeping.planning import plan_sweep
from streamkm.runs.sweeping.record import SweepFolder
from streamkm.runs.sweeping.table import recommendation_lines, stability_figures, table_lines
from streamkm.runs.sweeping.together import StopAll, fit_group
from streamkm.runs.sweeping.variants import check_variants, in_order, spaces_of, variants_of
from streamkm.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from streamkm.config import ExecutionConfig, FitConfig
    from streamkm.distributed.world import World
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.runs.storage.model import Model
    from streamkm.runs.sweeping.measuring import FiguresPlan
    from streamkm.runs.sweeping.planning import SweepPlan
    from streamkm.runs.sweeping.variants import Variant
    from streamkm.sources.base import Source
    from streamkm.sources.weights import Weights

__all__ = ["Sweep", "sweep"]

#: What sweep.json has beside its runs when all of them are finished.
FOUND = ("figures", "stability", "recommendation")


@dataclass(frozen=True)
class Sweep:
    """What a sweep has found."""

    models: dict[Variant, Model]
    """The model of each fit, space after space (see `Space`), in each K ascending."""
    figures: list[dict[str, Any]]
    """Of each fit, in the same order: see `Measured`."""
    stability: list[dict[str, Any]]
    """Of each K that several seeds had: see `stability_figures`."""
    recommendation: dict[str, Any]
    """See `Recommendation`."""

    def __str__(self) -> str:
        lines = table_lines(self.figures, self.stability)
        return "\n".join([*lines, "", *recommendation_lines(self.recommendation)])


def sweep(
    source: Source,
    base: FitConfig,
    ks: Sequence[int],
    seeds: Sequence[int],
    execution: ExecutionConfig,
    out: Path | None,
    *,
    resume: bool,
    stop_request: StopRequest,
    scales: Sequence[str] = (),
    metrics: Sequence[str] = (),
    all_rows: bool = False,
    weights: Weights | None = None,
    quiet: bool = False,
    world: World = ALONE,
) -> Sweep:
    """Fit every K of `ks` with every seed of `seeds`, measure the fits and compare them.

    Parameters
    ----------
    source : Source
        N rows by D features.
    base : FitConfig
        The settings of every fit; its ``k`` and ``seed`` do not count, nor do ``scale`` and
        ``metric`` where several are given.
    ks, seeds : sequence of int
        At least one of each, in any order.
    execution : ExecutionConfig
        How to carry it out. The budget of memory is that of all fits together.
    out : Path or None
        The folder to write, with a run folder for each fit. With None nothing is written.
    resume : bool
        Go on with the sweep in `out`, or start. K and seeds may have been added: those fits begin
        anew, beside whatever the others still have to read.
    stop_request : StopRequest
        Asked after every batch.
    scales, metrics : sequence of str, optional
        Every fit is made with each of them, but for pairs that contradict each other; by default
        with those of `base`.
    all_rows : bool, optional
        Take all figures of all rows. By default those that need each row once more are taken of a
        sample where the rows do not fit in memory (see `plan_figures`).
    weights : Weights, optional
        How much each row counts.
    quiet : bool
        Say nothing on stderr.
    world : World, optional
        The processes that share the fits. All call `sweep` with the same arguments; the first alone
        uses `out` and takes the figures, and each returns the same.

    Raises
    ------
    Interrupted
        After `stop_request`, with a checkpoint of every fit saved if there is a folder.
    InputError
        If the arguments, the data or the folder cannot be used.
    """
    check_outside(source, run_dir=out)
    before = None
    if out is not None and world.is_first:
        before = SweepFolder.check_is_free(out, resume=resume)
    before = world.gather(before)[0]
    if out is not None and before is not None:
        # Any run knows the order of features with which the sweep began.
        source = as_begun(source, out / before["runs"][0]["name"], world)
    spaces, said_spaces = spaces_of(base, scales, metrics)
    ks, seeds, notes = _joined(before, ks, seeds)
    check_variants(base, ks, seeds, source.spec.n_rows, source.name)
    first_seed = seeds[0] if before is None else before["first_seed"]
    variants = variants_of(spaces, ks, seeds, first_seed)
    execution = replace(execution, probe=False)
    plan = plan_sweep(source, base, variants, execution, weights, world)
    figures = plan_figures(plan, source, execution, weights, all_rows=all_rows)
    with ExitStack() as stack:
        folder = None
        if out is not None and world.is_first:
            folder = SweepFolder(out, _record(plan, variants, first_seed), before)
            stack.enter_context(folder)
        progress = stack.enter_context(Progress(quiet=quiet or not world.is_first))
        progress.introduce(source)
        for line in (*notes, *said_spaces, *plan.lines(), *figures.lines(source.spec)):
            progress.say(line)
        rows = SharedRows.open(source, figures, stack)
        models = _fit(
            plan, rows.source, base, execution, out,
            resume=resume, stop_request=stop_request, weights=weights, progress=progress,
            world=world,
        )  # fmt: skip
        found = _found_before(before, variants, all_rows=all_rows)
        if found is None:
            measured = partial(
                _figures, models, figures, rows, execution, out, stop_request, weights, progress
            )
            found = _of_first(measured, rows, stop_request, out, world)
            if folder is not None:
                folder.write(**found)
        return Sweep(models, **found)


def _joined(
    before: dict[str, Any] | None, ks: Sequence[int], seeds: Sequence[int]
) -> tuple[list[int], list[int], list[str]]:
    """K and seeds in order, those of the sweep `before` among them if one goes on; and notes."""
    (ks, said_ks), (seeds, said_seeds) = in_order("n_clusters", ks), in_order("seeds", seeds)
    notes = [*said_ks, *said_seeds]
    if before is None:
        return ks, seeds, notes
    before_ks, before_seeds = ({run[name] for run in before["runs"]} for name in ("k", "seed"))
    if added := sorted({*ks} - before_ks):
        more = ", ".join(f"k {k:,}" for k in added)
        notes.append(
            f"resumed with {more} more: what the other fits have read already is read anew for it"
        )
    if kept := sorted(before_ks - {*ks}):
        notes.append(
            f"of the sweep before, {', '.join(f'k {k:,}' for k in kept)} remain part of it"
        )
    return sorted(before_ks | {*ks}), sorted(before_seeds | {*seeds}), notes


def _found_before(
    before: dict[str, Any] | None, variants: Sequence[Variant], *, all_rows: bool
) -> dict[str, Any] | None:
    """What sweep.json has of exactly these fits, if it has it: then all of them are finished."""
    if before is None or before["runs"] != _runs(variants) or not before.keys() >= {*FOUND}:
        return None
    if all_rows and any("sampled_rows" in row for row in before["figures"]):
        return None
    return {name: before[name] for name in FOUND}


def _of_first(
    measured: Callable[[], dict[str, Any]],
    rows: SharedRows,
    stop_request: StopRequest,
    out: Path | None,
    world: World,
) -> dict[str, Any]:
    """What the first process has measured, in all of them."""
    if world.size == 1:
        return measured()
    rows.gather_(world)
    found: dict[str, Any] | None = None
    if world.is_first:
        with suppress(Interrupted):  # All end together.
            found = measured()
    world.meet()
    found = world.gather(found)[0]
    if found is None:
        raise _interrupted(stop_request, out, 0, world)
    return found


def _figures(
    models: dict[Variant, Model],
    plan: FiguresPlan,
    rows: SharedRows,
    execution: ExecutionConfig,
    out: Path | None,
    stop_request: StopRequest,
    weights: Weights | None,
    progress: Progress,
) -> dict[str, Any]:
    """What sweep.json has of the finished fits: `FOUND`."""
    stop = StopAll(stop_request)
    try:
        with memory_told(lambda: "measuring", resumable=out is not None):
            measured, agreed = measure(
                models, plan, rows, execution,
                stop=stop, weights=weights, progress=progress,
            )  # fmt: skip
    except StreamkmError as error:
        if stop_request.signal_name is None:
            raise
        raise _interrupted(stop_request, out, 0) from error
    figures = [each.as_dict() for each in measured]
    stability = [
        {**stability_figures(first.k, indices), **first.space.labels()} for first, indices in agreed
    ]
    return {
        "figures": figures,
        "stability": stability,
        "recommendation": recommended_by_space(figures, stability),
    }


def _fit(
    plan: SweepPlan,
    source: Source,
    base: FitConfig,
    execution: ExecutionConfig,
    out: Path | None,
    *,
    resume: bool,
    stop_request: StopRequest,
    weights: Weights | None,
    progress: Progress,
    world: World,
) -> dict[Variant, Model]:
    """The model of every fit, group after group; K ascending."""
    models: dict[Variant, Model] = {}
    stop = StopAll(stop_request, world)
    for group in plan.groups:
        try:
            with memory_told(lambda: "sweeping", resumable=out is not None):
                models |= fit_group(
                    plan, group, source, base, execution, out,
                    resume=resume, stop=stop, weights=weights, progress=progress, world=world,
                )  # fmt: skip
        except Interrupted as error:
            n_left = len(plan.plans) - len(models)
            raise _interrupted(stop_request, out, n_left, world) from error
        progress.say(f"finished: {counted(len(models), 'fit')} of {len(plan.plans)}")
    return dict(sorted(models.items()))


def _interrupted(
    stop_request: StopRequest, out: Path | None, n_left: int, world: World = ALONE
) -> StreamkmError:
    # Not every process has got a signal.
    name = next(filter(None, world.gather(stop_request.signal_name)), None)
    if out is None:
        return Interrupted(f"stopped by {name}; nothing is saved")
    left = "all fits are finished, their figures are not"
    if n_left:
        left = f"{counted(n_left, 'fit')} can go on from what is saved"
    again = Option("resume", value=True)
    return Interrupted(f"stopped by {name}; in {out} {left}: repeat with ", again)


def _record(plan: SweepPlan, variants: Sequence[Variant], first_seed: int) -> dict[str, Any]:
    """The content of sweep.json before there are figures."""
    of_one = run_record(plan.any_plan)
    settings = {name: value for name, value in of_one["fit"].items() if name not in ("k", "seed")}
    for name in ("scale", "metric"):
        values = list(dict.fromkeys(getattr(each.space, name) for each in variants))
        settings[name] = values[0] if len(values) == 1 else values
    return {
        "source": of_one["source"],
        "fit": settings,
        "data": of_one["data"],
        "first_seed": first_seed,
        "runs": _runs(variants),
    }


def _runs(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    return [each.as_dict() for each in variants]
