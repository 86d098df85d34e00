"""What processes do together, with real processes under torchrun."""

from __future__ import annotations

import pytest
import torch

from streamkm.distributed.world import ALONE, World
from streamkm.errors import ConfigError
from tests.distributed.launched import by_hand, script, torchrun


def test_one_process_does_nothing():
    sums, parts = torch.tensor([1, 2]), torch.tensor([1.5])
    ALONE.sum_(sums, parts)
    ALONE.max_(sums)
    ALONE.broadcast_(sums)
    ALONE.sum_later(sums).wait()
    ALONE.barrier()
    ALONE.meet()
    ALONE.agree({"k": 3})
    assert sums.tolist() == [1, 2]
    assert parts.tolist() == [1.5]
    assert ALONE.gather((1, 2)) == [(1, 2)]
    assert ALONE.gather_rows(sums)[0] is sums
    assert (ALONE.rank, ALONE.size, ALONE.is_first) == (0, 1, True)
    assert ALONE.heard() is None
    assert not torch.distributed.is_initialized()


def test_an_error_of_one_process_stays_what_it_is():
    with pytest.raises(KeyError), ALONE.telling():
        raise KeyError


@pytest.mark.parametrize(
    ("values", "difference"),
    [
        ([{"k": 3, "seed": 1}] * 3, None),
        ([{"x": float("nan")}] * 2, None),
        ([{"k": 3, "s": 1}, {"k": 3, "s": 2}], "same s: rank 0 on a has 1, rank 1 on b has 2"),
        ([{"k": 3}, {"k": 3}, {}], "same k: rank 0 on a has 3, rank 2 on c has None"),
        ([{}, {"k": 3}], "same k: rank 0 on a has None, rank 1 on b has 3"),
        ([{"k": 1}, {"k": True}], "same k: rank 0 on a has 1, rank 1 on b has True"),
    ],
)  # fmt: skip
def test_values_that_differ_are_named(values, difference):
    records = [{"host": host, "what": what} for host, what in zip("abc", values, strict=False)]
    if difference is None:
        World.compare(records)
    else:
        with pytest.raises(ConfigError, match=difference):
            World.compare(records)


TOGETHER = """
def main():
    with joined("cpu", 20) as w:
        assert (w.size, w.rank) == (int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"]))
        assert world() is w and len(w.hosts) == w.size and w.host == w.hosts[w.rank]
        others = range(w.size)
        total = sum(r + 1 for r in others)

        # Exact beyond what a float64 holds, of several dtypes and shapes in one call.
        large = torch.full((3, 2), (1 << 55) + w.rank)
        small = torch.tensor([w.rank + 1], dtype=torch.int32)
        reals = torch.full((2,), w.rank + 0.5, dtype=torch.float64)
        halves = torch.full((4,), 0.5)[::2]
        nothing = torch.zeros(0, 5)
        w.sum_()
        w.sum_(nothing)
        w.sum_(large, small, reals, halves, nothing)
        assert large.tolist() == [[(w.size << 55) + total - w.size] * 2] * 3
        assert small.item() == total and reals.tolist() == [total - w.size / 2] * 2
        assert halves.tolist() == [w.size / 2] * 2

        # Two sums at once, each with buffers of its own; then larger and smaller ones.
        a, b = torch.full((5,), w.rank), torch.full((5,), 10 * w.rank)
        first, second = w.sum_later(a), w.sum_later(b)
        second.wait(); first.wait(); first.wait()
        assert (a * 10).tolist() == b.tolist() == [10 * (total - w.size)] * 5
        for n in (7, 100, 3):
            c = torch.arange(n) * (w.rank + 1)
            w.sum_(c)
            assert torch.equal(c, torch.arange(n) * total)
        assert len(w._free) <= 6, "buffers are kept, not collected"

        most = torch.tensor([w.rank, -w.rank, 7], dtype=torch.int32)
        w.max_(most)
        assert most.tolist() == [w.size - 1, 0, 7]

        given = [torch.arange(3, dtype=torch.uint8) + w.rank, torch.full((2, 2), w.rank / 3.0),
                 torch.tensor([w.rank], dtype=torch.float64), torch.tensor(w.rank == 1),
                 torch.full((2,), w.rank, dtype=torch.bfloat16)]
        w.broadcast_(*given, source=1)
        assert given[0].tolist() == [1, 2, 3]
        assert torch.equal(given[1], torch.full((2, 2), 1 / 3.0))
        assert given[2].item() == 1.0 and given[3].item() is True and given[4].tolist() == [1, 1]

        values = w.gather({"rank": w.rank, "text": "ä" * 100 * w.rank, "none": None})
        assert [v["rank"] for v in values] == list(others) and len(values[1]["text"]) == 100
        rows = w.gather_rows(torch.full((w.rank, 3), w.rank, dtype=torch.float16))
        assert [r.shape for r in rows] == [(r, 3) for r in others]
        assert all(torch.equal(r, torch.full_like(r, n)) for n, r in enumerate(rows))
        assert w.gather_rows(torch.zeros(0, dtype=torch.int64))[1].shape == (0,)

        # Parts that differ in length; of fewer rows than there are processes; of none.
        for n in (10, 1, 0):
            wholes = [torch.full((n,), -1), torch.full((n, 3), 7, dtype=torch.uint8)]
            own = w.part(n)
            wholes[0][own], wholes[1][own] = torch.arange(n)[own], w.rank
            w.fill_in_(*wholes)
            assert wholes[0].tolist() == list(range(n))
            ranks = [r for r in others for _ in range(n * r // w.size, n * (r + 1) // w.size)]
            assert wholes[1].tolist() == [[r] * 3 for r in ranks]

        w.agree({"k": 8, "x": float("nan")})
        w.barrier()
        assert w.waited_s > 0
    assert not dist.is_initialized() and world() is ALONE
    print(f"all is well in process {w.rank}", flush=True)

ends(main)
"""


@pytest.mark.parametrize("n_processes", [2, 3])
def test_processes_add_up_and_hand_round(n_processes, tmp_path):
    done = torchrun(n_processes, script(tmp_path, TOGETHER))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all is well") == n_processes
    assert not done.stderr


SLOW = """
def main():
    with joined("cpu", 1) as w:
        for slow in (0, 1, 0):
            if w.rank == slow:
                time.sleep(2)
            begin = time.monotonic()
            w.meet()
            assert (time.monotonic() - begin > 1) == (w.rank != slow)
        if w.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        w.meet()

ends(main)
"""


# Breaks when a checkpoint that takes longer than the time to answer ends the run.
def test_who_is_at_work_is_waited_for_and_who_stops_is_not(tmp_path):
    end, _ = by_hand(script(tmp_path, SLOW), [0, 1], 2)
    assert (end.status, end.said.count("\n")) == (1, 1)
    assert end.said.startswith("streamkm: process 1 of 2 on ")
    assert end.said.endswith("died, was stopped or lost the link; continue with --resume\n")
