"""The dry run of a sweep: which fits share a read, what they take, and what forbids them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkm.errors import InputError
from streamkm.kernels import kernel_notes
from streamkm.runs.dry_run.fit import memory_notes, prepare, seeding_s, written_bytes
from streamkm.runs.dry_run.report import DryRun, format_duration
from streamkm.runs.engine.run_kernel import RunKernel
from streamkm.runs.planning.inspection import look_at
from streamkm.runs.sweeping.measuring import plan_figures
from streamkm.runs.sweeping.planning import plan_sweep
from streamkm.runs.sweeping.record import SweepFolder
from streamkm.runs.sweeping.variants import in_order, spaces_of, variants_of
from streamkm.stream.slots import HostSlots
from streamkm.text import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamkm.config import ExecutionConfig, FitConfig
    from streamkm.runs.engine.probe import Probe
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.runs.sweeping.measuring import FiguresPlan
    from streamkm.runs.sweeping.planning import SweepPlan
    from streamkm.runs.sweeping.variants import Space, Variant
    from streamkm.sources.base import Source
    from streamkm.sources.weights import Weights

__all__ = ["dry_sweep"]


def dry_sweep(
    source: Source,
    base: FitConfig,
    ks: Sequence[int],
    seeds: Sequence[int],
    execution: ExecutionConfig,
    out: Path,
    *,
    resume: bool,
    stop_request: StopRequest,
    scales: Sequence[str] = (),
    metrics: Sequence[str] = (),
    all_rows: bool = False,
    weights: Weights | None = None,
) -> DryRun:
    """The report on what `streamkm.runs.sweeping.sweep.sweep` would do with the same arguments.

    The time is that of a sweep from its beginning.

    Raises
    ------
    StreamkmError
        After `stop_request`.
    InputError
        As `sweep` does, if it comes before there is anything to report. Later errors are in
        `DryRun.errors`.
    """
    (ks, said_ks), (seeds, said_seeds) = in_order("n_clusters", ks), in_order("seeds", seeds)
    spaces, said_spaces = spaces_of(base, scales, metrics)
    variants = variants_of(spaces, ks, seeds, seeds[0])
    plan = plan_sweep(source, base, variants, execution, weights)
    report, spec, some, pause = DryRun(), source.spec, plan.any_plan, stop_request.end_if_asked
    figures = plan_figures(plan, source, execution, weights, all_rows=all_rows)
    report.facts += [
        ("source", source.name),
        ("rows", f"{spec.n_rows:,} x {spec.n_features:,} features, {spec.dtype}"),
        ("size", f"{format_bytes(spec.nbytes)} ({spec.layout})"),
        *(("sweep", line) for line in (*plan.lines(), *figures.lines(spec))),
        ("device", f"{some.device}, {RunKernel(some)}"),
    ]
    try:
        SweepFolder.check_is_free(out, resume=resume)
    except InputError as error:
        report.errors.append(error)
    look = look_at(source, some.reading, some.config, pause)
    probes: dict[tuple[Space, int], Probe] = {}
    checkpoints, model = 0, 0
    with HostSlots(some.memory.stream, some.device) as slots:
        for variant in (each for each in variants if each.seed == seeds[0]):
            state, prober = prepare(plan.plans[variant], slots, pause)
            probes[variant.of_all_seeds] = prober.measure(state)
            of_one = written_bytes(plan.plans[variant], state, prober.scaling)
            checkpoints += len(seeds) * of_one[0]
            model += len(seeds) * of_one[1]
            pause()
    report.facts.append(("time", _time(plan, variants, probes, figures)))
    report.notes = [*said_ks, *said_seeds, *said_spaces, *source.notes()]
    report.notes += [*kernel_notes(execution.kernel, some.device), *memory_notes(some), *look.notes]
    keep = execution.keep_checkpoints + 1
    what = f"{keep} checkpoints of each fit, {format_bytes(checkpoints)}, and models"
    report.add_space(out, keep * checkpoints + model, what, least=model)
    report.errors += [look.error] if look.error is not None else []
    pause()
    return report


def _time(
    plan: SweepPlan,
    variants: Sequence[Variant],
    probes: dict[tuple[Space, int], Probe],
    figures: FiguresPlan,
) -> str:
    """About how long it takes: reads and arithmetic go on beside each other, seedings do not."""
    some = plan.any_plan
    n_rows, config = some.source.spec.n_rows, some.config
    seeding = sum(seeding_s(plan.plans[each], probes[each.of_all_seeds]) for each in variants)
    arithmetic, measures = 0.0, figures.n_reads > 0
    for each in variants:
        probe = probes[each.of_all_seeds]
        arithmetic += config.epochs * n_rows / probe.arithmetic["train"].rows_per_s
        closing = probe.arithmetic.get("close", probe.arithmetic["train"])
        arithmetic += (measures + config.closes) * n_rows / closing.rows_per_s
    n_reads = len(plan.groups) * (config.epochs + config.closes) + figures.n_reads
    reading = n_reads * n_rows / probes[variants[0].of_all_seeds].moving["reading"].rows_per_s
    said = f"seeding {format_duration(seeding)}, arithmetic {format_duration(arithmetic)}"
    most = "at most about" if config.epochs > 1 else "about"
    total = seeding + max(arithmetic, reading)
    return f"{most} {format_duration(total)} ({said}, reading {format_duration(reading)} beside it)"
