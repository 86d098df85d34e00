"""Compares a run with the earlier one that it went on from: what moved, and for how many rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamkm.text import counted

if TYPE_CHECKING:
    import torch

    from streamkm.clustering.seeding.sample import Sample
    from streamkm.clustering.seeding.shares import Shares
    from streamkm.kernels import Kernel
    from streamkm.runs.planning.earlier import Earlier

__all__ = ["COMPARED_ROWS", "changes", "changes_line"]

#: Rows of the sample whose clusters are compared, at most: a share of them is then right to 1 %.
COMPARED_ROWS = 1 << 14


def changes(
    earlier: Earlier, centroids_KD: torch.Tensor, sample: Sample, kernel: Kernel, shares: Shares,
    batch_rows: int,
) -> dict[str, Any]:  # fmt: skip
    """How far centroids have moved since `earlier`, and how many rows of `sample` changed cluster.

    Distances are Euclidean, in the scaled space. For every number of processes they are the same.
    """
    before_KD = earlier.centroids_KD.to(centroids_KD.device, centroids_KD.dtype)
    moved_K = (centroids_KD.double() - before_KD.double()).square().sum(dim=1).sqrt()
    moved_K = moved_K.cpu() / earlier.scaling.unit
    labels_S, before_S = (
        shares.assign(sample, points_KD, kernel=kernel, batch_rows=batch_rows).labels_B
        for points_KD in (centroids_KD, before_KD)
    )
    return {
        "moved_mean": float(moved_K.mean()),
        "moved_most": float(moved_K.max()),
        "moved": int((moved_K > 0).sum()),
        "changed_rows": int((labels_S != before_S).sum()),
        "compared_rows": len(labels_S),
    }


def changes_line(found: dict[str, Any]) -> str:
    """What `changes` has found, in words."""
    n_rows, n_changed = found["compared_rows"], found["changed_rows"]
    share = f" ({n_changed / n_rows:.2%})" if n_rows else ""
    return (
        f"{counted(found['moved'], 'centroid')} moved, by {found['moved_mean']:.4g} in the mean "
        f"and {found['moved_most']:.4g} at most; {n_changed:,} of {counted(n_rows, 'row')} of a "
        f"sample changed cluster{share}"
    )
