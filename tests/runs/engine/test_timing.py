"""Who waited for whom: figures by hand."""

from __future__ import annotations

from typing import Any

import pytest

from streamkm.distributed.world import World
from streamkm.runs.engine.timing import Waiting, hosts_of, process_lines
from streamkm.stream.stages import STAGES, StageTimes


def process(rank: int, waited_s: float, busiest: str = "arithmetic") -> dict[str, Any]:
    stages = {name: {"busy_s": 1.0 + (name == busiest), "wait_s": 0.0} for name in STAGES}
    return {
        "rank": rank, "host": f"node{rank}", "elapsed_s": 20.0, "waited_s": waited_s,
        "stages": stages,
    }  # fmt: skip


# Breaks when a process that all wait for is not named, or one is that is no slower than others.
@pytest.mark.parametrize(
    ("waited", "named"),
    [
        ([8.0, 8.0, 0.5, 8.2], 2),  # Busy for 19.5 s, the others for 12.
        ([2.0, 2.5, 3.0, 2.2], None),  # 18 s, the others 17.5.
        ([19.5, 18.7], None),  # Twice as long, yet by less than a second.
        ([9.0, 3.0], 1),
    ],
)
def test_who_held_the_others_up_is_named(waited, named):
    processes = [process(rank, seconds, "reading") for rank, seconds in enumerate(waited)]
    first, *rest = process_lines(processes)
    assert f"{min(waited):.2f} to {max(waited):.2f} s, of the 20.0 s that rows streamed" in first
    assert len(rest) == (named is not None)
    for line in rest:
        assert line.startswith(f"note: process {named} on node{named} held the others up: ")
        assert line.endswith("its bottleneck is reading")


# Breaks when time that a process waited counts as its arithmetic.
def test_waiting_is_no_arithmetic():
    world, times = World(0, 0, ["a", "a"]), StageTimes()
    waiting, on_gpu = Waiting(world, on_host=True), Waiting(world, on_host=False)
    times.add("arithmetic", busy=5.0)
    world.waited_s += 2.0
    on_gpu.count(times)  # There the device waits, and the host beside it.
    waiting.count(times)
    waiting.count(times)
    assert times.as_dict()["arithmetic"] == {"busy_s": 3.0, "wait_s": 2.0}
    assert (waiting.seconds, on_gpu.seconds) == (2.0, 2.0)
    world.waited_s += 4.0  # A second of it between two windows.
    waiting.count(times)
    assert times.as_dict()["arithmetic"] == {"busy_s": 0.0, "wait_s": 6.0}
    waiting.begin()
    assert waiting.seconds == 0.0


def test_machines_are_named_with_their_processes():
    assert hosts_of(World(0, 0, ["a", "a"])) == "a"
    assert hosts_of(World(0, 0, ["a", "b", "a", "b"])) == "a: 2, b: 2"
    many = [f"n{i}" for i in range(6)]
    assert hosts_of(World(0, 0, many)) == "n0: 1, n1: 1, n2: 1, n3: 1, 2 more machines"
