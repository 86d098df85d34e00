"""k-means|| (Bahmani et al. 2012): candidates from a few passes over the whole stream.

Each of `N_ROUNDS` passes draws ``2 k`` rows with probability proportional to the
squared distance from the nearest candidate so far. One more pass counts the rows
nearest to each candidate. The candidates, weighted by these counts, are then the
sample on which the other stages find the centroids.

Rows are drawn without replacement by exponential keys; the rows of the least keys
wait in a reservoir. The paper draws each row independently instead. Rejected: that
needs the total of the squared distances first, so another pass or a distance kept for
every row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch

from streamkm.clustering.graded_sums import sum_graded_
from streamkm.clustering.seeding.plan import CANDIDATES_PER_CLUSTER, N_ROUNDS
from streamkm.clustering.seeding.sample import Draws, Sample
from streamkm.kernels import (
    LEAST_GRADE,
    add_by_label,
    add_graded_,
    graded_total,
)

if TYPE_CHECKING:
    from streamkm.clustering.batch import Batch
    from streamkm.distributed.world import World
    from streamkm.kernels import Kernel

__all__ = ["Candidates", "first_candidate"]

#: Kind of these draws; see `Draws`.
_ROUNDS = -5


@dataclass
class Candidates:
    """The candidates so far, and the rows drawn in the present round."""

    rows_CD: torch.Tensor
    """Candidates of the rounds before, in the scaled space."""
    masses_LC: torch.Tensor
    """Mass of the rows nearest to each candidate, gathered in the last pass; in whole numbers, with
    L = 2 (see `add_graded_`), so that no order of the batches shows. In units of
    `Batch.weight_unit`: only their ratios matter."""
    grades_C: torch.Tensor
    """Their grades."""
    drawn_RD: torch.Tensor
    """Rows drawn in this round."""
    keys_R: torch.Tensor
    """Their keys, float64; infinite where there is no row."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def as_sample(self) -> Sample:
        """The candidates, weighted by their counts."""
        masses_C1 = graded_total(self.masses_LC[..., None], self.grades_C)
        return Sample(self.rows_CD, masses_C1[:, 0])

    def gathered(self, world: World) -> Candidates:
        """The candidates as one process alone would have them; all processes call it."""
        if world.size == 1:
            return self
        grades_C, masses_LC = self.grades_C.clone(), self.masses_LC.clone()
        sum_graded_(world, [(masses_LC[..., None], grades_C)])
        keys, rows = (torch.cat(world.gather_rows(each)) for each in (self.keys_R, self.drawn_RD))
        keys_R, kept = torch.topk(keys, len(self.keys_R), largest=False)
        return replace(
            self,
            masses_LC=masses_LC,
            grades_C=grades_C,
            drawn_RD=rows.index_select(0, kept),
            keys_R=keys_R,
        )

    def gather_(self, world: World) -> None:
        """Take together at the end of a pass what processes have found of their rows."""
        for name, whole in self.gathered(world).tensors().items():
            setattr(self, name, whole)

    def keep_own_(self, world: World) -> None:
        """Of `gathered` candidates that each process has, leave to each what it shall bring."""
        if not world.is_first:
            self.keys_R.fill_(torch.inf)
            self._begin_counting_()

    def _begin_counting_(self) -> None:
        self.masses_LC = torch.zeros(
            (2, len(self.rows_CD)), dtype=torch.int64, device=self.rows_CD.device
        )
        self.grades_C = torch.full_like(self.masses_LC[0], LEAST_GRADE)

    def update_(self, batch: Batch, kernel: Kernel, seed: int, *, epoch: int, index: int) -> None:
        """Draw from the rows of `batch`, number `index` of pass `epoch`; count them in the last."""
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
            # Not bincount, which makes the host wait to read the labels' range.
            sizes_C = labels_B.new_zeros(len(self.rows_CD))
            sizes_C.index_add_(0, labels_B, torch.ones_like(labels_B))
            masses_C1 = kept_B.new_zeros((len(self.rows_CD), 1))
            add_by_label(kept_B[:, None], labels_B, sizes_C, masses_C1)
            unit = 1.0 if batch.weight_unit is None else batch.weight_unit
            add_graded_(self.masses_LC[..., None], self.grades_C, masses_C1 / unit)
            return
        draws = Draws(seed, _ROUNDS, epoch)
        generator = draws.generator(labels_B.device, index)
        uniform_B = torch.rand(
            len(labels_B), dtype=torch.float64, device=labels_B.device, generator=generator
        )
        keys_B = -torch.log1p(-uniform_B) / (sq_distances_B * kept_B)
        # (0 times a weight may be 0 / 0 above. Rows that equal a candidate are at distance 0.)
        keys_B.masked_fill_((sq_distances_B == 0) | (kept_B == 0), torch.inf)
        n_drawn = min(len(self.keys_R), len(keys_B))
        least_keys, least = torch.topk(keys_B, n_drawn, largest=False)
        keys = torch.cat((self.keys_R, least_keys))
        rows = torch.cat((self.drawn_RD, batch.x_BD.index_select(0, least)))
        self.keys_R, kept = torch.topk(keys, len(self.keys_R), largest=False)
        self.drawn_RD = rows.index_select(0, kept)

    def finish_round_(self) -> None:
        """Make the drawn rows candidates, and begin the next round with none drawn."""
        drawn_RD = self.drawn_RD[self.keys_R.isfinite()]
        self.rows_CD = torch.cat((self.rows_CD, drawn_RD))
        self._begin_counting_()
        self.keys_R.fill_(torch.inf)


def first_candidate(sample: Sample, k: int, seed: int) -> Candidates:
    """The candidates before the first round: one row of the sample, drawn at random."""
    generator = Draws(seed, _ROUNDS).generator(sample.x_SD.device, 0)
    first = torch.randint(len(sample), (1,), generator=generator, device=sample.x_SD.device)
    n_drawn, n_features = CANDIDATES_PER_CLUSTER * k, sample.x_SD.shape[1]
    keys_R = torch.full((n_drawn,), torch.inf, dtype=torch.float64, device=sample.x_SD.device)
    return Candidates(
        rows_CD=sample.x_SD.index_select(0, first),
        masses_LC=torch.zeros((2, 1), dtype=torch.int64, device=keys_R.device),
        grades_C=torch.full((1,), LEAST_GRADE, device=keys_R.device),
        drawn_RD=sample.x_SD.new_zeros((n_drawn, n_features)),
        keys_R=keys_R,
    )
