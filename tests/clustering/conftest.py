"""What the tests of clustering share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors are small here: threads that wait for one another cost more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generators_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws are made on the CPU: a device without memory has no generator."""
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda *_: generator())
