"""The sample that seeding works on, and what the stages of seeding share.

k-means++, a tree, breathing and Lloyd's algorithm on the sample are each a `Stage`. A stage
advances step by step, and its tensors hold all that the steps so far have decided. The
generator of a step is seeded by (seed, kind of stage, number of the stage, step). So a
stage that was saved between two steps goes on with the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Protocol

import torch

from streamkm.clustering.reservoir import mix, step_generator
from streamkm.kernels import drawn_by, sq_distances_between

if TYPE_CHECKING:
    from collections.abc import Iterator


__all__ = [
    "Draws",
    "Sample",
    "Stage",
    "distinct_by",
    "draw_by_weight",
    "draw_distinct",
    "merged",
    "near_one",
]

#: Elements that are hashed at a time.
HASHED_ELEMENTS = 1 << 20
#: The least exponent of a weight by which others are divided: 2 to minus it is still finite.
LEAST_EXPONENT = -1000


@dataclass(frozen=True)
class Draws:
    """The source of a stage's draws."""

    seed: int
    kind: int
    """Kind of the stage, below 0: in training the epoch, at least 0, takes this place."""
    number: int = 0
    """Tells stages of one kind apart."""

    def generator(self, device: torch.device, step: int) -> torch.Generator:
        """The generator of one step."""
        return step_generator(device, step, mixed=self._mixed)

    @cached_property
    def _mixed(self) -> int:
        return mix(self.seed, self.kind, self.number)


@dataclass(frozen=True)
class Sample:
    """S rows in the scaled space, all finite, and their weights."""

    x_SD: torch.Tensor
    weights_S: torch.Tensor | None = None
    """float64, at least 0; None if every row weighs 1."""
    n_heavy: int = 0
    """Rows at the end that are so heavy that every sample has them."""

    def __len__(self) -> int:
        return self.x_SD.shape[0]

    @cached_property
    def sq_norms_S(self) -> torch.Tensor:
        """Squared lengths of the rows."""
        norms_S: torch.Tensor = torch.linalg.vector_norm(self.x_SD, dim=1)
        return norms_S.square_()

    def part(self, chosen_S: torch.Tensor, share: float) -> Sample:
        """The rows where `chosen_S` is true: `share` of the rows, and all heavy rows.

        Weights of heavy rows are multiplied by `share`, since they are in every part.
        """
        weights_S = None if self.weights_S is None else self.weights_S[chosen_S]
        if weights_S is not None and self.n_heavy:
            weights_S[-self.n_heavy :] *= share
        return Sample(self.x_SD[chosen_S], weights_S, self.n_heavy)

    def weighted(self, values_S: torch.Tensor) -> torch.Tensor:
        """`values_S`, with rows as the last dimension, times the weights of the rows."""
        return values_S if self.weights_S is None else values_S * self.weights_S

    def total(self, values_S: torch.Tensor) -> torch.Tensor:
        """Weighted sum of `values_S` over rows, the last dimension; float64."""
        return self.weighted(values_S).sum(dim=-1, dtype=torch.float64)

    def batches(self, batch_rows: int, part: slice | None = None) -> Iterator[slice]:
        """Slices of the rows, or of a part of them, in order, of `batch_rows` rows at most."""
        begin, end, _ = (part or slice(None)).indices(len(self))
        for start in range(begin, end, batch_rows):
            yield slice(start, min(start + batch_rows, end))

    def sq_distances_from(self, rows_L: torch.Tensor) -> torch.Tensor:
        """Squared distances of a few rows of the sample to all its rows, (L, S)."""
        x_LD = self.x_SD.index_select(0, rows_L)
        distances_LS = sq_distances_between(x_LD, self.x_SD, self.sq_norms_S)
        # Rounding would leave a chosen row at some distance from itself, and it could be drawn
        # again.
        return distances_LS.scatter_(1, rows_L[:, None], 0)


def near_one(weights_S: torch.Tensor) -> torch.Tensor:
    """Weights times a power of two, which rounds nothing, that puts the largest in [1, 2).

    Seeding multiplies and divides weights, which would give 0 or infinity for 1e-300 or 1e300.
    """
    exponent = torch.frexp(weights_S.max())[1].double().clamp_min(LEAST_EXPONENT) - 1
    return weights_S * torch.exp2(-exponent)


