"""How far centroids have moved, in steps."""

from __future__ import annotations

import torch

from streamkm.kernels.drift import Drift


# Breaks when steps are not nested or not in the order of drift, or a limit is below a drift.
def test_steps_are_the_farthest_first() -> None:
    before_KD = torch.zeros(64, 2)
    after_KD = torch.zeros(64, 2)
    after_KD[:, 0] = (torch.arange(64) * 37 % 64).float()
    drift = Drift.between(before_KD, after_KD)
    lengths = drift.offsets.diff().tolist()
    assert lengths == [8, 16, 24, 32]
    assert int(after_KD[drift.farthest, 0]) == 63
    assert 62 <= drift.next < 62.001
    for start, end, limit in zip(
        drift.offsets[:-1], drift.offsets[1:], drift.limits[1:], strict=True
    ):
        members = drift.members[start:end]
        assert members.tolist() == sorted(members.tolist())
        beyond_K = torch.ones(64, dtype=torch.bool)
        beyond_K[members] = False
        assert after_KD[members, 0].min() > after_KD[beyond_K, 0].max()
        assert after_KD[beyond_K, 0].max() <= limit < after_KD[beyond_K, 0].max() + 0.001
    assert 63 <= float(drift.limits[0]) < 63.001


# Breaks where a centroid alone, or one that is not a number, has no limit.
def test_one_centroid_and_nan() -> None:
    drift = Drift.between(torch.zeros(1, 3), torch.ones(1, 3))
    assert drift.next == 0
    assert len(drift.offsets) == 1
    lost_KD = torch.zeros(40, 3)
    lost_KD[9] = torch.nan
    assert Drift.between(torch.zeros(40, 3), lost_KD).farthest == 9
    assert Drift.between(torch.zeros(40, 3), lost_KD).limits[0] == torch.inf
