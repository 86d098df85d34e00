"""The plan: every row once, in an order that is a pure function of seed, epoch and shape."""

from __future__ import annotations

import itertools
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkm.sources.base import ArraySpec, RowRange
from streamkm.stream import plan as plan_module
from streamkm.stream.plan import ReadingPlan, Window, plan_reading
from streamkm.stream.sample_plan import sample_windows
from tests.stream.helpers import batches_of, rows_of

plans = st.builds(
    ReadingPlan,
    n_rows=st.integers(1, 400),
    block_rows=st.integers(1, 60),
    window_blocks=st.integers(1, 9),
    batch_rows=st.integers(1, 80),
    seed=st.none() | st.integers(0, 2**70),
)
epochs = st.integers(0, 4)


def all_batches(plan: ReadingPlan, epoch: int, start: int = 0) -> list[np.ndarray]:
    return [batch for window in plan.windows(epoch, start) for batch in batches_of(window)]


# Would break if a window's blocks overlapped, the short last block were lost, or the
# permutation left out a row.
@given(plans, epochs)
def test_every_row_is_in_exactly_one_batch_of_an_epoch(plan, epoch):
    rows = np.concatenate(all_batches(plan, epoch))
    np.testing.assert_array_equal(np.sort(rows), np.arange(plan.n_rows))


