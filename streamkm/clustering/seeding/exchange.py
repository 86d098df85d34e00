"""Exchanges and handovers: halves of clusters that cost much go where they cost less.

k-means++ and a tree leave some groups of rows without a centroid of their own, and give others two.
Passes of Lloyd's algorithm never mend that. For every cluster, two numbers are found: what it would
cost to do without it, and what halving it would save. An exchange gives one cluster up and halves
another, wherever that pays. This is the split and merge of ISODATA (Ball & Hall 1965), with these
numbers instead of thresholds.

A handover halves a cluster and lets one half join another cluster. Where there are fewer clusters
than groups, some stand between two groups, and this changes which two. A pass often would not: a
group is nearer to the point halfway to another group than to a centroid less far than that group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Halves",
    "Part",
    "choose_exchanges",
    "choose_handovers",
    "cost_of_joining",
    "draw_of_each",
]


class Part(NamedTuple):
    """Sums and masses of some rows of every cluster."""

    sums_KD: torch.Tensor
    mass_K: torch.Tensor

    def of(self, chosen: torch.Tensor) -> Part:
        """Those of chosen clusters."""
        return Part(self.sums_KD[chosen], self.mass_K[chosen])


class Halves(NamedTuple):
    """Two halves of every cluster."""

    is_in_one_S: torch.Tensor
    """Whether a row is in the first half of its cluster."""
    one: Part
    other: Part


def cost_of_joining(one: Part, other: Part, *, spherical: bool) -> torch.Tensor:
    """Rise of the cost if each of K parts is joined with one of the others, float64.

    With masses m and n the cost rises by ``m n / (m + n)`` times the squared distance between the
    means of the two (Ward 1963); by 0 if one has no rows. With rows and centroids of unit length
    the cost of a cluster is ``2 mass - 2 |sum|``.
    """
    (one_KD, one_K), (other_KD, other_K) = one, other
    if spherical:
        apart_K = torch.linalg.vector_norm(one_KD, dim=1)
        apart_K += torch.linalg.vector_norm(other_KD, dim=1)
        lost_K: torch.Tensor = apart_K - torch.linalg.vector_norm(one_KD + other_KD, dim=1)
        return 2 * lost_K
    apart_KD = one_KD / one_K[:, None] - other_KD / other_K[:, None]
    # Not ``m n`` first, which overflows where weights are huge.
    cost_K = one_K * (other_K / (one_K + other_K)) * apart_KD.square().sum(dim=1)
    return torch.where((one_K > 0) & (other_K > 0), cost_K, 0)


def draw_of_each(
    label_S: torch.Tensor, weights_S: torch.Tensor, k: int, generator: torch.Generator
) -> torch.Tensor:
    """A row of each of `k` clusters, drawn with probability proportional to the weights.

    Uses exponential keys, as `draw_distinct`. A cluster whose weights are all 0 gets row 0.
    """
    uniform_S = torch.rand(
        len(label_S), dtype=torch.float64, device=label_S.device, generator=generator
    )
    keys_S = -torch.log1p(-uniform_S) / weights_S.double()
    keys_S.nan_to_num_(nan=torch.inf, posinf=torch.inf)
    least_K = keys_S.new_full((k,), torch.inf).scatter_reduce_(0, label_S, keys_S, "amin")
    is_least_S = (keys_S == least_K[label_S]) & keys_S.isfinite()
    positions_S = torch.arange(len(label_S), device=label_S.device)
    positions_S = torch.where(is_least_S, positions_S, len(label_S))
    first_K = positions_S.new_full((k,), len(label_S))
    first_K.scatter_reduce_(0, label_S, positions_S, "amin")
    return torch.where(first_K < len(label_S), first_K, 0)


def choose_exchanges(
    gains: Sequence[float], losses: Sequence[float], heirs: Sequence[int]
) -> list[tuple[int, int]]:
    """Pairs of a cluster to halve and one to give up, where halving gains more than is lost.

    The heir of a cluster is the one that gets its rows. A cluster takes part once, be it as an
    heir: its gain and loss hold only if nothing else changes there.
    """
    by_gain = sorted(range(len(gains)), key=lambda cluster: (-gains[cluster], cluster))
    by_loss = iter(sorted(range(len(losses)), key=lambda cluster: (losses[cluster], cluster)))
    taken, pairs = set[int](), []
    given_up = next(by_loss, None)
    for halved in by_gain:
        if halved in taken:
            continue
        taken.add(halved)
        while given_up is not None and not taken.isdisjoint((given_up, heirs[given_up])):
            given_up = next(by_loss, None)
        if given_up is None or gains[halved] <= losses[given_up]:
            break
        taken |= {given_up, heirs[given_up]}
        pairs.append((halved, given_up))
    return pairs


def choose_handovers(
    nets: Sequence[Sequence[float]], heirs: Sequence[Sequence[int]], taken: set[int]
) -> list[list[int]]:
    """Clusters whose first half joins its heir, and those whose second half does, where that pays.

    `nets` are what the cost falls by, for each half of each cluster. A cluster takes part once, be
    it as an heir, and not if it is `taken`.
    """
    moves = [
        (-net, cluster, side)
        for side, of_clusters in enumerate(nets)
        for cluster, net in enumerate(of_clusters)
        if net > 0
    ]
    taken, chosen = set(taken), [list[int]() for _ in nets]
    for _, cluster, side in sorted(moves):
        heir = heirs[side][cluster]
        if cluster != heir and taken.isdisjoint((cluster, heir)):
            taken |= {cluster, heir}
            chosen[side].append(cluster)
    return chosen
