"""Fixtures that the tests of clustering share."""

from __future__ import annotations

from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors are small here: threads that wait for one another cost more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class HostGenerators:
    """torch, but for generators, which are the host's on whatever device."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def Generator(self, device: torch.device) -> torch.Generator:  # noqa: N802
        return torch.Generator()


@pytest.fixture
def generators_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws are made on the CPU: a device without memory has no generator."""
    # (Of that module alone: what torch imports later must find its own generators.)
    monkeypatch.setattr("streamkm.clustering.reservoir.torch", HostGenerators())
