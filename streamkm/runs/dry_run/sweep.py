"""The dry run of a sweep: which fits share a read, what they take, and what forbids them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkm.errors import InputError
from streamkm.kernels import kernel_notes
from streamkm.runs.dry_run.fit import memory_notes, prepare, seeding_s, written_bytes
from streamkm.runs.dry_run.report import DryRun, format_duration
from streamkm.runs.engine.run_kernel import RunKernel
from streamkm.runs.planning.inspection import look_at
from streamkm.runs.sweeping.figures import plan_measuring
from streamkm.runs.sweeping.planning import kept_bytes, plan_sweep
from streamkm.runs.sweeping.record import check_sweep_is_free
from streamkm.runs.sweeping.variants import in_order, variants_of
from streamkm.stream.slots import HostSlots
from streamkm.text import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamkm.config import ExecutionConfig, FitConfig
    from streamkm.runs.engine.probe import Probe
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.runs.sweeping.planning import SweepPlan
    from streamkm.runs.sweeping.variants import Variant
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
    (ks, said_ks), (seeds, said_seeds) = in_order("k", ks), in_order("seeds", seeds)
    variants = variants_of(ks, seeds, seeds[0])
    plan = plan_sweep(source, base, variants, execution, weights)
    report, spec, some, pause = DryRun(), source.spec, plan.any_plan, stop_request.end_if_asked
    measuring = plan_measuring(plan, source, execution, weights)
    limit = kept_bytes(source, [*plan.groups, *measuring.groups])
    report.facts += [
        ("source", source.name),
        ("rows", f"{spec.n_rows:,} x {spec.n_features:,} features, {spec.dtype}"),
        ("size", f"{format_bytes(spec.nbytes)} ({spec.layout})"),
        *(("sweep", line) for line in plan.lines(limit)),
        ("device", f"{some.device}, {RunKernel(some)}"),
    ]
    try:
        check_sweep_is_free(out, resume=resume)
    except InputError as error:
        report.errors.append(error)
    look = look_at(source, some.reading, some.config, pause)
    probes, checkpoints, model = {}, 0, 0
    with HostSlots(some.memory.stream, some.device) as slots:
        for variant in (each for each in variants if each.seed == seeds[0]):
            state, prober = prepare(plan.plans[variant], slots, pause)
            probes[variant.k] = prober.measure(state)
            of_one = written_bytes(plan.plans[variant], state, prober.scaling)
            checkpoints += len(seeds) * of_one[0]
            model += len(seeds) * of_one[1]
            pause()
    report.facts.append(("time", _time(plan, variants, probes)))
    report.notes = [*said_ks, *said_seeds, *source.notes()]
    report.notes += [*kernel_notes(execution.kernel, some.device), *memory_notes(some), *look.notes]
    keep = execution.keep_checkpoints + 1
    what = f"{keep} checkpoints of each fit, {format_bytes(checkpoints)}, and models"
    report.add_space(out, keep * checkpoints + model, what, least=model)
    report.errors += [look.error] if look.error is not None else []
    pause()
    return report


def _time(plan: SweepPlan, variants: Sequence[Variant], probes: dict[int, Probe]) -> str:
    """About how long it takes: reads and arithmetic go on beside each other, seedings do not."""
    some = plan.any_plan
    n_rows, config = some.source.spec.n_rows, some.config
    seeding = sum(seeding_s(plan.plans[each], probes[each.k]) for each in variants)
    arithmetic = 0.0
    for each in variants:
        probe = probes[each.k]
        arithmetic += config.epochs * n_rows / probe.arithmetic["train"].rows_per_s
        closing = probe.arithmetic.get("close", probe.arithmetic["train"])
        arithmetic += (1 + config.closes) * n_rows / closing.rows_per_s
    n_reads = len(plan.groups) * (config.epochs + config.closes + 1)
    reading = n_reads * n_rows / probes[variants[0].k].moving["reading"].rows_per_s
    said = f"seeding {format_duration(seeding)}, arithmetic {format_duration(arithmetic)}"
    most = "at most about" if config.epochs > 1 else "about"
    total = seeding + max(arithmetic, reading)
    return f"{most} {format_duration(total)} ({said}, reading {format_duration(reading)} beside it)"
