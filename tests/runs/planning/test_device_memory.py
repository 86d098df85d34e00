"""The plan of a GPU's memory: what does not fit is refused with what would."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch

from streamkm.config import ExecutionConfig
from streamkm.errors import MemoryBudgetError
from streamkm.runs.planning import device_memory
from streamkm.runs.planning.device_memory import plan_device_memory
from streamkm.sources.base import ArraySpec
from streamkm.stream.plan import plan_reading
from streamkm.text import parse_bytes

MIB = 1 << 20
SPEC = ArraySpec(10**7, 128, "float32", 2048, "test")
GPU = torch.device("cuda", 1)


def planned(limit: int | None = None, *, n_processes: int = 1, device: torch.device = GPU):
    reading = plan_reading(SPEC, batch_rows=16384, seed=0)
    execution = ExecutionConfig(max_device_memory=limit)
    return plan_device_memory(
        SPEC, reading, execution, device,
        fixed_bytes=200 * MIB, weighted=True, n_processes=n_processes, lower="k",
    )  # fmt: skip


def test_the_host_has_no_such_plan():
    assert planned(device=torch.device("cpu")) is None


def test_windows_and_arithmetic_count_and_the_rest_is_left(monkeypatch):
    monkeypatch.setattr(device_memory, "memory_of", lambda device: (1600 * MIB, 8000 * MIB))
    plan = planned()
    n_rows = 131072  # of a window of 64 MiB; each has a weight, and a place in the order
    assert plan.total_bytes == 2 * (64 * MIB + n_rows * (8 + 4)) + (200 + 128) * MIB
    assert plan.budget == 1500 * MIB
    assert plan.free_bytes == plan.budget - plan.total_bytes
    assert str(plan).startswith("459.0 MiB of 1.5 GiB device memory: windows 2 x 65.5 MiB, ")
    assert planned(1000 * MIB).budget == 1000 * MIB
    assert planned(4000 * MIB, n_processes=2).budget == 750 * MIB


# Breaks when a run begins that ends for want of the card's memory after an hour.
def test_a_card_that_is_too_full_is_told_with_what_to_lower(monkeypatch):
    monkeypatch.setattr(device_memory, "memory_of", lambda device: (480 * MIB, 8000 * MIB))
    with pytest.raises(MemoryBudgetError) as caught:
        planned()
    said = caught.value.for_command_line
    assert said.startswith(
        "--device cuda:1 has 480.0 MiB of 7.8 GiB free, which leaves 450.0 MiB, "
    )
    assert said.endswith(
        "; lower --k, free the GPU's memory (nvidia-smi tells who holds it), or use --device cpu"
    )
    with pytest.raises(MemoryBudgetError, match=r"leaves 225\.0 MiB for each of 2 processes, and"):
        planned(n_processes=2)


def test_a_limit_that_is_too_small_is_named_with_one_that_is_enough(monkeypatch):
    monkeypatch.setattr(device_memory, "memory_of", lambda device: (1600 * MIB, 8000 * MIB))
    with pytest.raises(MemoryBudgetError) as caught:
        planned(MIB)
    found = re.search(r"or give at least --max-device-memory (\w+)$", caught.value.for_command_line)
    assert found
    enough = partial(planned, parse_bytes(found[1]))
    assert 0 <= enough().free_bytes < MIB
