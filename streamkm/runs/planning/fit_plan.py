"""The fit plan: all that follows from the source, the settings and the machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np

from streamkm.clustering.scaling import compute_dtype
from streamkm.clustering.seeding.plan import N_ROUNDS, plan_seeding
from streamkm.clustering.size_plan import MOST_PASSES
from streamkm.devices import is_host, sharing
from streamkm.kernels import resolve_kernel
from streamkm.runs.planning.device_memory import plan_device_memory
from streamkm.runs.planning.given_centroids import given_centroids
from streamkm.runs.planning.memory import (
    carried_bytes,
    fit_bytes,
    plan_memory,
    within_memory,
    working_bytes,
)
from streamkm.runs.planning.residency import plan_residency
from streamkm.stream.plan import plan_reading
from streamkm.stream.transfer import as_stored_tensor
from streamkm.tables import ALGORITHMS

if TYPE_CHECKING:
    import torch

    from streamkm.clustering.seeding.plan import SeedingPlan
    from streamkm.config import ExecutionConfig, ResolvedFitConfig
    from streamkm.runs.planning.device_memory import DeviceMemoryPlan
    from streamkm.runs.planning.earlier import Earlier
    from streamkm.runs.planning.memory import MemoryPlan
    from streamkm.runs.planning.residency import ResidencyPlan
    from streamkm.sources.base import ArraySpec, Source
    from streamkm.sources.weights import Weights
    from streamkm.stream.plan import ReadingPlan

__all__ = ["FitPlan"]


#: Products of a row from which on something is carried from pass to pass: fewer are made in the
#: time that it takes to look at what was carried.
WORTH_PRODUCTS = 8192


@dataclass(frozen=True)
class FitPlan:
    """All that is decided about one fit before a row is read."""

    source: Source
    weights: Weights | None
    config: ResolvedFitConfig
    execution: ExecutionConfig
    device: torch.device
    reading: ReadingPlan
    seeding: SeedingPlan
    memory: MemoryPlan
    device_memory: DeviceMemoryPlan | None
    """None if the device is the host."""
    resident: ResidencyPlan | None
    """Which rows stay in memory; None where nothing is gained by it."""
    stored: torch.dtype
    """Dtype in which rows arrive."""
    dtype: torch.dtype
    """Dtype in which distances are computed."""
    given_KD: np.ndarray | None
    """First centroids, float64, in the space of the input; None if they are to be seeded."""
    earlier: Earlier | None
    """The run that the fit goes on from; None if it begins anew."""
    kernel: str
    """Name of the kernel: the one that was asked for, or the one that ``auto`` takes."""

    @classmethod
    def make(
        cls,
        source: Source,
        config: ResolvedFitConfig,
        execution: ExecutionConfig,
        device: torch.device,
        given_KD: np.ndarray | None,
        weights: Weights | None,
        n_processes: int = 1,
        earlier: Earlier | None = None,
        *,
        trains: bool = True,
    ) -> Self:
        """The plan of a fit on `device`; other parameters are those of `streamkm.runs.fit.fit`.

        `n_processes` is of `plan_memory`; `earlier` is ``config.from_run``. It `trains`, or ends
        with the first centroids.

        Raises
        ------
        MemoryBudgetError
            If one slot and one reader do not fit into the budget.
        ConfigError
            If the first centroids cannot be used.
        DeviceError
            If the kernel that was asked for does not run on `device`.
        """
        spec = source.spec
        shuffles = ALGORITHMS[config.algorithm].shuffles
        reading = plan_reading(
            spec, batch_rows=config.batch_rows, seed=config.seed if shuffles else None
        )
        memory, device_memory = _memory(
            spec, reading, config, execution, device, weights, n_processes
        )
        # Before the run folder is taken, so that nothing is written there.
        kernel = resolve_kernel(execution.kernel, device)
        stored = as_stored_tensor(np.empty((0, 0), spec.storage), spec.dtype).dtype
        dtype, is_plain = compute_dtype(stored), weights is None
        if kernel == "cpu" and stored == dtype and is_plain and _can_carry(config, spec):
            memory = memory.carrying(carried_bytes(spec, reading, config.k))
        shape = spec.n_rows, spec.n_features
        seeding = plan_seeding(*shape, config.k, config.init, config.n_init, config.epochs)
        resident = plan_residency(
            source, reading, execution, memory, device_memory, n_processes=n_processes,
            n_passes=_n_passes(config, seeding, is_new=earlier is None, trains=trains),
        )  # fmt: skip
        return cls(
            source=source,
            weights=weights,
            config=config,
            execution=execution,
            device=device,
            reading=reading,
            seeding=seeding,
            memory=memory,
            device_memory=device_memory,
            resident=resident,
            stored=stored,
            dtype=dtype,
            # Before any pass over the data, so that a wrong file is refused at once.
            given_KD=given_centroids(config, spec.n_features, given_KD),
            earlier=earlier,
            kernel=kernel,
        )

    @property
    def measures_scale(self) -> bool:
        """Whether the scaling takes a pass for the statistics of the features."""
        return self.config.scale in ("zscore", "minmax") and self.earlier is None

    @property
    def carries(self) -> bool:
        """Whether passes keep something of each row for the next ones."""
        return self.memory.carried_bytes > 0

    @property
    def is_weighted(self) -> bool:
        """Whether rows weigh differently: the new ones, or those of the earlier run, or by age."""
        has_weights = self.earlier is not None and len(self.earlier.weights_K) > 0
        return self.weights is not None or has_weights or self.config.half_life is not None

    @property
    def weight_unit(self) -> float | None:
        """A power of two above every weight; None without weights."""
        return None if self.weights is None else self.weights.unit

    def reading_of(self, phase: str) -> ReadingPlan:
        """The reading plan of a phase: every phase but training reads in sequence."""
        return self.reading if phase == "train" else self._in_sequence

    @cached_property
    def _in_sequence(self) -> ReadingPlan:
        return self.reading.in_sequence()


def _can_carry(config: ResolvedFitConfig, spec: ArraySpec) -> bool:
    """Whether passes go over the rows as they lie, with labels that are exact, more than once."""
    is_lloyd = config.algorithm == "lloyd" and config.epochs > 1 and config.precision == "exact"
    as_stored = config.metric == "euclidean" and config.scale == "none"
    return (
        is_lloyd
        and as_stored
        and config.from_run is None
        and config.k * spec.n_features >= WORTH_PRODUCTS
    )


def _memory(
    spec: ArraySpec,
    reading: ReadingPlan,
    config: ResolvedFitConfig,
    execution: ExecutionConfig,
    device: torch.device,
    weights: Weights | None,
    n_processes: int,
) -> tuple[MemoryPlan, DeviceMemoryPlan | None]:
    """The plans of the host's memory and the device's."""
    weighted, probed = weights is not None, execution.probe
    resident = weights.resident_bytes if weights is not None else 0

    def on_host(config: ResolvedFitConfig) -> MemoryPlan:
        needed = fit_bytes(
            spec, reading, config, on_host=is_host(device), weighted=weighted, probed=probed
        )
        return plan_memory(
            spec, reading, execution, fixed_bytes=needed + resident, weighted=weighted,
            n_processes=n_processes,
        )  # fmt: skip

    def on_device(config: ResolvedFitConfig) -> DeviceMemoryPlan | None:
        needed = working_bytes(spec, reading, config, weighted=weighted, probed=probed)
        return plan_device_memory(
            spec, reading, execution, device, fixed_bytes=needed, weighted=weighted,
            n_processes=sharing(device, n_processes), lower="k",
        )  # fmt: skip

    return within_memory(config, on_host), within_memory(config, on_device)


def _n_passes(
    config: ResolvedFitConfig, seeding: SeedingPlan, *, is_new: bool, trains: bool
) -> int:
    """Passes over the array, at most, in a run that begins anew or goes on from another."""
    sizing = config.is_bounded * (MOST_PASSES + 1)
    n_passes = config.epochs + config.closes + sizing if trains else 0
    if is_new:
        n_passes += config.scale in ("zscore", "minmax")
        n_passes += (N_ROUNDS + 1) * bool(seeding.candidate_rows)
    return n_passes
