"""Heads of points, by which `CpuKernel` rules most centroids out with a part of the products.

Points are turned to the main axes of the centroids. What a point measures along the first of these,
and the length of all that is left, are its head. Heads are never farther apart than points, so that
a centroid is ruled out whose head is farther away than another centroid is itself (see
``native/heads.h``). Labels and distances have the same bits with any heads and with none. So heads
are found while a kernel works, and nothing of them is saved.

How many directions pay, if any, depends on the data. `find_heads` models the time that several
numbers of them take by a few rows whose distances are known, unless the centroids differ along too
many axes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

__all__ = ["Heads", "find_heads"]

#: Numbers that heads may have are multiples of this.
STEP = 32
#: Centroids that axes are found from, at least, and for each feature.
AXES_CENTROIDS, CENTROIDS_PER_FEATURE = 2048, 2
#: Features from which on finding axes takes too long, and their share up to which as many axes of
#: equal variance are few.
MOST_FEATURES, FEW_AXES = 2048, 0.4
#: Rows and centroids that are compared.
TRIED_ROWS, TRIED_CENTROIDS = 128, 1024
#: Candidates from which on a row is compared with all centroids (``native/bytes.h``).
MOST_CANDIDATES = 128
#: What takes time beside screening, in products of screening in seven bits: comparing a candidate,
#: and a feature of it (``native/dispatch.h``), a product of float32, and looking at a score.
PRODUCTS_OF_ONE, PRODUCTS_OF_FEATURE, PRODUCTS_OF_FLOAT, PRODUCTS_OF_SCORE = 9400, 15, 2.4, 12
#: Share of the time of screening by all features up to which heads are promising.
PROMISING = 0.8


class Heads(NamedTuple):
    """Directions of heads."""

    directions_MD: torch.Tensor
    """Orthonormal rows, float32, but for rounding."""
    middle_D: torch.Tensor
    """What points are less before they are turned, of the dtype of rows."""
    skew: float
    """Frobenius norm of directions times their transpose, less the identity."""


def find_heads(
    x_BD: torch.Tensor, sq_distances_B: torch.Tensor, centroids_KD: torch.Tensor, bits: int
) -> Heads | None:
    """Directions by which rows like these are assigned soonest, or None if all features are.

    `sq_distances_B` are the squared distances of the rows `x_BD` to their nearest centroids. `bits`
    are those of the whole numbers that rows are screened in by all features.
    """
    k, n_features = centroids_KD.shape
    if n_features > MOST_FEATURES:
        return None
    n_centroids = max(AXES_CENTROIDS, CENTROIDS_PER_FEATURE * n_features)
    some_CD = centroids_KD[:: -(-k // n_centroids)]
    middle_D = some_CD.mean(dim=0)
    some_CD = (some_CD - middle_D).float()
    covariance_DD = some_CD.mT @ some_CD
    # As many axes of equal variance would have such a sum of squares (the participation ratio).
    n_axes = float(covariance_DD.trace().square() / covariance_DD.square().sum())
    x_BD = (x_BD[:TRIED_ROWS] - middle_D).float()
    if not (n_axes <= FEW_AXES * n_features and x_BD.isfinite().all()):  # NaN too.
        return None
    axes_DD = torch.linalg.eigh(covariance_DD).eigenvectors.flip(1)
    some_CD = some_CD[:: -(-len(some_CD) // TRIED_CENTROIDS)]
    n_numbers, cost = _cheapest(
        x_BD @ axes_DD, sq_distances_B[: len(x_BD)].float(), some_CD @ axes_DD, k, bits
    )
    if cost > PROMISING:
        return None
    directions_MD = axes_DD[:, : n_numbers - 1].mT.contiguous()
    products_MM = directions_MD.double() @ directions_MD.double().mT
    skew = float((products_MM - torch.eye(len(products_MM), dtype=torch.float64)).norm())
    return Heads(directions_MD, middle_D, skew)


def _cheapest(
    x_BD: torch.Tensor, sq_distances_B: torch.Tensor, some_CD: torch.Tensor, k: int, bits: int
) -> tuple[int, float]:
    """The number of numbers of a head that takes least time, and that time, of turned points.

    In shares of the time of screening by all features.
    """
    n_features = x_BD.shape[1]
    # Sets of sixteen bits screen heads in seven and eight; the others make twice as many products.
    pace, largest_c = (2, 127) if bits == 8 else (1, 63)
    sq_B, sq_C = x_BD.square().sum(dim=1), some_CD.square().sum(dim=1)
    sq_heads_B, sq_heads_C = torch.zeros_like(sq_B), torch.zeros_like(sq_C)
    products_BC = x_BD.new_zeros(len(x_BD), len(some_CD))
    best, least = 0, math.inf
    start = 0
    for n_numbers in range(STEP, n_features, STEP):
        x_BS, c_CS = (points[:, start : n_numbers - 1] for points in (x_BD, some_CD))
        start = n_numbers - 1
        products_BC += x_BS @ c_CS.mT
        sq_heads_B += x_BS.square().sum(dim=1)
        sq_heads_C += c_CS.square().sum(dim=1)
        tails_B = (sq_B - sq_heads_B).clamp_min(0).sqrt()
        tails_C = (sq_C - sq_heads_C).clamp_min(0).sqrt()
        sq_lows_BC = sq_B[:, None] + sq_C - 2 * (products_BC + tails_B[:, None] * tails_C)
        # Of rounding to steps a number keeps a twelfth of a squared step, on average.
        rests_B, rests_C = (
            torch.maximum(points[:, : n_numbers - 1].abs().amax(dim=1), tails / 2)
            / largest
            * math.sqrt(n_numbers / 12)
            for points, tails, largest in ((x_BD, tails_B, 127), (some_CD, tails_C, largest_c))
        )
        errors_BC = 2 * (rests_B[:, None] * sq_C.sqrt() + sq_B.sqrt()[:, None] * rests_C)
        n_near_B = (sq_lows_BC - errors_BC <= sq_distances_B[:, None]).sum(dim=1)
        n_near_B = n_near_B * (k / len(some_CD))
        crowded = float((n_near_B > MOST_CANDIDATES).double().mean())
        candidates = float(n_near_B.clamp(max=MOST_CANDIDATES).double().mean())
        of_candidates = candidates * (PRODUCTS_OF_ONE + PRODUCTS_OF_FEATURE * n_features)
        of_turning = PRODUCTS_OF_FLOAT * n_numbers * n_features
        others = pace * ((of_candidates + of_turning) / k + PRODUCTS_OF_SCORE) / n_features
        cost = n_numbers / n_features + others + crowded
        if cost < least:
            best, least = n_numbers, cost
    return best, least
