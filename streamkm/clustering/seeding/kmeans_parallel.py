"""k-means|| (Bahmani et al. 2012): candidates from a few passes over the whole stream.

Each of `N_ROUNDS` passes draws ``2 k`` rows with probability proportional to the
squared distance from all candidates so far; a last pass counts the rows nearest to
each candidate. The candidates with their counts are then a small weighted sample,
on which centroids are sought.

Rows are drawn without replacement by exponential keys, the least of which wait
in a reservoir. The paper instead takes each row by an independent draw, which
needs the total of the squared distances beforehand: another pass, or a distance
kept for every row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from streamkm.clustering.seeding.plan import CANDIDATES_PER_CLUSTER, N_ROUNDS
from streamkm.clustering.seeding.sample import Draws, Sample
from streamkm.kernels import ROUNDING_EPS, add_by_label

if TYPE_CHECKING:
    from streamkm.clustering.batch import Batch
    from streamkm.kernels import Kernel

__all__ = ["Candidates", "first_candidate"]

#: Tells the draws of the rounds apart from those of other stages.
_ROUNDS = -5


@dataclass
class Candidates:
    """Rows that may become centroids, and those of the round under way."""

    rows_CD: torch.Tensor
    """Candidates of the rounds before, in the scaled space."""
    counts_C: torch.Tensor
    """Rows (or weight) nearest to each, float64; gathered in the last pass."""
    drawn_RD: torch.Tensor
    """Rows drawn in this round."""
    keys_R: torch.Tensor
    """Their keys, float64; infinite where there is no row."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def as_sample(self) -> Sample:
        """The candidates, weighted by their counts."""
        return Sample(self.rows_CD, self.counts_C)

    def update_(self, batch: Batch, kernel: Kernel, seed: int, *, epoch: int, index: int) -> None:
        """Offer the rows of `batch`, the `index`-th of pass `epoch`, or count them in the last."""
        labels_B, sq_distances_B = kernel.assign(batch.x_BD, batch.sq_norms_B, self.rows_CD)
        kept_B = torch.ones_like(sq_distances_B, dtype=torch.float64)
        if batch.weights_B is not None:
            kept_B *= batch.weights_B
        if batch.dropped_B is not None:
            kept_B.masked_fill_(batch.dropped_B, 0)
        if batch.is_normalized:
            # Rows of zeros have no direction to put a centroid in.
            kept_B.masked_fill_(batch.sq_norms_B == 0, 0)
        if epoch == N_ROUNDS:
            # Not bincount, which looks at the labels first.
            sizes_C = labels_B.new_zeros(len(self.counts_C))
            sizes_C.index_add_(0, labels_B, torch.ones_like(labels_B))
            add_by_label(kept_B[:, None], labels_B, sizes_C, self.counts_C[:, None])
            return
        draws = Draws(seed, _ROUNDS, epoch)
        generator = draws.generator(labels_B.device, index)
        uniform_B = torch.rand(
            len(labels_B), dtype=torch.float64, device=labels_B.device, generator=generator
        )
        keys_B = -torch.log1p(-uniform_B) / (sq_distances_B * kept_B)
        # Of a row on a candidate rounding leaves a distance; another there is no gain.
        rounding_B = ROUNDING_EPS * torch.finfo(sq_distances_B.dtype).eps * batch.sq_norms_B
        keys_B.masked_fill_((sq_distances_B <= rounding_B) | (kept_B == 0), torch.inf)
        n_drawn = min(len(self.keys_R), len(keys_B))
        least_keys, least = torch.topk(keys_B, n_drawn, largest=False)
        keys = torch.cat((self.keys_R, least_keys))
        rows = torch.cat((self.drawn_RD, batch.x_BD.index_select(0, least)))
        self.keys_R, kept = torch.topk(keys, len(self.keys_R), largest=False)
        self.drawn_RD = rows.index_select(0, kept)

    def finish_round_(self) -> None:
        """The rows drawn become candidates; the next round begins with none drawn."""
        drawn_RD = self.drawn_RD[self.keys_R.isfinite()]
        self.rows_CD = torch.cat((self.rows_CD, drawn_RD))
        self.counts_C = self.keys_R.new_zeros(len(self.rows_CD))
        self.keys_R.fill_(torch.inf)


def first_candidate(sample: Sample, k: int, seed: int) -> Candidates:
    """Before the first round: one row of the sample, drawn at random."""
    generator = Draws(seed, _ROUNDS).generator(sample.x_SD.device, 0)
    first = torch.randint(len(sample), (1,), generator=generator, device=sample.x_SD.device)
    n_drawn, n_features = CANDIDATES_PER_CLUSTER * k, sample.x_SD.shape[1]
    keys_R = torch.full((n_drawn,), torch.inf, dtype=torch.float64, device=sample.x_SD.device)
    return Candidates(
        rows_CD=sample.x_SD.index_select(0, first),
        counts_C=keys_R.new_zeros(1),
        drawn_RD=sample.x_SD.new_zeros((n_drawn, n_features)),
        keys_R=keys_R,
    )
