"""Centroids that follow the sums of their clusters: compiled, and as operations of torch."""

from __future__ import annotations

import pytest
import torch

from streamkm.clustering.moves import move_centroids_
from streamkm.clustering.state import KMeansState, initial_state
from streamkm.kernels import Sums
from streamkm.kernels.extension import instruction_sets
from streamkm.kernels.ops import move

needs_extension = pytest.mark.skipif(not instruction_sets(), reason="the extension was not built")


def state_of(k, n_features, dtype, *, weighted=False):
    generator = torch.Generator().manual_seed(k)
    normal = torch.randn(k, n_features, generator=generator, dtype=torch.float64)
    state = initial_state(normal.to(dtype), 0.0, weighted=weighted)
    state.sums_KD.copy_(normal * 17)
    state.counts_K.copy_(torch.arange(k) % 5)
    if weighted:
        state.weights_K.copy_(torch.rand(k, generator=generator, dtype=torch.float64) * 3)
        state.weights_K[1] = 0
    state.sums_KD[0] = 0
    added_KD = torch.randn(k, n_features, generator=generator).to(dtype)
    return state, added_KD, torch.arange(k) % 3 != 1


def moved(state: KMeansState, *args, compiled: bool, monkeypatch, **kwargs):
    with monkeypatch.context() as patch:
        if not compiled:
            patch.setattr(move, "instruction_sets", tuple)
        return float(move_centroids_(state, *args, **kwargs))


@needs_extension
@pytest.mark.parametrize(("k", "n_features"), [(1, 1), (7, 3), (64, 128), (300, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_compiled_and_torch_agree(monkeypatch, k, n_features, dtype, spherical, weighted):
    results = {}
    for compiled in (True, False):
        state, added_KD, touched_K = state_of(k, n_features, dtype, weighted=weighted and k > 1)
        added_KD[0] = 0  # With a sum of 0 a direction is none.
        before_KD = state.centroids_KD.clone()
        added = Sums(added_KD, torch.tensor(0.25, dtype=torch.float64))
        shift = moved(
            state, touched_K, spherical=spherical, added=added,
            compiled=compiled, monkeypatch=monkeypatch,
        )  # fmt: skip
        results[compiled] = state
        assert torch.equal(state.centroids_KD[~touched_K], before_KD[~touched_K])
        expected = (state.centroids_KD - before_KD).double().square().sum()
        assert shift == pytest.approx(float(expected), rel=1e-12)
        if spherical:
            assert torch.equal(state.centroids_KD[0], before_KD[0])
    compiled, by_torch = results[True], results[False]
    assert torch.equal(compiled.sums_KD, by_torch.sums_KD)
    rtol = 4 * torch.finfo(dtype).eps if spherical else 0
    torch.testing.assert_close(compiled.centroids_KD, by_torch.centroids_KD, rtol=rtol, atol=0)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_extension), False])
def test_tiny_and_huge_sums_have_directions(monkeypatch, compiled):
    state = initial_state(torch.eye(3), 0.0)
    state.sums_KD[0] = torch.tensor([3e-200, 4e-200, 0], dtype=torch.float64)
    state.sums_KD[1] = torch.tensor([3e200, 0, 4e200], dtype=torch.float64)
    state.counts_K.fill_(2)
    moved(
        state, torch.ones(3, dtype=torch.bool), spherical=True,
        compiled=compiled, monkeypatch=monkeypatch,
    )  # fmt: skip
    expected = torch.tensor([[0.6, 0.8, 0], [0.6, 0, 0.8], [0, 0, 1]])
    torch.testing.assert_close(state.centroids_KD, expected)


# Breaks where what a thread adds up depends on how many there are.
@needs_extension
def test_bits_do_not_depend_on_threads(monkeypatch):
    results = []
    for n_threads in (1, 3):
        monkeypatch.setattr(move, "n_threads_for", lambda _, n=n_threads: n)
        state, added_KD, touched_K = state_of(500, 64, torch.float32)
        shift = move_centroids_(
            state, touched_K, spherical=False, added=Sums(added_KD, torch.tensor(1.0).double())
        )
        results.append((float(shift), state.centroids_KD))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
