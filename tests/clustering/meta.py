"""torch's device of no memory: what would make the host wait for a device, or mixes two, raises."""

from __future__ import annotations

import torch

from streamkm.kernels import Assignment, Rows
from streamkm.kernels.base import assign_then_add

META = torch.device("meta")


class MetaKernel:
    """Of each result the shape and dtype, as the kernel of a GPU gives them."""

    name = "meta"
    n_rechecked = torch.zeros((), dtype=torch.int64, device=META)
    stored_dtypes = (torch.float16, torch.bfloat16, torch.uint8, torch.int8)
    distances_cancel = False
    in_place = None
    whole_passes = None
    stepper = None

    @classmethod
    def check(cls, device) -> None:
        raise AssertionError("no step chooses a kernel")

    @classmethod
    def make(cls, request):
        raise AssertionError("no step makes a kernel")

    def assign(self, x_BD, sq_norms_B, centroids_KD) -> Assignment:
        labels_B = torch.zeros(len(x_BD), dtype=torch.int64, device=META)
        return Assignment(labels_B, labels_B.to(centroids_KD.dtype))

    def assign_two(self, x_BD, sq_norms_B, centroids_KD):
        raise AssertionError("no step needs the second nearest")

    def accumulate(self, x_BD, labels_B, *, sums_KD, counts_K, shares_B=None) -> None:
        sums_KD.index_add_(0, labels_B, x_BD.to(sums_KD.dtype))
        counts_K.index_add_(0, labels_B, torch.ones_like(labels_B))

    def step(self, rows: Rows, centroids_KD, *, sums_KD, counts_K) -> Assignment:
        return assign_then_add(self, rows, centroids_KD, sums_KD=sums_KD, counts_K=counts_K)
