"""From rows as they are stored to rows as distances are taken between them.

Scaling is one affine map per feature, ``(x - shift) * factor``, or the division
of each row by its length. z-score and min-max take shift and factor from
`RunningMoments`, one streaming pass. Without scaling the map still centres
features that lie far from the origin: distances do not change by it, but the
rounding error of ``|x|^2 - 2 x.c + |c|^2`` grows with the square of the
distance from the origin, and would decide labels where a feature has a mean of
10^6 and a standard deviation of 1. And where values are so large, or so small,
that their squares leave float32, all are multiplied by one power of two, which
changes no digit; what is reported is brought back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property, partial

import torch

from streamkm.clustering.batch import MOST_SQ_NORM, Batch
from streamkm.devices import is_host
from streamkm.errors import SourceError
from streamkm.kernels import Moments, gather, moments_in_parts, normalize_, normalized

__all__ = ["RunningMoments", "Scaling", "compute_dtype"]

#: A feature is centred if its mean is further from 0 than so many standard deviations.
FAR_FROM_ORIGIN = 2.0

#: Lengths of rows of float32 between these are left as they are: their squares, and those of
#: differences of which most digits are gone, are far from either end of the range.
LEAST_REACH, MOST_REACH = 2.0**-30, 2.0**50
#: A factor of float32 is no larger than this.
MOST_FACTOR = 2.0**126

_FLOAT32 = torch.finfo(torch.float32)

_WIDE = (torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64)


def compute_dtype(stored: torch.dtype) -> torch.dtype:
    """float64 for what float32 cannot hold exactly (float64, 32- and 64-bit integers)."""
    return torch.float64 if stored in _WIDE else torch.float32


@dataclass
class RunningMoments(Moments):
    """Count, mean, sum of squared deviations, least and greatest value of each feature.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque (1983),
    in float64. Rows that are not finite are left out. With weights a row counts as
    many times as its weight says, as in scikit-learn's StandardScaler.
    """

    @classmethod
    def empty(cls, n_features: int, device: torch.device) -> RunningMoments:
        """Moments of no rows."""
        # (By size, not like another tensor: torch imports a second's worth of Python for those
        # on its device without memory, where a checkpoint's tensors are compared with these.)
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
        moments = cls.empty(x_BD.shape[1], x_BD.device)
        moments.update_(x_BD, weights_B)
        return moments

    def update_(self, x_BD: torch.Tensor, weights_B: torch.Tensor | None = None) -> None:
        """Merge the rows of a batch, of any dtype, each counted as often as it weighs."""
        for part in moments_in_parts(x_BD, weights_B):
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
        """Where the variance is no more than rounding makes of equal values.

        The bound is scikit-learn's: ``n eps var + (n mean eps)^2``.
        """
        eps = torch.finfo(torch.float64).eps
        bound_D = self.count * eps * self.variance_D + (self.count * self.mean_D * eps).square()
        return self.variance_D <= bound_D


@dataclass
class Scaling:
    """The map from stored rows to the space in which distances are taken.

    Exactly one of its parts acts: the affine map, or the division by length.
    """

    shift_D: torch.Tensor
    factor_D: torch.Tensor
    normalize: bool
    keeps_units: bool = False
    """Whether the factor, one power of two for all features, is taken back in whatever is
    reported: nobody asked for it."""

    @property
    def unit(self) -> float:
        """What one in the space of reported distances is in the scaled space."""
        return float(self.factor_D[0]) if self.keeps_units else 1.0

    @classmethod
    def fit(
        cls,
        scale: str,
        metric: str,
        moments: RunningMoments,
        dtype: torch.dtype = torch.float64,
    ) -> Scaling:
        """The map that ``--scale`` and ``--metric`` ask for, given the data's moments.

        For ``none`` the moments may be those of a sample: they decide only
        about centring. Shift and factor are rounded to `dtype`, in which rows
        will be scaled, so that points go back the very way that rows came.

        Raises
        ------
        SourceError
            If the data leaves the range that `dtype`, or the float32 of the centroids, has.
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

    def transform(self, centroids_KD: torch.Tensor) -> torch.Tensor:
        """Points of the input's space in the scaled space, float64."""
        points_KD = centroids_KD.double()
        if self.normalize:
            return normalized(points_KD)
        return (points_KD - self.shift_D) * self.factor_D

    def inverse(self, centroids_KD: torch.Tensor) -> torch.Tensor:
        """Points of the scaled space in the input's space, float64.

        A row's length cannot be brought back: with L2 scaling and cosine the
        centroids stay where they are, within the unit ball.
        """
        points_KD = centroids_KD.double()
        return points_KD if self.normalize else points_KD / self.factor_D + self.shift_D

    def row_dtype(
        self, stored: torch.dtype, wide: torch.dtype, taken: tuple[torch.dtype, ...]
    ) -> torch.dtype:
        """The dtype of a workspace: `stored` if rows stay as they are and a kernel takes that.

        `taken` are the dtypes that the kernel takes as they are stored.
        """
        return wide if self.normalize or self._moves or stored not in taken else stored

    def prepare(
        self,
        x_ND: torch.Tensor,
        rows: torch.Tensor | slice,
        workspace_BD: torch.Tensor,
        weights_N: torch.Tensor | None = None,
        *,
        in_place: bool = False,
    ) -> Batch:
        """Gather, widen and scale `rows` of a window, which must not be used for them again.

        The result lies in `workspace_BD`, of a dtype that `row_dtype` says, or in the
        window itself where its rows can be used as they are. Then, with `in_place`, they are
        left to a kernel that takes them so: nothing is known of the batch before it has labels.
        """
        dtype = workspace_BD.dtype
        is_as_stored = x_ND.dtype == dtype and not (self.normalize or self._moves)
        if in_place and is_as_stored and weights_N is None:
            if isinstance(rows, slice):
                x_ND, positions_B = x_ND[rows], None
            else:
                positions_B = rows
            unknown = x_ND.new_empty(0)
            return Batch(x_ND, unknown, None, positions_B=positions_B, lies_in_window=True)
        moved_by = (self.shift_D.to(dtype), self.factor_D.to(dtype)) if self._moves else ()
        x_BD, sq_norms_B = gather(x_ND, rows, workspace_BD, *moved_by)
        dropped_B = None
        if x_ND.is_floating_point():
            # Neither NaN.
            dropped_B = ~(sq_norms_B <= MOST_SQ_NORM[sq_norms_B.dtype])
            # Asking costs nothing on the CPU; on a GPU it would wait for the device.
            if is_host(x_BD.device) and not dropped_B.any():
                dropped_B = None
            elif self.normalize:
                # However long, it has a direction.
                dropped_B = ~torch.linalg.vector_norm(x_BD, ord=torch.inf, dim=1).isfinite()
        weights_B = None if weights_N is None else weights_N[rows]
        if dropped_B is not None:
            x_BD.masked_fill_(dropped_B[:, None], 0)
            sq_norms_B.masked_fill_(dropped_B, 0)
            weights_B = None if weights_B is None else weights_B.masked_fill(dropped_B, 0)
        if self.normalize:
            normalize_(x_BD)
            sq_norms_B = torch.linalg.vector_norm(x_BD, dim=1).square_()
        return Batch(x_BD, sq_norms_B, dropped_B, self.normalize, weights_B)

    @cached_property
    def _moves(self) -> bool:
        unmoved = (self.shift_D == 0).all() & (self.factor_D == 1).all()
        return not self.normalize and not bool(unmoved)


