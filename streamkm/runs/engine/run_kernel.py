"""The kernel of a run: made for each number of centroids, its rechecks counted."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING

from streamkm.clustering.carried import CarriedRows
from streamkm.kernels import KernelRequest, cores_for_kernels, make_kernel
from streamkm.runs.planning.environment import describe_kernel

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from streamkm.kernels import Kernel
    from streamkm.runs.planning.fit_plan import FitPlan

__all__ = ["RunKernel"]


class RunKernel:
    """Makes the kernels of one attempt at a fit, all of the same kind."""

    def __init__(self, plan: FitPlan) -> None:
        self._plan = plan
        self.assigned: Counter[str] = Counter()
        """Rows that this attempt gave to `for_clusters`, by phase."""
        self.carried = CarriedRows(plan.reading) if plan.carries else None
        """What passes leave for the next ones; None where nothing is kept."""

    def __str__(self) -> str:
        plan = self._plan
        return describe_kernel(plan.execution.kernel, plan.kernel, plan.config.precision)

    @cached_property
    def for_clusters(self) -> Kernel:
        """The kernel for the run's k centroids, made on first use: seeding's are freed by then."""
        return self.for_centroids(self._plan.config.k)

    def for_centroids(self, n_centroids: int) -> Kernel:
        """A new kernel for batches of the run and `n_centroids` centroids."""
        config, plan = self._plan.config, self._plan
        request = KernelRequest(
            config.batch_rows,
            n_centroids,
            plan.dtype,
            plan.device,
            config.precision,
            plan.execution.tune,
        )
        return make_kernel(plan.kernel, request)

    def cores(self) -> AbstractContextManager[None]:
        """A context to hold while rows are assigned: see `cores_for_kernels`."""
        return cores_for_kernels(self._plan.kernel)

    def shares(self) -> dict[str, float]:
        """The figure `rechecked_share`: the share of the rows `assigned` that were rechecked.

        Where something is carried from pass to pass, `spared_share` as well: the share of the
        comparisons with centroids that were not made.
        """
        if not self.assigned.total():  # Of several processes one may not have had a row yet.
            return {}
        shares = {"rechecked_share": int(self.for_clusters.n_rechecked) / self.assigned.total()}
        if self.carried is not None:
            shares["spared_share"] = self.carried.spared_share
        return shares
