"""What the processes of a run would divide among them, and what they would send each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamkm.clustering.step_sums import exchanged_bytes
from streamkm.devices import is_host
from streamkm.tables import ALGORITHMS
from streamkm.text import format_bytes

if TYPE_CHECKING:
    from streamkm.distributed.world import World
    from streamkm.runs.planning.fit_plan import FitPlan
    from streamkm.stream.plan import ReadingPlan

__all__ = ["n_working", "pass_bytes", "share_facts", "share_notes", "step_bytes"]


def n_working(plan: FitPlan, phase: str, n_processes: int) -> int:
    """Processes that have rows at the same time in `phase`; the others wait for them."""
    reading = plan.reading_of(phase)
    # Steps are taken together, so that in training on batches a window must have a block for each.
    together = phase == "train" and not _adds_up_passes(plan)
    n_blocks = reading.window_blocks if together else reading.n_blocks
    return min(-(-n_blocks // reading.unit_blocks), n_processes)


def share_facts(plan: FitPlan, world: World, hosts: str) -> list[tuple[str, str]]:
    """Lines of the report: the processes on `hosts`, their blocks, and the bytes on the wire."""
    blocks = _blocks(plan.reading, world.size)
    each = f"{min(blocks):,}"
    if max(blocks) > min(blocks):
        each += f" to {max(blocks):,}"
    sent = []
    if not _adds_up_passes(plan):
        sent.append(f"{_on_wire(step_bytes(plan), world.size)} a step")
    if _adds_up_passes(plan) or plan.config.closes:
        kind = "a pass" if _adds_up_passes(plan) else "a closing pass"
        sent.append(f"{_on_wire(pass_bytes(plan), world.size)} {kind}")
    read = f"each reads {each} of {plan.reading.n_blocks:,} blocks an epoch"
    return [
        ("processes", f"{world.size} ({hosts}): {read}"),
        ("network", f"each process sends {' and '.join(sent)}"),
    ]


def share_notes(plan: FitPlan, n_processes: int) -> list[str]:
    """A note if processes have nothing to do."""
    n_busy = n_working(plan, "train", n_processes)
    if n_busy == n_processes:
        return []
    reading = plan.reading
    whole = f"the array has {reading.n_blocks:,} blocks"
    if not _adds_up_passes(plan):
        whole = f"a window has {reading.window_blocks:,} blocks"
    elif reading.unit_blocks > 1:
        whole += f", {reading.unit_blocks:,} of them to a batch"
    idle = f"{n_processes - n_busy} of {n_processes} processes are idle in training: {whole}"
    remedy = f"start {n_busy}, or store the array in smaller blocks"
    return [f"{idle}, and a block is read by one process; {remedy}"]


def step_bytes(plan: FitPlan) -> int:
    """Bytes that the processes add up in a step: sums and counts of each cluster."""
    return exchanged_bytes(
        plan.config.k, plan.source.spec.n_features, plan.dtype,
        weighted=plan.weights is not None, on_host=is_host(plan.device),
    )  # fmt: skip


def pass_bytes(plan: FitPlan) -> int:
    """Bytes that the processes add up at the end of a pass, the few rows for reseeding left out."""
    k, n_totals = plan.config.k, 1 + (plan.config.k if plan.weights is not None else 0)
    sums = 2 * k * plan.source.spec.n_features + 2 * n_totals
    counts, grades = 2 * k + 1, k + n_totals
    return 8 * (sums + counts + grades)


def _on_wire(n_bytes: int, n_processes: int) -> str:
    """What each of several processes sends of `n_bytes` that they add up in a ring."""
    return format_bytes(2 * (n_processes - 1) * n_bytes // n_processes)


def _blocks(reading: ReadingPlan, n_processes: int) -> list[int]:
    """Blocks of an epoch that each process reads."""
    units = np.arange(reading.n_blocks) // reading.unit_blocks
    counts: list[int] = np.bincount(units % n_processes, minlength=n_processes).tolist()
    return counts


def _adds_up_passes(plan: FitPlan) -> bool:
    """Whether centroids move after passes, and not after batches."""
    return not ALGORITHMS[plan.config.algorithm].closes
