"""Tensors reach the host as they were when they were asked for."""

from __future__ import annotations

import pytest
import torch

from streamkm.runs.engine.fetching import Fetcher
from tests.stream.hostile import HOSTILE, hostile_device


# Breaks when what a later step does to the state, or a later fetch, shows in what was fetched.
@pytest.mark.parametrize("threaded", [False, True])
def test_tensors_are_those_of_one_moment(monkeypatch: pytest.MonkeyPatch, threaded) -> None:
    for seed in range(3 if threaded else 8):
        with hostile_device(monkeypatch, seed, threaded=threaded) as device:
            sums = torch.zeros((3, 2), device=HOSTILE)
            fetcher = Fetcher(HOSTILE)
            for step in range(4):
                sums += 1
                wait = fetcher.fetch({"sums": sums, "step": torch.tensor([step])})
                sums += 1
                found = {name: array.tolist() for name, array in wait().items()}
                assert found == {"sums": [[2.0 * step + 1] * 2] * 3, "step": [step]}, seed
            assert device.waits == []
