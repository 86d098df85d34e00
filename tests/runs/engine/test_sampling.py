"""The sample that seeding is made on: which rows, and how much each counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamkm.clustering.seeding.sample import Sample
from streamkm.config import ExecutionConfig
from streamkm.runs.engine.sampling import draw_sample, sample_pieces, split_sample
from streamkm.runs.planning.memory import plan_memory
from streamkm.runs.reporting.progress import Progress
from streamkm.sources import open_source
from streamkm.sources.base import ArraySpec
from streamkm.sources.weights import open_weights
from streamkm.stream.plan import plan_reading
from streamkm.stream.slots import HostSlots


# Breaks when rows to judge by were seen, or are taken where there are hardly enough.
def test_a_sample_is_split_in_two():
    whole = Sample(torch.arange(30.0)[:, None], torch.arange(30.0).double())
    sample, judged = split_sample(whole, 5, 1 / 3)
    assert len(judged) == 10
    assert judged.weights_S is not None
    assert torch.equal(judged.x_SD[:, 0].double(), judged.weights_S)
    assert sorted(torch.cat((sample.x_SD, judged.x_SD)).flatten().tolist()) == list(range(30))
    sample, judged = split_sample(whole, 28, 1 / 3)
    assert (len(sample), len(judged)) == (28, 2)
    for share, k in ((0.0, 5), (1 / 3, 30)):
        sample, judged = split_sample(whole, k, share)
        assert sample is judged is whole


# Breaks when a heavy row is lost on the way to either part, or counts for more than its share.
def test_heavy_rows_are_in_both_parts():
    weights = torch.tensor([1.0] * 30 + [300, 600], dtype=torch.float64)
    whole = Sample(torch.arange(32.0)[:, None], weights, n_heavy=2)
    sample, judged = split_sample(whole, 5, 1 / 3)
    assert (len(sample), len(judged)) == (22, 12)
    for part, expected in ((sample, [200.0, 400.0]), (judged, [100.0, 200.0])):
        assert part.x_SD[-2:, 0].tolist() == [30, 31]
        assert part.weights_S is not None
        assert part.weights_S[-2:].tolist() == pytest.approx(expected)
        assert part.n_heavy == 2


# Breaks when heavy rows count twice, or at another scale than rows that were drawn.
def test_heavy_rows_in_a_sample(tmp_path):
    rng = np.random.default_rng(6)
    rows = np.arange(50_000, dtype=np.float32)[:, None]
    weights = rng.uniform(1, 2, size=len(rows))
    heavy = [0, 7, 25_000, 49_999]
    weights[heavy] = [1e4, 2e4, 1e3, 1e5]  # The least is more than a 4096th of all.
    source, w = open_source(rows), open_weights(weights, len(rows))
    plan = plan_reading(source.spec, batch_rows=4096, seed=0)
    memory = plan_memory(source.spec, plan, ExecutionConfig(), fixed_bytes=0, weighted=True)
    with HostSlots(memory.stream, torch.device("cpu")) as slots, Progress(quiet=True) as progress:
        drawn, found, n_heavy = draw_sample(
            source, plan, 20_000, k=3, seed=1, dtype=torch.float32, slots=slots,
            progress=progress, on_window=lambda: None, weights=w,
        )  # fmt: skip
    assert found is not None
    assert n_heavy == 4
    numbers = drawn[:, 0].long().numpy()
    assert numbers[-4:].tolist() == heavy
    assert len(set(numbers[:-4].tolist())) == 20_000
    expected = weights[numbers]
    expected[-4:] *= 0.4
    expected[:-4][np.isin(numbers[:-4], heavy)] = 0
    np.testing.assert_allclose(found.numpy(), expected)


# Breaks when sampling costs more than a share of the epoch, or sees few places of a large array.
def test_pieces_of_the_sample():
    def pieces(n_rows: int, n_features: int, k: int, piece_rows: int = 0) -> tuple[int, int]:
        spec = ArraySpec(n_rows, n_features, "float32", 4096, "test", piece_rows=piece_rows)
        return sample_pieces(spec, plan_reading(spec, batch_rows=4096, seed=0), k)

    # Whole blocks: two a cluster, if that is not much of the array.
    assert pieces(4096 * 1000, 128, 8) == (64, 4096)
    assert pieces(4096 * 200, 128, 20) == (32, 4096)
    # Reading is nothing beside the arithmetic.
    assert pieces(4096 * 1000, 128, 4096) == (8192, 4096)
    # Smaller pieces cost less, unless there are enough of them that whole blocks are as quick.
    assert pieces(4096 * 1000, 128, 200, 512) == (400, 512)
    assert pieces(4096 * 100, 128, 200, 512) == (46, 4096)
