"""Rows that stay on the device: the same rows, each read and copied over once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamkm.sources.base import RowRange
from streamkm.sources.kept import Homes, KeptRows
from streamkm.sources.weights import open_weights
from streamkm.stream.plan import ReadingPlan
from streamkm.stream.prefetch import prefetch
from streamkm.stream.residency import DeviceRows
from streamkm.stream.stages import StageTimes
from streamkm.stream.transfer import _copy_there
from tests.stream.fake_gpu import FakeGpu
from tests.stream.helpers import FakeSource, batches_of, slots_for, within


# Breaks when rows come from another home than theirs, or before they were copied to it; when the
# slot is overwritten with rows that were not read; when weights stay behind; or when what is on
# the device is read again.
@pytest.mark.parametrize("seed", [4, None])
@pytest.mark.parametrize("n_readers", [0, 2])
@pytest.mark.parametrize(("n_device", "n_host"), [(0, 6), (3, 0), (3, 2), (6, 0)])
def test_every_pass_has_the_same_rows_and_reads_what_does_not_stay(
    seed: int | None, n_readers: int, n_device: int, n_host: int
) -> None:
    source, weights = FakeSource(113), open_weights(np.arange(113) / 7, 113)
    plan = ReadingPlan(n_rows=113, block_rows=10, window_blocks=2, batch_rows=7, seed=seed)
    there = Homes(113, 20, n_device)
    here = Homes(113, 20, n_host, there)
    kept = KeptRows(source, here)
    on_device = torch.full((there.room_rows, 2), torch.nan)
    resident = DeviceRows(on_device, there, 10)
    slots = slots_for(plan, source, 3, n_readers, weighted=True)
    n_before = []

    def work() -> None:
        for epoch in range(3):
            for buffer in slots.buffers:
                buffer.fill(255)  # NaN, as floats
            n_before.append(sum(map(len, source.reads)))
            windows = prefetch(
                kept, plan.windows(epoch), slots, n_readers, StageTimes(), weights, resident
            )
            with windows as ahead:
                moved = _copy_there(ahead, source.spec, slots, StageTimes(), FakeGpu(), resident)
                for window, planned in zip(moved, plan.windows(epoch), strict=True):
                    for (_, rows), expected in zip(
                        window.batches(), batches_of(planned), strict=True
                    ):
                        assert window.taken(rows)[:, 0].tolist() == expected.tolist()
                        assert window.weights_N is not None
                        assert window.weights_N[rows].tolist() == (expected / 7).tolist()
                    if not window.is_shared:
                        window.x_ND.fill_(-1)  # As who prepares it may.

    within(60, work)
    n_stay = there.kept_rows + here.kept_rows
    assert n_before == [0, 113, 2 * 113 - n_stay]
    # All homes are filled; the short block at the end of the array is in the last of them.
    assert bool(torch.isnan(on_device).any()) == (there.room_rows > there.kept_rows)


# Breaks when a window that is whole on the device is copied there once more, or when one that is
# changed in place spoils what stays; and when unaligned rows make kernels be compiled again.
def test_windows_are_used_in_their_home_where_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    x_ND = torch.arange(120, dtype=torch.uint8).reshape(40, 3)
    plan = ReadingPlan(n_rows=40, block_rows=4, window_blocks=2, batch_rows=8, seed=None)
    rows = DeviceRows.of_all(x_ND)
    found = [rows.in_place(window, [True, True]) for window in plan.windows(0)]
    assert all(each is not None and each.data_ptr() >= x_ND.data_ptr() for each in found)
    monkeypatch.setattr("streamkm.stream.residency.is_host", lambda device: False)
    at = [window.reads[0].start * 3 % 16 for window in plan.windows(0)]
    aligned = [rows.in_place(window, [True, True]) is not None for window in plan.windows(0)]
    assert x_ND.data_ptr() % 16 == 0
    assert aligned == [offset == 0 for offset in at]
    assert rows.in_place(next(plan.windows(0)), [True, False]) is None
    strided = DeviceRows.of_all(x_ND[:, :2])
    assert strided.in_place(next(plan.windows(0)), [True, True]) is None


# Breaks when parts of blocks, as samples read them, count as blocks.
def test_only_whole_blocks_stay() -> None:
    rows = DeviceRows(torch.zeros(20, 2), Homes(40, 20, 1), 10)
    x_RD = torch.arange(40.0).reshape(20, 2)
    rows.keep_(RowRange(20, 25), x_RD[:5])
    assert not rows.has(RowRange(20, 25))
    rows.keep_(RowRange(20, 40), x_RD)
    assert torch.equal(rows.of(RowRange(22, 38)), x_RD[2:18])
    rows.keep_(RowRange(0, 10), x_RD[:10])
    assert not rows.has(RowRange(0, 10))
