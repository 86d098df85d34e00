"""Mini-batch k-means for very many clusters: each row is compared with those of one branch alone.

All else is that of `MiniBatch`, and of `Lloyd` in the closing passes. The branches (see
`clustering.branches`) are found anew from the centroids when a pass begins, so that they follow
them. To find them more often, within a pass, changes nothing.

How many rows each branch has is a value that the host needs at every batch. A GPU may not be asked
for one, so this algorithm runs on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from streamkm.clustering.branches import BranchKernel
from streamkm.clustering.lloyd import Lloyd
from streamkm.clustering.minibatch import MiniBatch
from streamkm.distributed.world import ALONE

if TYPE_CHECKING:
    from streamkm.clustering.state import KMeansState
    from streamkm.config import ResolvedFitConfig
    from streamkm.distributed.world import World
    from streamkm.kernels import MadeKernel

__all__ = ["ClosingTree", "Tree"]


@dataclass(frozen=True)
class Tree(MiniBatch):
    """`MiniBatch` with a kernel that searches by branches."""

    @classmethod
    def make(
        cls, kernel: MadeKernel, config: ResolvedFitConfig, n_rows: int,
        world: World = ALONE, weight_unit: float = 1.0,
    ) -> Self:  # fmt: skip
        """See `Algorithm`."""
        branching = BranchKernel(kernel, config.batch_rows)
        return super().make(branching, config, n_rows, world, weight_unit)

    def begin_epoch_(self, state: KMeansState) -> None:
        """Begin an epoch, and find the branches."""
        super().begin_epoch_(state)
        _find_branches_(state, self.kernel, self.seed, self.world)

    def _kernel_for(self, state: KMeansState) -> MadeKernel:
        return _by_branches(self.kernel, state)


@dataclass(frozen=True)
class ClosingTree(Lloyd):
    """The closing passes of `Tree`: clusters are those that its search finds."""

    def begin_epoch_(self, state: KMeansState) -> None:
        """Begin a pass, and find the branches."""
        super().begin_epoch_(state)
        _find_branches_(state, self.kernel, self.seed, self.world)

    def _kernel_for(self, state: KMeansState) -> MadeKernel:
        return _by_branches(self.kernel, state)


def _by_branches(kernel: MadeKernel, state: KMeansState) -> MadeKernel:
    assert isinstance(kernel, BranchKernel)
    return kernel.on(state.branches)


def _find_branches_(state: KMeansState, kernel: MadeKernel, seed: int, world: World) -> None:
    assert isinstance(kernel, BranchKernel)
    found = kernel.find_branches(state.centroids_KD, len(state.branches_JD), seed)
    for tensor, new in zip(state.branches, found, strict=True):
        tensor.copy_(new)
    # The same in all processes, unless they run on unlike processors.
    world.broadcast_(*state.branches)