@given(plans, epochs)
def test_batches_are_equal_to_within_a_row_and_no_more_than_needed(plan, epoch):
    for window in plan.windows(epoch):
        lengths = [len(batch) for batch in batches_of(window)]
        assert window.n_batches == len(lengths)
        assert window.n_rows <= plan.window_rows
        unit_rows = window.n_rows if plan.seed is not None else window.unit_blocks * plan.block_rows
        ends = set(np.cumsum(lengths).tolist())
        for start in range(0, window.n_rows, unit_rows):
            n_rows = min(unit_rows, window.n_rows - start)
            stops = [0, *sorted(end - start for end in ends if start < end <= start + n_rows)]
            assert stops[-1] == n_rows
            of_unit = np.diff(stops)
            assert max(of_unit) <= plan.batch_rows
            assert max(of_unit) - min(of_unit) <= 1
            assert len(of_unit) == -(-n_rows // plan.batch_rows)


# In sequence a batch is read by one process: breaks if a batch ends within a block that the next
# begins in, but for blocks longer than a batch.
@given(plans, st.integers(1, 5))
def test_a_batch_in_sequence_belongs_to_one_process(plan, n_processes):
    plan = plan.in_sequence()
    owners: list[list[int]] = [[] for _ in range(plan.n_batches(0))]
    for rank in range(n_processes):
        for share in plan.windows(0, rank=rank, n_processes=n_processes):
            window = share.dealt()
            for index, rows in enumerate(np.diff(window.batch_edges)):
                owners[window.first_batch + index] += [rank] * bool(rows)
    assert all(len(of_batch) == 1 for of_batch in owners)
    taken = np.bincount([rank for (rank,) in owners], minlength=n_processes)
    per_unit = -(-plan.unit_blocks * plan.block_rows // plan.batch_rows)
    assert taken.max() - taken.min() <= per_unit


@given(plans, epochs)
def test_batches_are_numbered_in_order_and_the_last_one_is_known(plan, epoch):
    windows = list(plan.windows(epoch))
    assert len(windows) == plan.n_windows
    assert windows[0].first_batch == 0
    for before, after in pairwise(windows):
        assert after.first_batch == before.first_batch + before.n_batches
    assert [window.last for window in windows] == [False] * (len(windows) - 1) + [True]


# The heart of resuming: KempnerForge#57 is a second resume that misaligns.
@given(plans, epochs, st.data())
def test_going_on_from_any_batch_gives_the_same_batches(plan, epoch, data):
    total = plan.n_batches(epoch)
    start = data.draw(st.integers(0, total))
    rest = list(plan.windows(epoch, start))
    whole = list(plan.windows(epoch))
    assert rest == [window for window in whole if window.first_batch + window.n_batches > start]
    if rest:
        first, batches = rest[0].first_batch, all_batches(plan, epoch)[start:]
        resumed = all_batches(plan, epoch, start)[start - first :]
        assert [b.tolist() for b in resumed] == [b.tolist() for b in batches]
    else:
        assert start == total


@given(plans, epochs)
def test_rows_before_counts_the_rows_of_earlier_batches(plan, epoch):
    counted = 0
    for number, batch in enumerate(all_batches(plan, epoch)):
        assert plan.rows_before(epoch, number) == counted
        counted += len(batch)
    assert plan.rows_before(epoch, plan.n_batches(epoch)) == plan.n_rows


@given(plans.filter(lambda plan: plan.seed is None))
def test_batch_at_names_the_batch_that_holds_a_row(plan):
    for number, batch in enumerate(all_batches(plan, 0)):
        assert {plan.batch_at(int(row)) for row in batch} == {number}


@given(plans.filter(lambda plan: plan.seed is None), epochs)
def test_without_a_seed_rows_come_in_sequence(plan, epoch):
    np.testing.assert_array_equal(np.concatenate(all_batches(plan, epoch)), np.arange(plan.n_rows))


@pytest.mark.parametrize("batch", [-1, 6])
def test_a_batch_that_the_epoch_does_not_have_is_refused(batch):
    plan = ReadingPlan(n_rows=50, block_rows=10, window_blocks=2, batch_rows=10, seed=0)
    with pytest.raises(ValueError, match=f"batch {batch} is not one of the epoch's 5"):
        plan.rows_before(0, batch)
    with pytest.raises(ValueError, match="is not one of"):
        next(plan.windows(0, batch))


# accelerate#4195: epoch 0's order comes back; here every epoch and every seed has its own.
def test_epochs_and_seeds_differ_in_blocks_and_in_rows():
    plans_ = [ReadingPlan(1000, 10, 4, 100, seed) for seed in (0, 1, 2**64, 2**64 + 1)]
    orders = [np.concatenate(all_batches(p, e)) for p in plans_ for e in range(3)]
    assert len({order.tobytes() for order in orders}) == len(orders)
    blocks = [tuple(w.reads for w in p.windows(e)) for p in plans_ for e in range(3)]
    assert len(set(blocks)) == len(blocks)


def test_an_order_is_the_same_each_time_it_is_asked_for():
    window = next(ReadingPlan(1000, 10, 4, 15, 3).windows(1))
    order = window.order()
    assert order is not None
    assert order.dtype == np.int32
    np.testing.assert_array_equal(order, window.order())


# The rows of one file are often sorted: a batch out of one place is a biased one.
def test_a_batch_mixes_rows_of_blocks_from_all_over_the_array():
    plan = ReadingPlan(n_rows=6400, block_rows=10, window_blocks=64, batch_rows=160, seed=0)
    for batch in all_batches(plan, 0):
        assert len(np.unique(batch // 10)) > 40
        thirds = np.bincount(batch * 3 // 6400, minlength=3)
        assert thirds.min() > 160 * 0.15


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 99))
def test_of_neighbours_each_batch_gets_one(n_rows, batch_rows, seed):
    [window] = ReadingPlan(n_rows, n_rows, 1, batch_rows, seed).windows(0)
    n_batches = window.n_batches
    for batch in batches_of(window):
        np.testing.assert_array_equal(batch // n_batches, np.arange(len(batch)))


def test_each_row_is_as_likely_in_one_batch_as_in_another():
    counts = np.zeros((12, 3))
    n_seeds = 2000
    for seed in range(n_seeds):
        [window] = ReadingPlan(12, block_rows=4, window_blocks=3, batch_rows=4, seed=seed).windows(
            0
        )
        for number, batch in enumerate(batches_of(window)):
            counts[batch, number] += 1
    sigma = np.sqrt(n_seeds * 1 / 3 * 2 / 3)
    assert np.abs(counts - n_seeds / 3).max() < 4.5 * sigma


def test_a_window_of_one_batch_is_used_as_it_lies():
    [window] = ReadingPlan(
        n_rows=40, block_rows=10, window_blocks=4, batch_rows=40, seed=3
    ).windows(0)
    assert window.order() is None


def test_every_block_is_as_likely_in_the_first_window_as_any_other():
    counts = np.zeros(20)
    n_seeds = 2000
    for seed in range(n_seeds):
        plan = ReadingPlan(n_rows=200, block_rows=10, window_blocks=5, batch_rows=50, seed=seed)
        for rows in next(plan.windows(0)).reads:
            counts[rows.start // 10] += 1
    expected = n_seeds * 5 / 20
    sigma = np.sqrt(n_seeds * 0.25 * 0.75)
    assert np.abs(counts - expected).max() < 4.5 * sigma


# Golden values: they change if NumPy's streams do, or the draws are made otherwise, and then
# checkpoints of one version cannot be resumed by the next.
def test_order_of_a_fixed_seed():
    plan = ReadingPlan(n_rows=22, block_rows=4, window_blocks=2, batch_rows=3, seed=7)
    assert [[batch.tolist() for batch in batches_of(w)] for w in plan.windows(1)] == GOLDEN_ORDER


def test_sample_of_a_fixed_seed():
    plan = ReadingPlan(n_rows=22, block_rows=4, window_blocks=2, batch_rows=3, seed=7)
    windows = list(sample_windows(plan, 8, seed=7, n_pieces=6, piece_rows=2))
    assert [rows_of(window).tolist() for window in windows] == GOLDEN_SAMPLE


# ---- plan_reading --------------------------------------------------------------


def spec(n_rows: int, block_rows: int, n_features: int = 4) -> ArraySpec:
    return ArraySpec(n_rows, n_features, "float32", block_rows, "test")


def test_a_window_takes_as_many_blocks_as_its_bytes_allow(monkeypatch):
    monkeypatch.setattr(plan_module, "WINDOW_BYTES", 16 * 10 * 5 + 3)
    assert plan_reading(spec(1000, 10), batch_rows=20, seed=0).window_blocks == 5


def test_a_window_holds_a_batch_and_a_block_however_large_they_are(monkeypatch):
    monkeypatch.setattr(plan_module, "WINDOW_BYTES", 1)
    assert plan_reading(spec(1000, 10), batch_rows=25, seed=0).window_blocks == 3
    assert plan_reading(spec(1000, 300), batch_rows=25, seed=0).window_blocks == 1


@given(st.integers(1, 300), st.integers(1, 400), st.integers(1, 500))
def test_a_window_is_never_more_than_the_array(n_rows, block_rows, batch_rows):
    plan = plan_reading(spec(n_rows, block_rows), batch_rows=batch_rows, seed=0)
    assert plan.window_rows == n_rows
    assert plan.window_blocks == plan.n_blocks


def test_the_last_block_may_be_short():
    plan = ReadingPlan(n_rows=25, block_rows=10, window_blocks=1, batch_rows=10, seed=None)
    assert [plan.block(i) for i in range(3)] == [
        RowRange(0, 10), RowRange(10, 20), RowRange(20, 25)
    ]  # fmt: skip


# ---- samples ----------------------------------------------------------------


@given(plans, st.data(), st.integers(1, 500), st.integers(0, 99), st.integers(1, 40))
def test_a_sample_has_the_rows_asked_for_or_all(plan, data, n_rows, seed, n_pieces):
    size = data.draw(st.integers(1, min(plan.block_rows, plan.n_rows)))
    windows = list(sample_windows(plan, n_rows, seed=seed, n_pieces=n_pieces, piece_rows=size))
    rows = np.concatenate([rows_of(window) for window in windows])
    reads = [read for window in windows for read in window.reads]
    assert len(rows) == len(np.unique(rows))
    assert len(rows) == min(n_rows, plan.n_rows)
    assert min(n_pieces, -(-plan.n_rows // size)) <= len(set(reads)) == len(reads)
    assert all(read.start % size == 0 and 1 <= len(read) <= size for read in reads)
    assert [w.batch_edges for w in windows] == [(0, len(rows_of(w))) for w in windows]
    assert [w.last for w in windows] == [False] * (len(windows) - 1) + [True]
    assert all(w.n_rows <= plan.window_rows for w in windows)


def test_a_sample_of_all_rows_is_the_array_in_order():
    plan = ReadingPlan(n_rows=95, block_rows=10, window_blocks=3, batch_rows=7, seed=1)
    windows = sample_windows(plan, 95, seed=5, n_pieces=4, piece_rows=4)
    np.testing.assert_array_equal(np.concatenate([rows_of(w) for w in windows]), np.arange(95))


# Sampling the head of a file, each piece alike however short it is, or pieces of a short
# stretch more often, would show here.
@pytest.mark.parametrize(("size", "n_pieces"), [(10, 6), (10, 9), (4, 8), (4, 20)])
def test_every_row_is_as_likely_to_be_sampled_as_any_other(size, n_pieces):
    plan = ReadingPlan(n_rows=113, block_rows=10, window_blocks=3, batch_rows=7, seed=1)
    counts, n_seeds = np.zeros(113), 3000
    for seed in range(n_seeds):
        windows = sample_windows(plan, 20, seed=seed, n_pieces=n_pieces, piece_rows=size)
        for window in windows:
            counts[rows_of(window)] += 1
    mean = counts.mean()
    sigma = np.sqrt(mean * (1 - mean / n_seeds))
    assert np.abs(counts - mean).max() < 5 * sigma


# Rows sorted by cluster: no cluster as long as two stretches is missed, wherever it lies.
@given(st.integers(0, 99), st.integers(2, 30), st.integers(1, 9))
def test_no_place_is_far_from_a_piece(seed, n_pieces, size):
    plan = ReadingPlan(n_rows=900, block_rows=9, window_blocks=100, batch_rows=7, seed=1)
    (window,) = sample_windows(plan, 1, seed=seed, n_pieces=n_pieces, piece_rows=size)
    starts = np.array([rows.start for rows in window.reads])
    gaps = np.diff(np.append(starts, starts[0] + -(-900 // size) * size))
    assert gaps.max() <= 2 * (900 / n_pieces + 2 * size)


def test_samples_of_different_seeds_differ():
    plan = ReadingPlan(n_rows=1000, block_rows=10, window_blocks=3, batch_rows=7, seed=1)
    drawn = [
        np.concatenate(
            [rows_of(w) for w in sample_windows(plan, 50, seed=s, n_pieces=8, piece_rows=5)]
        )
        for s in range(5)
    ]
    assert len({rows.tobytes() for rows in drawn}) == 5


def test_windows_are_values():
    plan = ReadingPlan(1000, 10, 4, 100, 3)
    first, again = next(plan.windows(0)), next(plan.windows(0))
    assert first == again
    assert isinstance(first, Window)
    with pytest.raises(AttributeError):
        first.epoch = 1  # type: ignore[misc]


GOLDEN_ORDER = [
    [[4, 7, 20], [5, 6, 21]],
    [[14, 15, 18], [12, 16, 19], [13, 17]],
    [[1, 8, 10], [2, 9, 11], [0, 3]],
]
GOLDEN_SAMPLE = [[2, 4, 5, 8, 13], [16, 17, 21]]


# ---- shares of several processes ---------------------------------------------


def rows_by_batch(window: Window) -> list[list[int]]:
    """Rows of the array in each batch of a window, sorted."""
    window = window.dealt()
    read = np.concatenate([np.arange(r.start, r.stop) for r in window.reads] or [np.empty(0, int)])
    order = window.order()
    used = read if order is None else read[order]
    edges = window.batch_edges
    return [sorted(used[a:b].tolist()) for a, b in itertools.pairwise(edges)]


# Breaks when a step is made of other rows for another number of processes, or one is read twice.
@pytest.mark.parametrize("n_processes", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("batch_rows", [7, 40, 1000])
def test_shares_of_a_window_make_its_batches(n_processes, seed, batch_rows):
    plan = ReadingPlan(n_rows=113, block_rows=10, window_blocks=5, batch_rows=batch_rows, seed=seed)
    shares = [
        list(plan.windows(1, 2 if batch_rows == 7 else 0, rank=rank, n_processes=n_processes))
        for rank in range(n_processes)
    ]
    whole = list(plan.windows(1, 2 if batch_rows == 7 else 0))
    for window, *parts in zip(whole, *shares, strict=True):
        assert sorted(r for part in parts for r in part.reads) == sorted(window.reads)
        assert {part.n_batches for part in parts} == {window.n_batches}
        batches = zip(*map(rows_by_batch, parts), strict=True)
        together = [sorted(itertools.chain(*shares)) for shares in batches]
        dealt = [window.share(rank, n_processes).dealt() for rank in range(n_processes)]
        numbers = [
            sorted(
                itertools.chain(
                    *(
                        part.numbers[part.batch_edges[i] : part.batch_edges[i + 1]].tolist()
                        for part in dealt
                    )
                )
            )
            for i in range(window.n_batches)
        ]
        assert numbers == [list(range(window.whole_rows(i))) for i in range(window.n_batches)]
        assert together == rows_by_batch(window)
        assert all(
            (part.first_batch, part.last) == (window.first_batch, window.last) for part in parts
        )


# Breaks when rows of a share are used in another order than in the whole window.
def test_a_share_keeps_the_order_of_the_window():
    [window] = ReadingPlan(60, block_rows=10, window_blocks=6, batch_rows=20, seed=3).windows(0)
    share, whole = window.share(1, 2).dealt(), window.order()
    read = np.concatenate([np.arange(r.start, r.stop) for r in share.reads])
    starts = np.concatenate([np.arange(r.start, r.stop) for r in window.reads])
    own = set(read.tolist())
    assert read[share.order()].tolist() == [row for row in starts[whole].tolist() if row in own]


def test_one_process_has_the_plan_as_it_was():
    plan = ReadingPlan(n_rows=113, block_rows=10, window_blocks=3, batch_rows=7, seed=1)
    assert list(plan.windows(2, rank=0, n_processes=1)) == list(plan.windows(2))
    assert all(window.part is None for window in plan.windows(2, rank=0, n_processes=1))


# Breaks when a process waits for rows that no other one reads, or two processes end rounds at
# different places.
@given(plans, st.integers(1, 5), st.data())
def test_places_are_the_batches_of_all_shares(plan, n_processes, data):
    plan = plan.in_sequence()
    n_batches = plan.n_batches(0)
    start = data.draw(st.integers(0, n_batches - 1))
    places = list(plan.places(start, n_processes=n_processes))
    assert len(places) == n_batches - start
    found = {}
    for rank in range(n_processes):
        for share in plan.windows(0, start, rank=rank, n_processes=n_processes):
            for i, rows in enumerate(rows_by_batch(share)):
                if rows and share.first_batch + i >= start:
                    found[rows[0]] = (len(rows), rank)
    assert found == {place.start_row: (place.n_rows, place.owner) for place in places}
    # Else processes that share fewer blocks than there are of them never save, nor stop.
    assert places[-1].ends_round
    for n_done, place in enumerate(places, start + 1):
        assert plan.ends_round(n_done, n_processes) == place.ends_round
    if n_processes == 1:
        assert all(place.ends_round for place in places)
        return
    owners: list[int] = []
    for place in places:
        owners.append(place.owner)
        assert owners == sorted(owners)
        assert owners.count(place.owner) <= plan.unit_batches
        if place.ends_round:
            owners = []
