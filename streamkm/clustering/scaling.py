"""The map from stored rows to the scaled space, in which distances are taken.

It is one affine map for each feature, ``(x - shift) * factor``, or it divides each
row by its length. z-score and min-max take shift and factor from `RunningMoments`,
which need one pass. With ``--scale none`` the map still centres features that lie far
from the origin. That changes no distance, but the rounding error of
``|x|^2 - 2 x.c + |c|^2`` grows with the square of the distance from the origin: it
would decide labels if a feature has a mean of 10^6 and a standard deviation of 1.
Values whose squares would leave the range of float32 are all multiplied by one power
of two, which changes no digit; reported figures are divided by it again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch

from streamkm.errors import SourceError
from streamkm.kernels import Moments, moments_in_parts, normalized

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["RunningMoments", "Scaling", "compute_dtype"]

#: A feature is centred if its mean is further from 0 than this many standard deviations.
FAR_FROM_ORIGIN = 2.0

#: float32 rows whose greatest length lies between these keep their size: their squares, and
#: those of differences that lost most digits, are far from either end of float32's range.
LEAST_REACH, MOST_REACH = 2.0**-30, 2.0**50
#: The largest factor: its reciprocal is the least normal number of float32.
MOST_FACTOR = 2.0**126

_FLOAT32 = torch.finfo(torch.float32)

_WIDE = (torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64)


def compute_dtype(stored: torch.dtype) -> torch.dtype:
    """float64 for dtypes that float32 cannot hold exactly (float64, 32- and 64-bit integers)."""
    return torch.float64 if stored in _WIDE else torch.float32


@dataclass
class RunningMoments(Moments):
    """Count, mean, sum of squared deviations, least and greatest value of each feature.

    Batches are merged in float64 by the pairwise update of Chan, Golub and LeVeque
    (1983). Rows that are not finite are left out. With weights, a row of weight w counts
    as w rows, as in scikit-learn's StandardScaler.
    """

    @classmethod
    def empty(cls, n_features: int, device: torch.device) -> RunningMoments:
        """Moments of no rows."""
        # torch.full and not full_like: on the device "meta", where tensors of a checkpoint are
        # compared with these, the latter imports Python modules for a second.
        of_features = partial(torch.full, (n_features,), dtype=torch.float64, device=device)
        return cls(
            count=torch.zeros((), dtype=torch.float64, device=device),
            mean_D=of_features(0),
            m2_D=of_features(0),
            min_D=of_features(torch.inf),
            max_D=of_features(-torch.inf),
            n_dropped=torch.zeros((), dtype=torch.int64, device=device),
        )

    @classmethod
    def of(cls, x_BD: torch.Tensor, weights_B: torch.Tensor | None = None) -> RunningMoments:
        """Moments of the rows of one array."""
        first, *others = moments_in_parts(x_BD, weights_B)
        moments = cls(**vars(first))
        for part in others:
            moments._join_(part)
        return moments

    def update_(self, x_BD: torch.Tensor, weights_B: torch.Tensor | None = None) -> None:
        """Merge the rows of a batch, of any dtype, with their weights."""
        self.join_(moments_in_parts(x_BD, weights_B))

    def join_(self, parts: Iterable[Moments]) -> None:
        """Merge the moments of further rows, in this order."""
        for part in parts:
            self._join_(part)

    def _join_(self, part: Moments) -> None:
        delta_D = part.mean_D - self.mean_D
        total = _positive(self.count + part.count)
        self.m2_D += part.m2_D + delta_D.square() * (self.count * part.count / total)
        self.mean_D += delta_D * (part.count / total)
        self.min_D = torch.minimum(self.min_D, part.min_D)
        self.max_D = torch.maximum(self.max_D, part.max_D)
        self.count += part.count
        self.n_dropped += part.n_dropped

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def variance_D(self) -> torch.Tensor:
        """Population variance of each feature."""
        return self.m2_D / _positive(self.count)

    def is_constant_D(self) -> torch.Tensor:
        """Which features have a variance that rounding alone could give to equal values.

        The bound is scikit-learn's, ``n eps var + (n mean eps)^2``.
        """
        eps = torch.finfo(torch.float64).eps
        bound_D = self.count * eps * self.variance_D + (self.count * self.mean_D * eps).square()
        return self.variance_D <= bound_D


@dataclass
class Scaling:
    """The map from stored rows to the scaled space.

    With `normalize` it divides rows by their lengths; otherwise it is the affine map.
    """

    shift_D: torch.Tensor
    factor_D: torch.Tensor
    normalize: bool
    keeps_units: bool = False
    """Whether reported distances are divided by the factor, a power of two that all features
    share: true with ``--scale none``, since the user did not ask for the factor."""

    @property
    def unit(self) -> float:
        """Length in the scaled space of a reported distance of 1."""
        return float(self.factor_D[0]) if self.keeps_units else 1.0

    @classmethod
    def fit(
        cls,
        scale: str,
        metric: str,
        moments: RunningMoments,
        dtype: torch.dtype = torch.float64,
    ) -> Scaling:
        """The map that ``--scale`` and ``--metric`` ask for, given the moments of the data.

        With ``none`` the moments may be those of a sample: they decide only about
        centring and the power of two. Shift and factor are rounded to `dtype`, in which
        rows will be scaled, so that `inverse` undoes exactly what rows went through.

        Raises
        ------
        SourceError
            If values leave the range of float32, in which centroids are saved, or a feature
            varies too little for a factor.
        """
        one_D = torch.ones_like(moments.mean_D)
        if scale == "l2" or metric == "cosine":
            return cls(torch.zeros_like(one_D), one_D, normalize=True)
        _check_range(moments, scale, dtype)
        if scale == "zscore":
            deviation_D = torch.where(moments.is_constant_D(), one_D, moments.variance_D.sqrt())
            shift_D, factor_D = moments.mean_D, deviation_D.reciprocal()
        elif scale == "minmax":
            extent_D = moments.max_D - moments.min_D
            extent_D = torch.where(extent_D > 0, extent_D, one_D)
            shift_D, factor_D = moments.min_D, extent_D.reciprocal()
        else:
            shift_D = _centre(moments)
            factor_D = one_D * (_unit(moments, shift_D) if dtype == torch.float32 else 1.0)
        return cls(
            shift_D.to(dtype).double(),
            factor_D.to(dtype).double(),
            normalize=False,
            keeps_units=scale == "none",
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by its name."""
        return {"shift_D": self.shift_D, "factor_D": self.factor_D}

    def on(self, device: torch.device) -> Scaling:
        """The same map on `device`; the map itself if it is there."""
        shift_D, factor_D = self.shift_D.to(device), self.factor_D.to(device)
        if shift_D is self.shift_D and factor_D is self.factor_D:
            return self
        return replace(self, shift_D=shift_D, factor_D=factor_D)

    def transform(self, centroids_KD: torch.Tensor) -> torch.Tensor:
        """Points of the input's space in the scaled space, float64."""
        points_KD = centroids_KD.double()
        if self.normalize:
            return normalized(points_KD)
        return (points_KD - self.shift_D) * self.factor_D

    def inverse(self, centroids_KD: torch.Tensor) -> torch.Tensor:
        """Points of the scaled space in the input's space, float64.

        Division by length cannot be undone: with L2 scaling or the cosine metric
        points stay where they are, within the unit ball.
        """
        points_KD = centroids_KD.double()
        return points_KD if self.normalize else points_KD / self.factor_D + self.shift_D

    @cached_property
    def is_affine(self) -> bool:
        """Whether rows are shifted or multiplied; asks the device once."""
        unmoved = (self.shift_D == 0).all() & (self.factor_D == 1).all()
        return not self.normalize and not bool(unmoved)


