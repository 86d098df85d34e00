"""What has changed since the earlier run."""

from __future__ import annotations

import torch

from streamkm.clustering.scaling import Scaling
from streamkm.clustering.seeding.sample import Sample
from streamkm.clustering.seeding.shares import Shares
from streamkm.kernels.reference import ReferenceKernel
from streamkm.runs.engine.comparing import changes, changes_line
from streamkm.runs.planning.earlier import Earlier


# Breaks when distances are squared or are those of the scaled unit, or labels are compared wrongly.
def test_changes_by_hand() -> None:
    before_KD = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    after_KD = torch.tensor([[3.0, 4.0], [10.0, 0.0]])
    one_D = torch.ones(2, dtype=torch.float64)
    scaling = Scaling(torch.zeros_like(one_D), one_D, normalize=False, keeps_units=True)
    earlier = Earlier(
        before_KD, before_KD.double(), torch.tensor([1, 1]), torch.zeros(0), scaling, "euclidean",
        "none",
    )  # fmt: skip
    sample = Sample(torch.tensor([[0.0, 0.0], [5.5, 0.0], [5.4, 0.0], [9.0, 0.0]]), None)
    kernel = ReferenceKernel(4, 2, torch.float32, torch.device("cpu"))
    found = changes(earlier, after_KD, sample, kernel, Shares(), batch_rows=2)
    # (5.5, 0) is 4.5 from (10, 0), and as before; (0, 0) is 5 from (3, 4).
    assert found == {
        "moved_mean": 2.5, "moved_most": 5.0, "moved": 1, "changed_rows": 0, "compared_rows": 4,
    }  # fmt: skip
    swapped = changes(earlier, before_KD.flip(0), sample, kernel, Shares(), batch_rows=4)
    assert swapped["changed_rows"] == 4
    assert changes_line(found) == (
        "1 centroid moved, by 2.5 in the mean and 5 at most; 0 of 4 rows of a sample changed "
        "cluster (0.00%)"
    )
