"""The kernel of a run: chosen once, made for as many centroids as a phase has, and counted."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from streamkm.kernels import KernelRequest, cores_for_kernels, make_kernel, resolve_kernel
from streamkm.runs.planning.environment import describe_kernel

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from streamkm.kernels import Kernel
    from streamkm.runs.planning.fit_plan import FitPlan

__all__ = ["RunKernel"]


class RunKernel:
    """Who does the arithmetic of one attempt at a fit."""

    def __init__(self, plan: FitPlan) -> None:
        self._plan = plan
        self.name = resolve_kernel(plan.execution.kernel, plan.device)
        self.n_assigned = 0
        """Rows that this attempt gave to `for_clusters`."""

    def __str__(self) -> str:
        return describe_kernel(self._plan.execution.kernel, self.name, self._plan.config.precision)

    @cached_property
    def for_clusters(self) -> Kernel:
        """For the k centroids of the run; made when it is needed, after seeding's are gone."""
        return self.for_centroids(self._plan.config.k)

    def for_centroids(self, n_centroids: int) -> Kernel:
        """Another one, for batches of the run and `n_centroids` centroids."""
        config, plan = self._plan.config, self._plan
        request = KernelRequest(
            config.batch_rows,
            n_centroids,
            plan.dtype,
            plan.device,
            config.precision,
            plan.execution.tune,
        )
        return make_kernel(self.name, request)

    def cores(self) -> AbstractContextManager[None]:
        """To be held while rows are assigned: see `cores_for_kernels`."""
        return cores_for_kernels(self.name)

    def rechecked(self) -> dict[str, float]:
        """Share of the rows given to `for_clusters` that it had to score again."""
        if self.n_assigned == 0:
            return {}
        return {"rechecked_share": int(self.for_clusters.n_rechecked) / self.n_assigned}