def _positive(total: torch.Tensor) -> torch.Tensor:
    """`total` as a divisor: 1 where it is 0."""
    return torch.where(total > 0, total, 1)


def _check_range(moments: RunningMoments, scale: str, dtype: torch.dtype) -> None:
    """Refuse values that give no centroid in float32, or no factor in `dtype`."""
    most, least = _FLOAT32.max, _FLOAT32.tiny
    if not bool(moments.count > 0):
        return
    largest_D = torch.maximum(moments.max_D.abs(), moments.min_D.abs())
    largest = float(largest_D.max())
    if largest > most or (dtype == torch.float64 and 0 < largest < least):
        what = f"values reach {largest:.3g} (feature {int(largest_D.argmax())})"
    elif scale != "none" and (feature := _too_even(moments, scale, least)) is not None:
        extent = float(moments.max_D[feature] - moments.min_D[feature])
        what = f"the values of feature {feature} differ by {extent:.3g} at most"
    else:
        return
    raise SourceError(
        f"{what}: centroids are float32, which goes from {least:.2g} to {most:.2g}; "
        "multiply the data by a power of ten first"
    )


def _too_even(moments: RunningMoments, scale: str, least: float) -> int | None:
    """The first feature that would be divided by less than `least`, but not by 0; None if none."""
    extent_D = moments.max_D - moments.min_D
    divisor_D = moments.variance_D.sqrt() if scale == "zscore" else extent_D
    too_small_D = (extent_D > 0) & (divisor_D < least)
    return int(too_small_D.long().argmax()) if bool(too_small_D.any()) else None


def _unit(moments: RunningMoments, shift_D: torch.Tensor) -> float:
    """The power of two that brings the longest row to about 1, or 1 if it is near enough."""
    reach_D = torch.maximum(moments.max_D - shift_D, shift_D - moments.min_D)
    reach = float(torch.linalg.vector_norm(reach_D))
    if not math.isfinite(reach) or reach == 0 or LEAST_REACH <= reach <= MOST_REACH:
        return 1.0
    return min(2.0 ** -math.floor(math.log2(reach)), MOST_FACTOR)


def _centre(moments: RunningMoments) -> torch.Tensor:
    """The shift of features far from the origin, 0 for the others.

    The mean is rounded to a multiple of the power of two below the standard deviation.
    Subtracting that is exact in floating point for every value that it brings closer to
    0, so that centring does not change the data, and sums of integers stay exact. (The
    exception is outliers by millions of deviations, whose last digits lie above that
    power.)
    """
    deviation_D = moments.variance_D.sqrt()
    far_D = (moments.mean_D.abs() > FAR_FROM_ORIGIN * deviation_D) & moments.mean_D.isfinite()
    step_D = torch.exp2(torch.floor(torch.log2(deviation_D)))
    rounded_D = torch.where(
        step_D > 0, torch.round(moments.mean_D / step_D) * step_D, moments.mean_D
    )
    return torch.where(far_D, rounded_D, torch.zeros_like(rounded_D))
