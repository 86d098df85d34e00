"""Divides the rows of a sample, which every process has, among the processes of a run.

What takes long in seeding is to compare rows with centroids. Each process compares its part of the
rows, and gets from the others what they found for theirs. What is found for a row does not depend
on who looks, so the bits are those of one process. Sums over rows are then taken by all: they need
one read of the rows, however many centroids there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from streamkm.clustering.seeding.plan import SCORE_PRODUCTS
from streamkm.distributed.world import ALONE
from streamkm.kernels import Assignment, sq_distances_to

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.clustering.seeding.sample import Sample
    from streamkm.distributed.world import World
    from streamkm.kernels import Kernel

__all__ = ["ALL_HERE", "Shares"]

#: Products of two numbers that pay for handing round what was found: some 5 ms of one core.
LEAST_PRODUCTS = 1 << 29


@dataclass(frozen=True)
class Shares:
    """The processes of `world`, as seeding uses them; all call `find` in the same order."""

    world: World = ALONE

    def find(
        self,
        x_RD: torch.Tensor,
        n_centroids: int,
        dtypes: tuple[torch.dtype, ...],
        find: Callable[[slice], tuple[torch.Tensor, ...]],
    ) -> tuple[torch.Tensor, ...]:
        """What `find` finds for rows that are compared with some centroids.

        Parameters
        ----------
        x_RD : Tensor of shape (R, D)
            The rows; only their shape and device matter.
        n_centroids : int
            How many each is compared with; the same number in all processes.
        dtypes : tuple of torch.dtype
            Of what is found.
        find : callable
            Takes a slice of the rows, and returns tensors of these dtypes of one value a row.
        """
        n_rows, n_features = x_RD.shape
        products = n_rows * n_centroids * (n_features + SCORE_PRODUCTS)
        is_small = products < LEAST_PRODUCTS or n_rows < self.world.size
        if self.world.size == 1 or is_small:
            return find(slice(0, n_rows))
        found = tuple(x_RD.new_empty(n_rows, dtype=dtype) for dtype in dtypes)
        part = self.world.part(n_rows)
        for whole_R, own_P in zip(found, find(part), strict=True):
            whole_R[part] = own_P
        self.world.fill_in_(*found)
        return found

    def assign(
        self,
        sample: Sample,
        centroids_KD: torch.Tensor,
        *,
        kernel: Kernel,
        batch_rows: int,
        exact: bool = False,
        pause: Callable[[], None] = lambda: None,
    ) -> Assignment:
        """The nearest centroid of each row of `sample`, and the squared distance to it.

        Distances are in the dtype of the rows: those of the kernel, or exact ones. `pause` is
        called after every batch.
        """

        def of(part: slice) -> tuple[torch.Tensor, ...]:
            labels, distances = [], []
            for rows in sample.batches(batch_rows, part):
                x_BD = sample.x_SD[rows]
                labels_B, sq_distances_B = kernel.assign(
                    x_BD, sample.sq_norms_S[rows], centroids_KD
                )
                if exact and kernel.distances_cancel:
                    sq_distances_B = sq_distances_to(x_BD, labels_B, centroids_KD).to(x_BD.dtype)
                labels.append(labels_B)
                distances.append(sq_distances_B)
                pause()
            return _joined(labels), _joined(distances)

        x_SD = sample.x_SD
        return Assignment(*self.find(x_SD, len(centroids_KD), (torch.int64, x_SD.dtype), of))


#: One process does it all.
ALL_HERE = Shares()


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """The `parts` one after the other; the only one itself."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
