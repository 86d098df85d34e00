"""Records reach their places in every way that there is, and after a stop at every moment."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from streamkm.config import ExecutionConfig
from streamkm.distributed.world import ALONE, World
from streamkm.errors import Interrupted
from streamkm.runs.partitioning import gathered
from streamkm.runs.partitioning.distribution import distribute, publish
from streamkm.runs.partitioning.flat import FlatOutput
from streamkm.runs.partitioning.gathered import (
    BESIDE_RECORD,
    DIRECT_BYTES,
    DistributionPlan,
    plan_distribution,
)
from streamkm.runs.partitioning.placing import ByKey, Stored, offsets_of
from streamkm.runs.partitioning.work import Work
from streamkm.runs.reporting.progress import Progress
from streamkm.sources import RowRange
from streamkm.sources.memory import MemorySource
from tests.distributed.together import together
from tests.runs.helpers import StopAfter, every

#: Ways to move 300 records of 8 bytes.
WAYS = {
    "memory": DistributionPlan(300, 8, 300, 300),
    "direct": DistributionPlan(300, 8, 40, 0),
    "buckets": DistributionPlan(300, 8, 40, 32),
    "three records at a time": DistributionPlan(300, 8, 3, 3),
}
LABELS = np.random.default_rng(0).integers(7, size=300)
LABELS[LABELS == 3] = 5


def keys(rows: RowRange) -> np.ndarray:
    return LABELS[rows.start : rows.stop]


def stream(wanted: RowRange) -> Generator[tuple[RowRange, np.ndarray]]:
    for rows in wanted.split(23):
        yield rows, np.arange(rows.start, rows.stop)[:, None].view(np.uint8)


def move(
    folder: Path,
    plan: DistributionPlan,
    stop_at: int | None = None,
    placing=None,
    world: World = ALONE,
) -> None:
    execution = ExecutionConfig(checkpoint_every=every(2))
    work = Work(folder, execution, StopAfter(stop_at), Progress(quiet=True), world)
    world.meet()
    reached = work.begin("moved", asdict(plan))
    make = partial(FlatOutput, work.folder / "moved.partial", (plan.n_places,), np.dtype(np.int64))
    output = work.opened(make, resumed=bool(reached.stage))
    placing = placing or ByKey(300, keys, offsets_of(300, keys, 7, world)[:-1])
    try:
        distribute("moved", plan, placing, stream, output, work, reached)
        publish(output, folder / "moved.npy", work)
    finally:
        output.close()


@pytest.mark.parametrize("way", WAYS)
def test_records_are_in_place_wherever_it_was_stopped(way, quick_path) -> None:
    expected = np.argsort(LABELS, kind="stable")
    stops, folder = 0, quick_path
    for stop_at in range(1, 400, 20 if WAYS[way].bucket_rows == 3 else 1):
        folder = quick_path / str(stop_at)
        folder.mkdir()
        try:
            move(folder, WAYS[way], stop_at)
        except Interrupted:
            stops += 1
            move(folder, WAYS[way])
            assert np.load(folder / "moved.npy").tolist() == expected.tolist()
            assert sorted(p.name for p in (folder / "unfinished").iterdir()) == ["cursor.json"]
        else:
            break
    assert stops >= 5
    assert np.load(folder / "moved.npy").tolist() == expected.tolist()


# Breaks when a process writes where another one does, leaves out what is between two of them, or
# when what was claimed by so many processes is lost to another number of them.
@pytest.mark.parametrize("way", WAYS)
def test_processes_share_records_and_resume_as_others(way, quick_path, monkeypatch) -> None:
    monkeypatch.setattr("streamkm.runs.partitioning.work.MOST_BATCHES", 1)
    expected = np.argsort(LABELS, kind="stable").tolist()
    n_stops = 0
    for stop_at in (2, 3, 5, 8, 11, None):
        folder = quick_path / str(stop_at)
        folder.mkdir()
        for size, stop in ((3, stop_at), (2, stop_at), (1, None)):

            def work(world: World, stop: int | None = stop, folder: Path = folder) -> bool:
                # The last process gets the signal.
                at = stop if world.rank == world.size - 1 else None
                try:
                    move(folder, WAYS[way], at, world=world)
                except Interrupted:
                    return True
                return False

            are_stopped = together(size, work)
            assert len({*are_stopped}) == 1
            n_stops += are_stopped[0]
            if not are_stopped[0]:
                break
        assert np.load(folder / "moved.npy").tolist() == expected
        assert [p.name for p in (folder / "unfinished").iterdir()] == ["cursor.json"]
    assert n_stops >= 4


# Breaks when an attempt forgets what earlier ones have claimed, so that it is done again.
@pytest.mark.parametrize("way", ["direct", "buckets"])
def test_what_was_claimed_stays_claimed(way, quick_path) -> None:
    claimed: dict[str, int] = {}
    n_stops = 0
    while n_stops < 60:
        try:
            move(quick_path, WAYS[way], 3)
        except Interrupted:
            n_stops += 1
            cursor = json.loads((quick_path / "unfinished" / "cursor.json").read_text())
            n_done = sum(stop - start for start, stop in cursor["done"])
            assert n_done > claimed.get(cursor["stage"], -1)
            claimed[cursor["stage"]] = n_done
        else:
            break
    assert len({*claimed}) == 1 + (way == "buckets")
    assert 4 <= n_stops < 60
    assert np.load(quick_path / "moved.npy").tolist() == np.argsort(LABELS, kind="stable").tolist()


# Breaks when what was written under one plan is taken for that of another.
@pytest.mark.parametrize("way", WAYS)
def test_another_plan_begins_anew(way, quick_path) -> None:
    with pytest.raises(Interrupted):
        move(quick_path, WAYS["buckets"], 9)
    move(quick_path, WAYS[way])
    assert np.load(quick_path / "moved.npy").tolist() == np.argsort(LABELS, kind="stable").tolist()


# Breaks when a place that no record comes to holds another record.
@pytest.mark.parametrize("way", ["memory", "buckets", "three records at a time"])
def test_places_without_a_record_hold_ones(way, quick_path) -> None:
    places = np.random.default_rng(1).permutation(300)
    places[::3] = -1
    expected = np.full(300, -1)
    expected[places[places >= 0]] = np.flatnonzero(places >= 0)
    for stop_at in (5, 16, 18, None):
        folder = quick_path / str(stop_at)
        folder.mkdir()
        stored = [Stored(MemorySource(places[:, None], "places")) for _ in range(2)]
        try:
            move(folder, WAYS[way], stop_at, stored[0])
        except Interrupted:
            move(folder, WAYS[way], None, stored[1])
        assert np.load(folder / "moved.npy").tolist() == expected.tolist()


def test_pieces_are_no_longer_than_they_may_be(quick_path, monkeypatch) -> None:
    monkeypatch.setattr(gathered, "PIECE_BYTES", 24)
    longest = 0
    put = FlatOutput.put

    def watched(self, start, rows) -> None:
        nonlocal longest
        longest = max(longest, len(rows))
        put(self, start, rows)

    monkeypatch.setattr(FlatOutput, "put", watched)
    for way, plan in WAYS.items():
        (quick_path / way).mkdir()
        move(quick_path / way, plan)
        assert (
            np.load(quick_path / way / "moved.npy").tolist()
            == np.argsort(LABELS, kind="stable").tolist()
        )
    assert longest == 3


def test_the_plan_by_hand() -> None:
    width, each = 952, 1000
    assert width + BESIDE_RECORD == each
    assert plan_distribution(50, width, 50 * each).is_in_memory
    direct = plan_distribution(10**9, width, 10**9, n_clusters=952 * 10**6 // DIRECT_BYTES)
    assert direct.is_direct
    assert direct.gather_rows == 10**6
    assert not direct.scratch_bytes
    more = plan_distribution(10**9, width, 10**9, n_clusters=952 * 10**6 // DIRECT_BYTES + 1)
    assert (more.bucket_rows, more.n_buckets) == (10**6, 1000)
    assert more.scratch_bytes == 10**9 * (width + 8)
    aligned = plan_distribution(10**9, width, 10**9, align_rows=300)
    assert aligned.bucket_rows == 999_900
    assert plan_distribution(1000, width, 10, align_rows=300).bucket_rows == 300
    assert not plan_distribution(0, width, 10).n_places
