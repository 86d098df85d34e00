"""Local search: swaps centroids of a sample for points that lower the cost.

Full passes never repair a bad seed: two centroids in one cluster stay there, and a
cluster without a centroid stays split among its neighbours. LS++ (Lattanzi & Sohler
2019) repairs it. It draws a row with probability proportional to the squared distance,
as k-means++ does. The row takes the place of the centroid whose removal leaves the
lowest cost, if that lowers the cost.

Here the mean of the drawn row and the rows around it takes the place instead. These are
half as many as a cluster has on average, or an even choice of them. A single row of many
features carries so much noise that it loses to centroids that are means, even if it
would lead to a better mean. And once a row in the middle of all, such as a row of zeros,
is a centroid, no other single row would take its place.

The squared distances of each row to its nearest and second nearest centroid are kept.
The costs of all K swaps are then one weighted histogram over the labels, and only rows
that lose one of their two centroids are compared with all centroids again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from streamkm.clustering.seeding.plan import CANDIDATES, around_step, rows_around
from streamkm.clustering.seeding.sample import Draws, Sample, draw_by_weight
from streamkm.kernels import (
    cancelling_share,
    normalized,
    sq_distances_between,
    sq_distances_to,
    swap_gains,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LocalSearch", "local_search"]

#: Kind of these draws; see `Draws`.
_SEARCH = -3
#: Scores of one tile of rows, at most, and rows of it, at most, since a tile gathers its rows.
TILE_ELEMENTS, TILE_ROWS = 1 << 20, 4096


class LocalSearch:
    """Up to `n_steps` swaps of a centroid for another point, each of which lowers the cost.

    A step waits for the device a few times: the host must know how many rows lie around a
    candidate, and how many must be compared again.
    """

    name, unit = "local search", "draw"

    def __init__(
        self,
        sample: Sample,
        centroids_KD: torch.Tensor,
        n_steps: int,
        seed: int,
        number: int = 0,
        *,
        spherical: bool = False,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self.n_units, self.n_done = n_steps, 0
        self._sample, self._draws = sample, Draws(seed, _SEARCH, number)
        self._spherical, self._pause = spherical, pause
        self.centroids_KD = centroids_KD.clone()
        every = slice(None, None, around_step(len(sample), len(centroids_KD)))
        weights_A = None if sample.weights_S is None else sample.weights_S[every]
        self._around = Sample(sample.x_SD[every].contiguous(), weights_A)
        empty_S = torch.empty_like(sample.sq_norms_S)
        self._first_S, self._second_S = empty_S, empty_S.clone()
        self._label_S = torch.empty(len(sample), dtype=torch.int64, device=empty_S.device)
        self._runner_up_S = self._label_S.clone()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The centroids, and the two nearest to each row with squared distances to them."""
        return {
            "centroids_KD": self.centroids_KD,
            "first_S": self._first_S,
            "second_S": self._second_S,
            "label_S": self._label_S,
            "runner_up_S": self._runner_up_S,
        }

    def restore_(self, tensors: dict[str, torch.Tensor]) -> None:
        """See `Stage`."""
        self.centroids_KD = tensors["centroids_KD"]
        self._first_S, self._second_S = tensors["first_S"], tensors["second_S"]
        self._label_S, self._runner_up_S = tensors["label_S"], tensors["runner_up_S"]

    def step_(self, index: int) -> bool:
        """Draw candidates, make the best swap, and return whether another step follows."""
        sample = self._sample
        if index == 0:
            # Only this step may take long. It may stop here: nothing of it is saved before its end.
            for rows_T in torch.arange(len(sample), device=sample.x_SD.device).split(TILE_ROWS):
                self._pause()
                self._look_at_(rows_T)
        self.n_done = index + 1
        generator = self._draws.generator(sample.x_SD.device, index)
        drawn_L = draw_by_weight(sample.weighted(self._first_S), CANDIDATES, generator)
        candidates_LD = self._means_around(drawn_L)
        distances_LS = sq_distances_between(candidates_LD, sample.x_SD, sample.sq_norms_S)
        gains_LK = self.swap_gains(distances_LS)
        best = int(gains_LK.argmax())
        candidate, place = divmod(best, gains_LK.shape[1])
        if float(gains_LK[candidate, place]) > 0:
            self.centroids_KD[place] = candidates_LD[candidate]
            self._replace_(place, distances_LS[candidate])
        return self.n_done < self.n_units

    def swap_gains(self, distances_LS: torch.Tensor) -> torch.Tensor:
        """Fall of the cost if each of L candidates takes each of the K places, (L, K), float64.

        `distances_LS` are the squared distances of the candidates to all rows.
        """
        return swap_gains(
            distances_LS, self._first_S, self._second_S, self._label_S, self._sample.weights_S,
            len(self.centroids_KD),
        )  # fmt: skip

    def _means_around(self, rows_L: torch.Tensor) -> torch.Tensor:
        """Mean of each of a few rows and the rows around it, (L, D).

        Around it are its `rows_around` nearest, and rows as near as the last of these.
        """
        sample, around = self._sample, self._around
        own_LD = sample.x_SD.index_select(0, rows_L)
        distances_LA = sq_distances_between(own_LD, around.x_SD, around.sq_norms_S)
        n_rows = rows_around(len(sample), len(self.centroids_KD))
        nearest_LN = distances_LA.topk(n_rows, dim=1, largest=False, sorted=False).values
        near_LA = distances_LA <= nearest_LN.amax(dim=1, keepdim=True)
        rows_of_each = near_LA.nonzero()[:, 1].split(near_LA.sum(dim=1).tolist())
        means = []
        for row, own_D, rows_N in zip(rows_L, own_LD, rows_of_each, strict=True):
            x_ND = torch.cat((own_D[None], around.x_SD[rows_N]))
            if sample.weights_S is None or around.weights_S is None:
                means.append(x_ND.mean(dim=0))
            else:
                weights_N = torch.cat((sample.weights_S[row, None], around.weights_S[rows_N]))
                means.append((weights_N @ x_ND.double() / weights_N.sum()).to(x_ND.dtype))
        return normalized(torch.stack(means)) if self._spherical else torch.stack(means)

    def _replace_(self, place: int, distances_S: torch.Tensor) -> None:
        """Update the two nearest of every row for a new centroid in `place`."""
        lost_one_S = (self._label_S == place) | (self._runner_up_S == place)
        nearer_S = distances_S < self._first_S
        between_S = ~nearer_S & (distances_S < self._second_S)
        self._second_S = torch.where(
            nearer_S, self._first_S, torch.where(between_S, distances_S, self._second_S)
        )
        self._runner_up_S = torch.where(
            nearer_S, self._label_S, self._runner_up_S.masked_fill(between_S, place)
        )
        self._first_S = torch.where(nearer_S, distances_S, self._first_S)
        self._label_S = self._label_S.masked_fill(nearer_S, place)
        self._look_at_(lost_one_S.nonzero().squeeze(1))

    def _look_at_(self, rows_R: torch.Tensor) -> None:
        """Find the two nearest of all centroids for `rows_R`."""
        sample = self._sample
        c_sq_K = self.centroids_KD.square().sum(dim=1)
        share = 2 * cancelling_share(sample.x_SD.dtype, sample.x_SD.shape[1])
        for rows_T in rows_R.split(min(max(TILE_ELEMENTS // len(c_sq_K), 1), TILE_ROWS)):
            x_TD, sq_norms_T = sample.x_SD[rows_T], sample.sq_norms_S[rows_T]
            scores_TK = torch.addmm(c_sq_K, x_TD, self.centroids_KD.T, alpha=-2)
            # Two minima, since torch's topk of two takes ten times as long.
            label_T = scores_TK.argmin(dim=1)
            scores_TK.scatter_(1, label_T[:, None], torch.inf)
            second_T, runner_up_T = scores_TK.min(dim=1)
            self._first_S[rows_T] = sq_distances_to(x_TD, label_T, self.centroids_KD).to(x_TD.dtype)
            self._second_S[rows_T] = (second_T + sq_norms_T).clamp_min_(0)
            self._label_S[rows_T], self._runner_up_S[rows_T] = label_T, runner_up_T
            # Where the second nearest is so near that its distance cancels, so may others.
            cancels_T = self._second_S[rows_T] < share * sq_norms_T
            self._measure_(rows_T[cancels_T])

    def _measure_(self, rows_R: torch.Tensor) -> None:
        """Find the two nearest of all centroids for `rows_R` by differences, in float64."""
        centroids_KD = self.centroids_KD.double()
        for rows_T in rows_R.split(min(max(TILE_ELEMENTS // len(centroids_KD), 1), TILE_ROWS)):
            distances_TK = torch.cdist(
                self._sample.x_SD[rows_T].double(),
                centroids_KD,
                compute_mode="donot_use_mm_for_euclid_dist",
            )
            first_T, label_T = distances_TK.min(dim=1)
            distances_TK.scatter_(1, label_T[:, None], torch.inf)
            second_T, runner_up_T = distances_TK.min(dim=1)
            self._first_S[rows_T] = first_T.square_().to(self._first_S.dtype)
            self._second_S[rows_T] = second_T.square_().to(self._second_S.dtype)
            self._label_S[rows_T], self._runner_up_S[rows_T] = label_T, runner_up_T


def local_search(
    sample_SD: torch.Tensor,
    centroids_KD: torch.Tensor,
    n_steps: int,
    seed: int,
    *,
    weights_S: torch.Tensor | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Run a local search from the first step to the last.

    Parameters
    ----------
    sample_SD : Tensor of shape (S, D)
        Rows in the scaled space, all finite.
    centroids_KD : Tensor of shape (K, D), K >= 2
        Centroids to begin with; not changed.
    n_steps : int
        Number of draws, of `CANDIDATES` candidates each; at least 1.
    seed : int
        Decides the draws.
    weights_S : Tensor of shape (S,), float64, optional
        Weights of the rows; 1 by default.
    on_step : callable
        Called before every step but the first; may raise to stop.

    Returns
    -------
    Tensor of shape (K, D)
        The centroids after the search.
    """
    stage, index = LocalSearch(Sample(sample_SD, weights_S), centroids_KD, n_steps, seed), 0
    while stage.step_(index):
        index += 1
        on_step()
    return stage.centroids_KD
