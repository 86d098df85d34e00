"""The dry run of a fit: what it would do and need, and what speaks against it.

Rows, memory and passes are those of the fit plan that the fit itself would make. The time is
predicted from a probe on the first windows. The disk space is counted from the tensors that a
checkpoint would hold. Nothing is written.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from streamkm.clustering.branch_plan import compared
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import RunningMoments, Scaling
from streamkm.clustering.seeding.plan import N_ROUNDS, SCORE_PRODUCTS, greedy_epochs
from streamkm.clustering.size_plan import MOST_PASSES
from streamkm.clustering.sizing import initial_sizes
from streamkm.clustering.state import initial_state
from streamkm.distributed.world import ALONE
from streamkm.errors import InputError
from streamkm.kernels import kernel_notes
from streamkm.runs.dry_run.report import DryRun, format_duration
from streamkm.runs.dry_run.shares import n_working, share_facts, share_notes
from streamkm.runs.engine.checkpoint_schema import check_checkpoint
from streamkm.runs.engine.probe import Prober, format_rate
from streamkm.runs.engine.run_kernel import RunKernel
from streamkm.runs.engine.sampling import draw_sample, sample_pieces
from streamkm.runs.engine.snapshot import Cursor, Snapshot
from streamkm.runs.engine.timing import hosts_of
from streamkm.runs.fit import as_begun, finished_model, plan_fit, run_record
from streamkm.runs.planning.inspection import look_at
from streamkm.runs.planning.memory import FULL_SLOTS
from streamkm.runs.reporting.progress import Progress
from streamkm.runs.storage.checkpoint import load_checkpoint
from streamkm.runs.storage.run_folder import RunFolder
from streamkm.stream.plan import WINDOW_BYTES
from streamkm.stream.slots import HostSlots
from streamkm.text import counted, format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.clustering.state import KMeansState
    from streamkm.config import ExecutionConfig, FitConfig
    from streamkm.distributed.world import World
    from streamkm.runs.engine.probe import Probe
    from streamkm.runs.planning.fit_plan import FitPlan
    from streamkm.runs.reporting.signals import StopRequest
    from streamkm.sources.base import Source
    from streamkm.sources.weights import Weights

__all__ = ["dry_run", "memory_notes", "prepare", "seeding_s", "written_bytes"]

#: Bytes of a row of the sample in a checkpoint of seeding, at most, beside the row itself: a
#: position, a squared distance and the weight of a candidate, 8 each.
SEEDING_ROW_BYTES = 24
#: Seconds that a product takes in seeding, at most. The probe finds more where batches are small:
#: most of that is overhead, of which seeding has less.
SLOW_PRODUCT_S = 3e-11
_PHASES = ("scale", "seed", "train", "close", "sizes")
_BEGINNING = Cursor("scale")
#: The probe's centroids come from a sample for one cluster: its few pieces are quick to read.
PROBE_CLUSTERS = 1


def dry_run(
    source: Source,
    config: FitConfig,
    execution: ExecutionConfig,
    run_dir: Path,
    *,
    resume: bool,
    stop_request: StopRequest,
    weights: Weights | None = None,
    world: World = ALONE,
) -> DryRun:
    """The report on what `streamkm.runs.fit.fit` would do with the same arguments.

    Of several processes in `world` one alone makes it.

    Raises
    ------
    StreamkmError
        After `stop_request`, which is asked after every window and batch.
    InputError
        As `fit` does, if it comes before there is anything to report. Later errors are in
        `DryRun.errors`.
    """
    if resume:
        source = as_begun(source, run_dir)
    if config.from_run is not None:
        source = as_begun(source, Path(config.from_run))
    plan = plan_fit(source, config, execution, weights=weights, world=world)
    report, stands, pause = DryRun(), None, stop_request.end_if_asked
    _add_plan(report, plan)
    if world.size > 1:
        report.facts += share_facts(plan, world, hosts_of(world))
    folder = RunFolder(run_dir, run_record(plan), resume=resume)
    try:
        folder.check()
        stands = _add_progress(report, folder, plan) if resume else _BEGINNING
    except InputError as error:
        report.errors.append(error)
    look = look_at(source, plan.reading, plan.config, pause)
    with HostSlots(plan.memory.stream, plan.device) as slots:
        state, prober = prepare(plan, slots, pause)
        probe = prober.measure(state)
        if plan.measures_scale:
            probe = replace(probe, arithmetic={**probe.arithmetic, "scale": prober.moments()})
    if stands is not None or report.errors:
        _add_time(report, plan, probe, stands or _BEGINNING, world.size)
    checkpoints, model = written_bytes(plan, state, prober.scaling)
    keep = execution.keep_checkpoints
    what = f"{keep + 1} checkpoints of {format_bytes(checkpoints)}, model {format_bytes(model)}"
    labels = format_bytes(4 * source.spec.n_rows)
    report.facts.append(("labels", f"{labels} more for `predict`, and as much for distances"))
    of_kernel = kernel_notes(execution.kernel, plan.device)
    report.notes = [*source.notes(), *of_kernel, *memory_notes(plan)]
    if plan.earlier is not None:
        report.notes += plan.earlier.notes(plan.config)
    report.notes += [*share_notes(plan, world.size), *look.notes]
    if stands is not None:
        # A refused checkpoint does not end a run; a refused result does.
        report.add_space(run_dir, (keep + 1) * checkpoints + model, what, least=model)
    report.errors += [look.error] if look.error is not None else []
    pause()
    return report


def _add_plan(report: DryRun, plan: FitPlan) -> None:
    """Add the facts that shape and settings decide."""
    spec, reading, config, seeding = plan.source.spec, plan.reading, plan.config, plan.seeding
    passes = [counted(config.epochs, "epoch")]
    passes[0] += " at most" if config.epochs > 1 else ""
    if plan.measures_scale:
        passes.insert(0, "1 for scaling")
    if plan.earlier is not None:
        passes.insert(0, f"on from {config.from_run}")
    elif plan.given_KD is None:
        rounds = f"{N_ROUNDS + 1} passes and " if seeding.candidate_rows else ""
        n_drawn = seeding.sample_rows + seeding.judged_rows
        passes.insert(-1, f"seeding ({config.init}): {rounds}a sample of {n_drawn:,} rows")
    if config.closes:
        passes.append("1 closing pass")
    if config.is_bounded:
        passes.append(f"at most {MOST_PASSES + 1} for the sizes of clusters")
    order = "in sequence" if reading.seed is None else "at random"
    windows = (
        f"{reading.window_blocks:,} of {reading.n_blocks:,} blocks of {reading.block_rows:,} rows"
    )
    report.facts += [
        ("source", plan.source.name),
        ("rows", f"{spec.n_rows:,} x {spec.n_features:,} features, {spec.dtype}"),
        ("size", f"{format_bytes(spec.nbytes)} ({spec.layout})"),
        ("passes", ", ".join(passes)),
        (
            "batches",
            (
                f"about {reading.n_batches(0):,} an epoch of {reading.batch_rows:,} rows or less, "
                f"from windows of {windows}, {order}"
            ),
        ),
        ("memory", str(plan.memory)),
        *([("device memory", str(plan.device_memory))] if plan.device_memory is not None else []),
        *([("resident", str(plan.resident))] if plan.resident is not None else []),
        ("device", f"{plan.device}, {RunKernel(plan)}"),
    ]


def _add_progress(report: DryRun, folder: RunFolder, plan: FitPlan) -> Cursor | None:
    """Add where the run would go on, and return that; None if nothing is left to do."""
    if finished_model(folder) is not None:
        report.facts.append(("resume", f"{folder.path} is finished: nothing will be done"))
        return None
    found = load_checkpoint(folder.checkpoints, partial(check_checkpoint, plan=plan))
    if found is None:
        report.facts.append(("resume", f"no checkpoint in {folder.path}: from the beginning"))
        return _BEGINNING
    cursor = Cursor(**found.manifest["cursor"])
    report.facts.append(("resume", f"from {found.path.name} ({cursor})"))
    return cursor


def _left(cursor: Cursor, plan: FitPlan) -> dict[str, float]:
    """The share of each phase that is left at `cursor`, at most."""
    phase = "seed" if cursor.phase == "rounds" else cursor.phase
    at = _PHASES.index(phase)
    left = {name: float(number >= at) for number, name in enumerate(_PHASES)}
    # All of these count: how long each stage takes, or how many passes follow, is not known.
    if phase not in ("seed", "sizes"):
        reading = plan.reading_of(phase)
        passes = cursor.epoch + reading.rows_before(cursor.epoch, cursor.batch) / reading.n_rows
        passes -= plan.config.epochs if phase == "close" else 0
        n_passes = plan.config.epochs if phase == "train" else 1
        left[phase] = max(1 - passes / n_passes, 0.0)
    return left


def prepare(
    plan: FitPlan, slots: HostSlots, pause: Callable[[], None]
) -> tuple[KMeansState, Prober]:
    """A state whose centroids are rows of the data, to time steps by, and the prober."""
    k, config = plan.config.k, plan.config
    with Progress(quiet=True) as progress:
        x_SD, weights_S, _ = draw_sample(
            plan.source,
            plan.reading,
            k,
            k=PROBE_CLUSTERS,
            seed=config.seed,
            dtype=plan.dtype,
            slots=slots,
            progress=progress,
            on_window=pause,
            weights=plan.weights,
        )
    moments = RunningMoments.of(x_SD, weights_S)
    scaling = Scaling.fit(config.scale, config.metric, moments, plan.dtype)
    centroids_KD = Preparation(scaling, x_SD)(x_SD, slice(None)).x_BD[:k].clone()
    state = initial_state(
        centroids_KD, 0.0, weighted=plan.is_weighted,
        n_branches=min(config.n_branches, len(centroids_KD)),
    )  # fmt: skip
    return state, Prober(plan, slots, scaling, pause)


def _add_time(
    report: DryRun,
    plan: FitPlan,
    probe: Probe,
    stands: Cursor = _BEGINNING,
    n_processes: int = 1,
) -> None:
    """Add the time that the probe predicts for what is left of every phase.

    The probe is of one process. Passes are divided by the processes that have rows; seeding is not.
    """
    config, n_rows, left = plan.config, plan.source.spec.n_rows, _left(stands, plan)

    later = probe.with_resident(plan.resident)
    # The first pass finds no row in memory, not even in a run that is resumed.
    firsts = ["scale"] * ("scale" in probe.arithmetic) + ["train"]
    firsts += ["close"] * config.closes + ["sizes"] * config.is_bounded
    first = next((phase for phase in firsts if left[phase] > 0), None)

    def passes_s(phase: str, n_passes: int, like: str = "") -> float:
        rows = {like or phase: 1}
        n_later = left[phase] * n_passes
        n_first = min(n_later, 1) if phase == first else 0
        alone_s = n_first * n_rows / replace(probe, rows=rows).most_rows_per_s
        return alone_s + (n_later - n_first) * n_rows / replace(later, rows=rows).most_rows_per_s

    def shared_s(phase: str, n_passes: int) -> float:
        return passes_s(phase, n_passes) / n_working(plan, phase, n_processes)

    parts = {"scale": shared_s("scale", 1)} if "scale" in probe.arithmetic else {}
    parts["seeding"] = left["seed"] * seeding_s(plan, probe)
    parts["training"] = shared_s("train", config.epochs)
    if config.closes:
        parts["closing"] = shared_s("close", 1)
    if config.is_bounded:
        # Each row is compared with each cluster, as in other passes.
        like = "close" if "close" in probe.arithmetic else "train"
        parts["sizes"] = passes_s("sizes", MOST_PASSES + 1, like)
    said = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in parts.items())
    most = "at most about" if config.epochs > 1 or config.is_bounded else "about"
    rates = (f"{name} {format_rate(alone.rows_per_s)}" for name, alone in probe.stages.items())
    alone = "of one process, each alone" if n_processes > 1 else "each alone"
    report.facts += [
        ("speed", f"{alone}: {', '.join(rates)}; together {format_rate(probe.most_rows_per_s)}"),
        ("time", f"{most} {format_duration(sum(parts.values()))} ({said})"),
    ]


def seeding_s(plan: FitPlan, probe: Probe) -> float:
    """Seconds of sampling and seeding, at most, from their work in epochs of training."""
    spec, config, seeding = plan.source.spec, plan.config, plan.seeding
    n_pieces, piece_rows = sample_pieces(spec, plan.reading, config.k)
    n_read = min(n_pieces * piece_rows, spec.n_rows)
    sampling_s = n_read / probe.moving["reading"].rows_per_s
    if plan.given_KD is not None or plan.earlier is not None:
        return sampling_s
    epochs = seeding.epochs(config.k, config.n_init)
    if config.init == "k-means++":
        shape = (seeding.sample_rows, spec.n_features, config.k, spec.n_rows)
        epochs = config.n_init * greedy_epochs(*shape)
    pair = spec.n_features + SCORE_PRODUCTS
    products_per_row = compared(config.k, config.n_branches) * pair
    product_s = 1 / (probe.arithmetic["train"].rows_per_s * products_per_row)
    # Its epochs are of comparing each row with each cluster.
    work = epochs * spec.n_rows * config.k * pair
    return sampling_s + work * min(product_s, SLOW_PRODUCT_S)


def written_bytes(plan: FitPlan, state: KMeansState, scaling: Scaling) -> tuple[int, int]:
    """Bytes of a checkpoint, at most, and of the model with its centroids."""
    spec, k, seeding = plan.source.spec, plan.config.k, plan.seeding
    moments = RunningMoments.empty(spec.n_features, torch.device("cpu"))
    is_bounded = plan.config.is_bounded
    sizes = initial_sizes(k, torch.ones(()), torch.device("cpu")) if is_bounded else None
    now = Snapshot(Cursor("train"), moments, scaling=scaling, state=state, sizes=sizes)
    training = sum(tensor.nbytes for tensor in now.tensors().values())
    # The best seeding so far, the one under way, and what is known of every row of the sample.
    row_bytes = spec.n_features * plan.dtype.itemsize
    is_sought = (seeding.tree or seeding.refinement) is not None or plan.config.init == "k-means++"
    n_sought = is_sought * max(seeding.sample_rows, seeding.candidate_rows)
    in_seeding = 2 * k * row_bytes + n_sought * SEEDING_ROW_BYTES
    in_seeding += seeding.candidate_rows * row_bytes
    if seeding.tree is not None:
        in_seeding += k * spec.n_features * 8  # The sums of the clusters, float64.
    held = (state.centroids_KD, state.sums_KD, state.counts_K, state.weights_K)
    model = sum(tensor.nbytes for tensor in held) + 4 * k * spec.n_features
    if sizes is not None:
        named = (sizes.prices_K, sizes.closes_K, sizes.rows_P, sizes.to_P)
        model += sum(tensor.nbytes for tensor in named)  # At most.
    return max(training, in_seeding), model


def memory_notes(plan: FitPlan) -> list[str]:
    """Notes on what a small budget, or large blocks, cost."""
    stream, spec, notes = plan.memory.stream, plan.source.spec, []
    if stream.n_slots < FULL_SLOTS:
        notes.append(
            f"the memory holds {stream.n_slots} of {FULL_SLOTS} windows of "
            f"{format_bytes(stream.slot_bytes)}: reading and arithmetic will wait for each other; "
            "raise max-host-memory"
        )
    asked = plan.execution.read_threads or 0
    if stream.n_readers < asked:
        notes.append(f"the memory holds {stream.n_readers} of {asked} reading threads")
    block_bytes = plan.reading.block_rows * spec.row_bytes
    if block_bytes > WINDOW_BYTES:
        notes.append(
            f"a block of {format_bytes(block_bytes)} is decoded as a whole, and is all that a "
            f"window holds (those of {format_bytes(WINDOW_BYTES)} or less are mixed)"
        )
    return notes