def merged(sample: Sample, k: int) -> Sample:
    """`sample` with equal rows as one row of their weight, in an order of its own.

    So an array whose rows have weights, and one whose rows are repeated instead, in whatever
    order, are the same sample, from which the same seed draws the same rows. A sample of distinct
    rows that weigh 1 each stays as it is, and so does one of fewer than `k` distinct rows.

    The order is that of a projection on one fixed direction, so that rounding the rows to another
    type hardly changes it. Equal rows are found by 64-bit hashes, which two different rows share by
    chance in one of 10^10 samples; one of the two is then not drawn.
    """
    sorted_S, positions_S = _row_hashes(sample.x_SD).sort(stable=True)
    is_first_S = torch.ones_like(sorted_S, dtype=torch.bool)
    torch.ne(sorted_S[1:], sorted_S[:-1], out=is_first_S[1:])
    first = positions_S[is_first_S]
    n_distinct, weights_S = first.shape[0], sample.weights_S
    is_plain = n_distinct == len(sample) and (weights_S is None or bool((weights_S == 1).all()))
    if n_distinct < k or is_plain:
        return sample
    mass_S = sample.weighted(torch.ones_like(sorted_S, dtype=torch.float64))[positions_S]
    mass = mass_S.new_zeros(n_distinct).index_add_(0, is_first_S.cumsum(0) - 1, mass_S)
    order = _projections(sample.x_SD, first).argsort(stable=True)
    return Sample(sample.x_SD[first[order]], mass[order])


def _projections(x_SD: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The inner products of chosen rows with one direction, float64, a few rows at a time."""
    direction_D = _direction(x_SD.shape[1]).to(x_SD.device)
    parts = chosen.split(max(HASHED_ELEMENTS // x_SD.shape[1], 1))
    return torch.cat([(x_SD[part].double() * direction_D).sum(dim=1) for part in parts])


def _row_hashes(x_SD: torch.Tensor) -> torch.Tensor:
    """A hash of each row, int64: sums of whole numbers, which no order of adding changes."""
    kind = torch.int64 if x_SD.dtype == torch.float64 else torch.int32
    odd_D = _odd_numbers(x_SD.shape[1]).to(x_SD.device)
    hashes_S = torch.empty(len(x_SD), dtype=torch.int64, device=x_SD.device)
    # A few rows at a time, since the words take several times the memory of the rows.
    rows = max(HASHED_ELEMENTS // x_SD.shape[1], 1)
    for x_PD, hashes_P in zip(x_SD.split(rows), hashes_S.split(rows), strict=True):
        words_PD = (x_PD + 0.0).view(kind).long()
        # Mixed, so that the low bits of the words, often all 0, do not decide the low bits of the
        # sum. Shifts are logical: an arithmetic one mixes a word and its complement into the same.
        mixed_PD = (words_PD ^ ((words_PD >> 29) & (1 << 35) - 1)) * odd_D
        torch.sum(mixed_PD ^ ((mixed_PD >> 32) & (1 << 32) - 1), dim=1, out=hashes_P)
    return hashes_S


@lru_cache(maxsize=4)
def _direction(n_features: int) -> torch.Tensor:
    """A direction, float64, that is the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n_features, dtype=torch.float64, generator=generator)


@lru_cache(maxsize=4)
def _odd_numbers(n_features: int) -> torch.Tensor:
    """An odd number for each feature, int64, the same in every run."""
    generator, limits = torch.Generator().manual_seed(0), torch.iinfo(torch.int64)
    return torch.randint(limits.min, limits.max, (n_features,), generator=generator) | 1


class Stage(Protocol):
    """A part of seeding, in steps; it can be saved between any two of them."""

    name: str
    unit: str
    """What progress counts, in the singular."""
    n_units: int
    """Units of the whole stage, at most."""

    @property
    def n_done(self) -> int:
        """Units that are done."""

    @property
    def centroids_KD(self) -> torch.Tensor:
        """The result, after the last step."""

    def step_(self, index: int) -> int:
        """Take step number `index` and perhaps some after it.

        Returns how many steps were taken if another may follow (True is one), else 0.
        """

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that the steps so far have decided."""

    def restore_(self, tensors: dict[str, torch.Tensor], index: int, /) -> None:
        """Go back to where `index` steps were taken and `tensors` was called."""


def draw_by_weight(
    weights_S: torch.Tensor, n_draws: int, generator: torch.Generator
) -> torch.Tensor:
    """Positions drawn with replacement, with probability proportional to the weights."""
    uniform = torch.rand(n_draws, dtype=torch.float64, device=weights_S.device, generator=generator)
    return drawn_by(uniform, weights_S)


def draw_distinct(
    weights_S: torch.Tensor, n_draws: int, generator: torch.Generator
) -> torch.Tensor:
    """Positions drawn without replacement, with probability proportional to the weights.

    Positions of weight 0 come last, if there are not enough others.
    """
    uniform_S = torch.rand(
        weights_S.shape, dtype=torch.float64, device=weights_S.device, generator=generator
    )
    return distinct_by(uniform_S, weights_S, n_draws)


def distinct_by(uniform_S: torch.Tensor, weights_S: torch.Tensor, n_draws: int) -> torch.Tensor:
    """`draw_distinct` by numbers from 0 to 1 that were drawn before.

    Uses the exponential keys of Efraimidis and Spirakis (2006).
    """
    keys_S = -torch.log1p(-uniform_S) / weights_S.double()
    keys_S.nan_to_num_(nan=torch.inf, posinf=torch.inf)
    return torch.topk(keys_S, n_draws, largest=False).indices
