"""For each cluster the worst ratio of the Davies-Bouldin index, without most of the distances.

Of K clusters there are K^2 ratios ``(s_i + s_j) / |c_i - c_j|``, and only the greatest of each row
counts. Once a row has a ratio L, another one is as great only where

    (s_i + s_j)^2 / L^2 - |c_i - c_j|^2 >= 0,

which is a product of two vectors, one of row i and one of column j. So a matrix product in float32
screens a block of columns. Each element has a bound of its rounding, and only those that may be 0
or more are computed in float64, from differences. The result is that of all K^2 differences.

Columns come in random order. Then each is the greatest so far with a probability of one by the
number of those before, so that a row has a handful of candidates, however clusters are numbered.
(Bounds by the triangle inequality, on groups of centroids, spare the product as well, but hardly
any in many dimensions.)
"""

from __future__ import annotations

import torch

__all__ = ["worst_ratios"]

#: Distances between centroids that are in memory at once: 32 MiB of float64.
TILE_ELEMENTS = 1 << 22
#: Columns of a block, and rows of a tile, of the screen: 8 MiB of float32.
BLOCK_COLUMNS, TILE_ROWS = 2048, 1024
#: Columns of which all ratios are computed, to have something to screen the others by.
FIRST_COLUMNS = 512
#: Share of a tile from which on all of it is computed from differences.
MANY = 1 / 16
#: A ratio of less than this, where the greatest spread and the greatest norm are 1, counts as this.
LEAST_RATIO = 1e-14