def _positive(total: torch.Tensor) -> torch.Tensor:
    """`total`, or 1 in its place where it is 0: to divide by."""
    return torch.where(total > 0, total, 1)


def _check_range(moments: RunningMoments, scale: str, dtype: torch.dtype) -> None:
    """Refuse values from which no centroid in float32, or no factor in `dtype`, can be made."""
    largest_D = torch.maximum(moments.max_D.abs(), moments.min_D.abs())
    extent_D = moments.max_D - moments.min_D
    divisor_D = moments.variance_D.sqrt() if scale == "zscore" else extent_D
    most, least = _FLOAT32.max, _FLOAT32.tiny
    if not bool(moments.count > 0):
        return
    feature = int(largest_D.argmax())
    largest = float(largest_D[feature])
    if largest > most or (dtype == torch.float64 and 0 < largest < least):
        what = f"values reach {largest:.3g} (feature {feature})"
    elif scale != "none" and bool((too_small_D := (extent_D > 0) & (divisor_D < least)).any()):
        feature = int(too_small_D.long().argmax())
        what = f"the values of feature {feature} differ by {float(extent_D[feature]):.3g} at most"
    else:
        return
    raise SourceError(
        f"{what}: centroids are float32, which goes from {least:.2g} to {most:.2g}; "
        "multiply the data by a power of ten first"
    )


def _unit(moments: RunningMoments, shift_D: torch.Tensor) -> float:
    """The power of two that brings rows to a length of about 1; 1 where they are near it."""
    reach_D = torch.maximum(moments.max_D - shift_D, shift_D - moments.min_D)
    reach = float(torch.linalg.vector_norm(reach_D))
    if not math.isfinite(reach) or reach == 0 or LEAST_REACH <= reach <= MOST_REACH:
        return 1.0
    return min(2.0 ** -math.floor(math.log2(reach)), MOST_FACTOR)


def _centre(moments: RunningMoments) -> torch.Tensor:
    """A shift for features far from the origin, 0 for the others.

    The mean is rounded to a multiple of the power of two below the standard
    deviation. Subtracting that is exact in floating point for every value
    that it brings closer to 0 (but for outliers by millions of deviations, whose
    last digits lie above that power), so that centring does not change the data;
    and sums of integers stay exact.
    """
    deviation_D = moments.variance_D.sqrt()
    far_D = (moments.mean_D.abs() > FAR_FROM_ORIGIN * deviation_D) & moments.mean_D.isfinite()
    step_D = torch.exp2(torch.floor(torch.log2(deviation_D)))
    rounded_D = torch.where(
        step_D > 0, torch.round(moments.mean_D / step_D) * step_D, moments.mean_D
    )
    return torch.where(far_D, rounded_D, torch.zeros_like(rounded_D))
