"""The kernel of a run, and the algorithms that it works for."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from streamkm.clustering.lloyd import Lloyd
from streamkm.clustering.minibatch import MiniBatch
from streamkm.kernels import make_kernel, resolve_kernel
from streamkm.kernels.extension import cores_for_kernels
from streamkm.runs.planning.devices import describe_kernel

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

    from streamkm.config import ExecutionConfig, ResolvedFitConfig
    from streamkm.kernels import Kernel

__all__ = ["Arithmetic"]


class Arithmetic:
    """Makes what a run needs of one kernel, and counts the rows that it was given."""

    def __init__(
        self,
        config: ResolvedFitConfig,
        execution: ExecutionConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._config, self._execution, self.dtype, self._device = config, execution, dtype, device
        self.kernel_name = resolve_kernel(execution.kernel, device)
        self.n_assigned = 0
        """Rows that were given to the kernel by this attempt."""

    def __str__(self) -> str:
        return describe_kernel(self._execution.kernel, self.kernel_name, self._config.precision)

    def algorithm(self, n_rows: int) -> MiniBatch | Lloyd:
        """What trains on an array of `n_rows`."""
        config = self._config
        if config.algorithm == "lloyd":
            return self._lloyd(closing=False)
        spherical = config.metric == "cosine"
        return MiniBatch(self._kernel, n_rows, config.seed, spherical, config.max_no_improvement)

    def closing(self) -> Lloyd:
        """What closes a run."""
        return self._lloyd(closing=True)

    def cores(self) -> AbstractContextManager[None]:
        """To be held while rows stream through an algorithm."""
        return cores_for_kernels(self.kernel_name)

    def rechecked(self) -> dict[str, float]:
        """Share of the rows given to the kernel that it had to score again."""
        if self.n_assigned == 0:
            return {}
        return {"rechecked_share": int(self._kernel.n_rechecked) / self.n_assigned}

    def _lloyd(self, *, closing: bool) -> Lloyd:
        config = self._config
        return Lloyd(self._kernel, config.seed, config.metric == "cosine", closing)

    @cached_property
    def _kernel(self) -> Kernel:
        """Made when it is needed: its buffers are none of the seeding's."""
        return self.kernel_for(self._config.k)

    def kernel_for(self, n_centroids: int) -> Kernel:
        """Another kernel, for batches of the run and so many centroids."""
        return make_kernel(
            self.kernel_name,
            self._config.batch_rows,
            n_centroids,
            self.dtype,
            self._device,
            precision=self._config.precision,
            tune=self._execution.tune,
        )