def worst_ratios(centres_UD: torch.Tensor, spreads_U: torch.Tensor) -> torch.Tensor:
    """The greatest ``(s_i + s_j) / |c_i - c_j|`` of each cluster i, over clusters j elsewhere.

    Parameters
    ----------
    centres_UD : float64 Tensor of shape (U, D)
        Centroids, on the host.
    spreads_U : float64 Tensor of shape (U,)
        Mean distances of their rows, not negative.

    Returns
    -------
    Tensor of shape (U,)
        float64; 0 for a cluster whose centroid all others share.
    """
    n = len(centres_UD)
    order_U = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    centres_UD, spreads_U = centres_UD[order_U], spreads_U[order_U]
    first, rest = torch.arange(n).split(
        [n, 0] if n <= BLOCK_COLUMNS else [FIRST_COLUMNS, n - FIRST_COLUMNS]
    )
    worst_U = torch.zeros_like(spreads_U)
    for rows in torch.arange(n).split(max(TILE_ELEMENTS // len(first), 1)):
        _raise_all_(worst_U, rows, first, centres_UD, spreads_U)
    if len(rest) and float(spreads_U.max()) > 0:
        screen = _Screen(centres_UD, spreads_U)
        for columns in rest.split(BLOCK_COLUMNS):
            screen.raise_(worst_U, columns)
    found_U = torch.empty_like(worst_U)
    found_U[order_U] = worst_U
    return found_U


def _distances(one_TD: torch.Tensor, other_SD: torch.Tensor) -> torch.Tensor:
    # (By differences: centroids that lie close together would be taken for one.)
    return torch.cdist(one_TD, other_SD, compute_mode="donot_use_mm_for_euclid_dist")


def _raise_all_(
    worst_U: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    centres_UD: torch.Tensor,
    spreads_U: torch.Tensor,
) -> None:
    """Raise the ratios of `rows` to the greatest among `columns`, from all distances."""
    apart_TS = _distances(centres_UD[rows], centres_UD[columns])
    # A cluster is not compared with itself nor, as in scikit-learn, with clusters that have the
    # same centroid.
    apart_TS.masked_fill_(apart_TS == 0, torch.inf)
    ratios_TS = (spreads_U[rows, None] + spreads_U[columns]) / apart_TS
    worst_U[rows] = torch.maximum(worst_U[rows], ratios_TS.amax(dim=1))


class _Screen:
    """Finds the pairs whose ratio may be greater than those known so far."""

    def __init__(self, centres_UD: torch.Tensor, spreads_U: torch.Tensor) -> None:
        self._centres_UD, self._spreads_U = centres_UD, spreads_U
        # About the mean the products cancel least; a greatest norm of 1 lets no square overflow.
        self._mean_D = centres_UD.mean(dim=0)
        norms_U = torch.cat(
            [(part - self._mean_D).square().sum(dim=1) for part in centres_UD.split(TILE_ROWS)]
        )
        self._unit = float(norms_U.max().sqrt()) or 1.0
        self._sq_norms_U = norms_U / self._unit**2
        self._greatest = float(spreads_U.max())
        n_terms = centres_UD.shape[1] + 4
        # Rounding of the terms and of their sum (Higham 2002, section 3.1), and some to spare.
        self._rounding = (n_terms + 8) * torch.finfo(torch.float32).eps
        self._found_TS = torch.empty(TILE_ROWS * BLOCK_COLUMNS, dtype=torch.float32)

    def raise_(self, worst_U: torch.Tensor, columns: torch.Tensor) -> None:
        """Raise the ratios of all rows to the greatest among `columns`."""
        spreads_S = self._spreads_U[columns] / self._greatest
        sq_norms_S = self._sq_norms_U[columns]
        right_SN = self._joined(
            columns, [torch.ones_like(spreads_S), spreads_S, spreads_S**2, sq_norms_S], 1.0
        )
        reach = float(sq_norms_S.max().sqrt())
        for rows in torch.arange(len(worst_U)).split(TILE_ROWS):
            spreads_T = self._spreads_U[rows] / self._greatest
            least_T = (worst_U[rows] * (self._unit / self._greatest)).clamp_min(LEAST_RATIO)
            weight_T = least_T**-2
            sq_norms_T = self._sq_norms_U[rows]
            # Of the sum of the terms without their signs.
            margin_T = weight_T * (spreads_T + 1) ** 2 + (sq_norms_T.sqrt() + reach) ** 2
            margin_T = margin_T * self._rounding + (1 + weight_T) * 1e-36
            left_TN = self._joined(
                rows,
                [
                    weight_T * spreads_T**2 - sq_norms_T + margin_T,
                    2 * weight_T * spreads_T,
                    weight_T,
                    torch.full_like(weight_T, -1),
                ],
                2.0,
            )
            shape = len(rows), len(columns)
            found_TS = self._found_TS[: shape[0] * shape[1]].view(shape)
            torch.mm(left_TN, right_SN.T, out=found_TS)
            self._settle_(worst_U, rows, columns, found_TS)

    def _joined(self, at: torch.Tensor, terms: list[torch.Tensor], factor: float) -> torch.Tensor:
        """Vectors of the product in float32: these terms, then `factor` times the centroids."""
        points_TD = (self._centres_UD[at] - self._mean_D) * (factor / self._unit)
        return torch.cat([torch.stack(terms, dim=1), points_TD], dim=1).float()

    def _settle_(
        self, worst_U: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor,
        found_TS: torch.Tensor,
    ) -> None:  # fmt: skip
        """Compute the ratios of the pairs that passed."""
        touched_R = (found_TS.amax(dim=1) >= 0).nonzero()[:, 0]
        if not len(touched_R):
            return
        at_P, column_P = (found_TS[touched_R] >= 0).nonzero(as_tuple=True)
        if len(at_P) > MANY * found_TS.numel():
            _raise_all_(worst_U, rows, columns, self._centres_UD, self._spreads_U)
            return
        one_P, other_P = rows[touched_R][at_P], columns[column_P]
        size = max(TILE_ELEMENTS // self._centres_UD.shape[1], 1)
        for one_Q, other_Q in zip(one_P.split(size), other_P.split(size), strict=True):
            pairs = self._centres_UD[one_Q, None], self._centres_UD[other_Q, None]
            apart_Q = _distances(*pairs)[:, 0, 0]
            apart_Q.masked_fill_(apart_Q == 0, torch.inf)
            ratios_Q = (self._spreads_U[one_Q] + self._spreads_U[other_Q]) / apart_Q
            worst_U.scatter_reduce_(0, one_Q, ratios_Q, "amax")
