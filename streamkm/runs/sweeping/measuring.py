"""How the fits of a sweep are measured: in a read of their own, or on a sample without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from streamkm.runs.sweeping.figures import measure_all_rows, plan_measuring
from streamkm.runs.sweeping.planning import kept_bytes
from streamkm.runs.sweeping.sampled import measure_sampled, plan_sampling
from streamkm.sources.memory import MemorySource
from streamkm.sources.remembered import RememberedRows
from streamkm.sources.sampled import SampledRows
from streamkm.stream.tensor_source import TensorSource
from streamkm.text import format_bytes

if TYPE_CHECKING:
    from contextlib import ExitStack

    from streamkm.config import ExecutionConfig
    from streamkm.distributed.world import World
    from streamkm.runs.reporting.progress import Progress
    from streamkm.runs.storage.model import Model
    from streamkm.runs.sweeping.figures import Measured, MeasuringPlan
    from streamkm.runs.sweeping.planning import SweepPlan
    from streamkm.runs.sweeping.sampled import Sampling
    from streamkm.runs.sweeping.together import StopAll
    from streamkm.runs.sweeping.variants import Variant
    from streamkm.sources.base import ArraySpec, Source
    from streamkm.sources.weights import Weights

__all__ = ["FiguresPlan", "SharedRows", "measure", "plan_figures"]


@dataclass(frozen=True)
class FiguresPlan:
    """How fits are measured, and what of the rows is kept in memory beside them."""

    reading: MeasuringPlan
    """The read that measures, unless there is a sample."""
    sampling: Sampling | None
    """The sample; None if figures are taken of all rows."""
    kept_bytes: int
    """Bytes of rows that are kept once they were read."""

    def lines(self, spec: ArraySpec) -> list[str]:
        """What is kept and what is measured, for people."""
        lines = []
        if self.kept_bytes:
            share = min(self.kept_bytes / spec.nbytes, 1.0)
            lines.append(
                f"rows kept in memory after their first read: {format_bytes(self.kept_bytes)} "
                f"more, {'all' if share == 1 else f'{share:.0%}'} of them"
            )
        if self.sampling is not None:
            lines.append(
                "silhouettes, Davies-Bouldin and stability of a sample of "
                f"{len(self.sampling.rows_S):,} rows, {format_bytes(self.sampling.n_bytes)} more; "
                "all-rows takes them of all rows, with one more read"
            )
        return lines

    @property
    def n_reads(self) -> int:
        """Reads that measure."""
        return 0 if self.sampling is not None else len(self.reading.groups)


def plan_figures(
    plan: SweepPlan,
    source: Source,
    execution: ExecutionConfig,
    weights: Weights | None,
    *,
    all_rows: bool,
) -> FiguresPlan:
    """How the fits of `plan` are measured.

    Of all rows, where `all_rows` asks for it, where they lie in memory after the fits, or where
    no sample can be taken (see `plan_sampling`). Else of a sample, so that no read is added.

    Raises
    ------
    MemoryBudgetError
        As `plan_measuring`.
    """
    reading = plan_measuring(plan, source, execution, weights)
    kept = kept_bytes(source, [*plan.groups, *reading.groups])
    is_in_memory = isinstance(source, MemorySource | TensorSource) or kept >= source.spec.nbytes
    if all_rows or is_in_memory:
        return FiguresPlan(reading, None, kept)
    sampling = plan_sampling(plan, source, execution, weights)
    if sampling is None:
        return FiguresPlan(reading, None, kept)
    kept = kept_bytes(source, [*plan.groups, sampling.group], taken=sampling.n_bytes)
    return FiguresPlan(reading, sampling, kept)


def measure(
    models: dict[Variant, Model],
    plan: FiguresPlan,
    rows: SharedRows,
    execution: ExecutionConfig,
    *,
    stop: StopAll,
    weights: Weights | None,
    progress: Progress,
) -> tuple[list[Measured], list[tuple[Variant, list[float]]]]:
    """The figures of each fit, and of those of several seeds the agreement of every pair.

    That stands beside the first of these fits, in their order.

    Raises
    ------
    StreamkmError
        After a signal.
    """
    if plan.sampling is None:
        return measure_all_rows(
            models, plan.reading, rows.source, execution,
            stop=stop, weights=weights, progress=progress,
        )  # fmt: skip
    assert rows.sampled is not None
    return measure_sampled(
        models, plan.sampling, rows.sampled, execution, stop=stop, progress=progress
    )


@dataclass(frozen=True)
class SharedRows:
    """The rows of a sweep as its fits read them."""

    source: Source
    """A view that keeps what fits in memory."""
    sampled: SampledRows | None
    """What copies the sample, if there is one."""

    def gather_(self, world: World) -> None:
        """Bring to the first process what all have copied of the sample."""
        if self.sampled is None or world.size == 1:
            return
        places, rows = self.sampled.copied()
        everybody = zip(
            world.gather_rows(torch.from_numpy(places)),
            world.gather_rows(torch.from_numpy(rows.view(np.uint8))),
            strict=True,
        )
        for theirs, found in everybody:
            self.sampled.take_(theirs.numpy(), found.numpy().view(rows.dtype))

    @classmethod
    def open(cls, source: Source, plan: FiguresPlan, stack: ExitStack) -> SharedRows:
        """The rows of `source`; what is kept of them is freed when `stack` is closed."""
        sampled = None
        if plan.sampling is not None:
            source = sampled = SampledRows(source, plan.sampling.rows_S)
        if plan.kept_bytes:
            source = kept = RememberedRows(source, plan.kept_bytes)
            stack.callback(kept.close)
        return cls(source, sampled)
