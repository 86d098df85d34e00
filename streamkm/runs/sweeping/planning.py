"""Plans a sweep: which fits share one read, and in how much memory."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from streamkm.devices import sharing
from streamkm.distributed.world import ALONE
from streamkm.errors import MemoryBudgetError
from streamkm.runs.fit import plan_fit
from streamkm.runs.planning.device_memory import plan_device_memory
from streamkm.runs.planning.memory import bytes_together, plan_memory
from streamkm.sources.memory import MemorySource
from streamkm.sources.remembered import BESIDE_BLOCK
from streamkm.stream.tensor_source import TensorSource
from streamkm.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamkm.config import ExecutionConfig, FitConfig
    from streamkm.distributed.world import World
    from streamkm.runs.planning.fit_plan import FitPlan
    from streamkm.runs.planning.memory import MemoryPlan
    from streamkm.runs.sweeping.variants import Variant
    from streamkm.sources.base import Source
    from streamkm.sources.weights import Weights

__all__ = ["Group", "SweepPlan", "in_groups", "kept_bytes", "plan_sweep"]

#: Slots with which a window is read while another is worked on.
LEAST_SLOTS = 2
#: Files that a fit holds open, its lock and its metrics; and those that are left for all else.
FILES_OF_FIT, OTHER_FILES = 2, 128

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """Fits that share one read."""

    variants: list[Variant]
    memory: MemoryPlan

    @property
    def free_bytes(self) -> int:
        """What the budget leaves."""
        return self.memory.budget - self.memory.total_bytes


@dataclass(frozen=True)
class SweepPlan:
    """All that is decided about a sweep before a row is read."""

    plans: dict[Variant, FitPlan]
    groups: list[Group]

    @property
    def any_plan(self) -> FitPlan:
        """The fit plan of one of the fits, for what all have in common."""
        return next(iter(self.plans.values()))

    def lines(self) -> list[str]:
        """What shares a read with what, and the memory, for people."""
        seeds = {variant.seed for variant in self.plans}
        ks = sorted({variant.k for variant in self.plans})
        said = f"{counted(len(self.plans), 'fit')}: k {' '.join(f'{k:,}' for k in ks)}"
        if len(seeds) > 1:
            said += f", seeds {' '.join(map(str, sorted(seeds)))}"
        spaces = [each.name for each in sorted({variant.space for variant in self.plans})]
        if len(spaces) > 1:
            said += f", {', '.join(spaces)}"
        lines = [said]
        if len(self.groups) == 1:
            lines.append(f"one read for all of them, {self.groups[0].memory}")
        else:
            limits, remedy = "the memory does", "max-host-memory"
            if max(len(group.variants) for group in self.groups) == most_together():
                limits, remedy = "the open files of a process do", "limit of them (ulimit -n)"
            lines.append(
                f"{limits} not hold all of them at once: {len(self.groups)} groups take "
                f"turns, each with reads of its own; a larger {remedy} would spare reads"
            )
            for group in self.groups:
                members = "; ".join(map(str, group.variants))
                lines.append(f"group of {members}: {group.memory}")
        if len(seeds) > 1 and self.any_plan.reading.seed is not None:
            lines.append(
                "note: seeds train on the rows in different orders, so that each seed has a read "
                "of its own in training; the other passes are shared"
            )
        return lines


def plan_sweep(
    source: Source,
    base: FitConfig,
    variants: Sequence[Variant],
    execution: ExecutionConfig,
    weights: Weights | None = None,
    world: World = ALONE,
) -> SweepPlan:
    """The plan of a sweep of `variants`, with the settings of `base`.

    All processes of `world` must come to the same groups.

    Raises
    ------
    InputError
        As `fit` does, for each of them.
    """
    plans = {
        variant: plan_fit(source, variant.config(base), execution, weights=weights, world=world)
        for variant in variants
    }
    resident = 0 if weights is None else weights.resident_bytes

    def memory(members: Sequence[Variant]) -> MemoryPlan:
        plan = plans[members[0]]
        n_here = world.hosts.count(world.host)
        on_device = [plans[each].device_memory for each in members]
        working = [each.working_bytes for each in on_device if each is not None]
        # It refuses fits that one card does not hold.
        plan_device_memory(
            source.spec, plan.reading, execution, plan.device, fixed_bytes=sum(working),
            weighted=weights is not None, n_processes=sharing(plan.device, n_here),
        )  # fmt: skip
        fixed = bytes_together([plans[each].memory.fixed_bytes for each in members], resident)
        return plan_memory(
            source.spec, plan.reading, execution, fixed_bytes=fixed, weighted=weights is not None,
            n_processes=n_here,
        )  # fmt: skip

    largest_first = sorted(variants, key=lambda each: (-each.k, each.space, each.seed))
    groups = in_groups([[each] for each in largest_first], memory, most_together())
    world.agree({"groups of fits that the memory holds": "; ".join(map(_named, groups))})
    return SweepPlan(plans, [Group(members, memory(members)) for members in groups])


def _named(group: Sequence[Variant]) -> str:
    return " ".join(each.name for each in group)


def most_together() -> int:
    """Fits whose files a process may hold open at once; at least one."""
    n_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if n_files == resource.RLIM_INFINITY:
        return sys.maxsize
    return max((n_files - OTHER_FILES) // FILES_OF_FIT, 1)


def in_groups(
    parts: Sequence[list[T]],
    memory: Callable[[Sequence[T]], MemoryPlan],
    most: int = sys.maxsize,
) -> list[list[T]]:
    """Join `parts` to as few groups as the memory allows, in their order.

    A part joins the group before it if reading and arithmetic can still overlap then, if they can
    without it, and if they are `most` then at most. `memory` gives the memory plan of a group, or
    raises `MemoryBudgetError`.
    """
    groups: list[list[T]] = []
    for part in parts:
        is_full = bool(groups) and len(groups[-1]) + len(part) > most
        if groups and not is_full and _fits([*groups[-1], *part], groups[-1], memory):
            groups[-1] += part
        else:
            groups.append(list(part))
    return groups


def _fits(
    joined: Sequence[T], before: Sequence[T], memory: Callable[[Sequence[T]], MemoryPlan]
) -> bool:
    try:
        n_slots = memory(joined).stream.n_slots
    except MemoryBudgetError:
        return False
    return n_slots >= min(LEAST_SLOTS, memory(before).stream.n_slots)


def kept_bytes(source: Source, groups: Sequence[Group], *, taken: int = 0) -> int:
    """Bytes of rows to keep in memory that all `groups` leave; none of rows that lie there.

    `taken` are bytes that something else takes of what they leave.
    """
    spec, free_bytes = source.spec, min(group.free_bytes for group in groups) - taken
    if isinstance(source, MemorySource | TensorSource):
        return 0
    block_bytes = spec.block_rows * spec.row_bytes
    room = max(free_bytes, 0) * block_bytes // (block_bytes + BESIDE_BLOCK)
    return min(room, spec.nbytes)
