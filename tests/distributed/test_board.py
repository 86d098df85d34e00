"""What the other processes do when one fails, dies, stops or hangs."""

from __future__ import annotations

import pytest

from streamkm.distributed import board
from tests.distributed.launched import by_hand, script

#: Each process comes to the block three times; then something happens to one.
RUN = """
from streamkm.distributed import board

def main():
    with joined("cpu", 2) as w:
        for _ in range(3):
            w.barrier()
        if w.rank == WHO:
            WHAT
        w.barrier()
    print("came through", flush=True)

ends(main)
"""


def ends(tmp_path, what, who=1, size=3):
    body = RUN.replace("WHAT", what).replace("WHO", str(who))
    return by_hand(script(tmp_path, body), list(range(size)), size)


#: One failure after the other, each in a run of its own.
ERRORS = """
def fails(number, fail):
    os.environ["MASTER_PORT"] = os.environ["PORTS"].split()[number]
    try:
        with joined("cpu", 5) as w:
            w.barrier()
            fail(w)
            w.barrier()
    except ElsewhereError as error:
        print(f"{number} {error.exit_status} in silence", flush=True)
    except Exception as error:
        print(f"{number} {getattr(error, 'exit_status', 1)} {error}", flush=True)

def one(w):
    if w.rank == 1:
        raise NonFiniteError("row 7 of x is NaN; use ", Option("nan", "drop"))

# The store is in process 0: it must not end before the others have read why.
def the_first(w):
    if w.rank == 0:
        raise ReadError("chunk 3 is corrupt")

def a_bug(w):
    if w.rank == 2:
        raise IndexError("a bug")

def all_of_them(w):
    w.agree({"k": 8, "data": f"x{w.rank % 2}.npy"})

def stopped(w):
    raise Interrupted("stopped; checkpoint 12")

for number, fail in enumerate([one, the_first, a_bug, all_of_them, stopped]):
    fails(number, fail)
"""


def test_an_error_is_told_once_and_ends_all_with_its_status(tmp_path):
    found = by_hand(script(tmp_path, ERRORS), [0, 1, 2], 3)
    lines = [end.said.splitlines() for end in found]
    assert [len(said) for said in lines] == [5, 5, 5], lines
    silent = "2 in silence"
    assert [said[0] for said in lines] == [
        f"0 {silent}", "0 2 row 7 of x is NaN; use nan='drop'", f"0 {silent}",
    ]  # fmt: skip
    assert [said[1] for said in lines] == ["1 2 chunk 3 is corrupt", f"1 {silent}", f"1 {silent}"]
    assert [said[2] for said in lines] == ["2 1 in silence", "2 1 in silence", "2 1 a bug"]
    # All say the same: one of them is heard.
    agreed = sorted(said[3] for said in lines)
    assert agreed[0].startswith("3 2 all processes of a run need the same data: rank 0 on ")
    assert agreed[1:] == [f"3 {silent}"] * 2
    stopped = sorted(said[4] for said in lines)
    assert stopped == ["4 75 in silence", "4 75 in silence", "4 75 stopped; checkpoint 12"]


@pytest.mark.parametrize(
    ("what", "word"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "died, was stopped or lost the link"),
        ("os.kill(os.getpid(), signal.SIGSTOP)", "died, was stopped or lost the link"),
        ("board.LEAVE_S = 3; time.sleep(60)", "hung: the others waited for it in vain"),
    ],
    ids=["killed", "stopped", "hangs"],
)
def test_who_is_lost_is_named_once(what, word, tmp_path):
    first, lost, last = ends(tmp_path, what)
    assert first.status == last.status == 1
    said = sorted([first.said, last.said])
    assert said[0] == ""
    assert said[1].startswith("streamkm: process 1 of 3 on ")
    assert said[1].endswith(f"{word}; continue with --resume\n")
    # Its own 2 s, and what it takes to find out who it was.
    assert max(first.after_s, last.after_s) < 20
    if "sleep" in what:  # It is ended once the others have been gone for its 2 s.
        assert (lost.status, lost.said) == (1, "")
        assert lost.after_s < 25


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGSTOP"])
def test_the_end_of_process_0_takes_the_board_along(signal, tmp_path):
    _, *others = ends(tmp_path, f"os.kill(os.getpid(), signal.{signal})", who=0)
    for end in others:
        assert end.status == 1
        assert end.said.startswith("streamkm: process 0 of 3 on ")
        assert end.said.count("\n") == 1
        assert end.after_s < 25


#: The last process does not come to a meeting of the others. What it does meanwhile follows.
MEETING = """
from streamkm.distributed import board

def main():
    board.LEAVE_S = 1
    with joined("cpu", 0.8) as w:
        w.barrier()
        if w.rank == 1:
            WHAT
        begin = time.monotonic()
        try:
            w.meet()
        finally:
            print(f"waited {time.monotonic() - begin:.0f}", flush=True)

ends(main)
"""


# Breaks when one that hangs is waited for for ever, or one that works is not waited for.
def test_who_hangs_before_a_meeting_is_not_waited_for_for_ever(tmp_path):
    body = MEETING.replace("WHAT", "time.sleep(60)")
    first, lost = by_hand(script(tmp_path, body), [0, 1], 2)
    assert (first.status, lost.status) == (1, 1)
    assert "hung: the others waited for it in vain; continue with --resume" in first.said
    # Ten times its 0.8 s, and what it takes to find out who it was.
    assert 8 <= int(first.said.partition("waited ")[2].split()[0]) < 20


def test_who_works_before_a_meeting_is_waited_for(tmp_path):
    work = (
        "until = time.monotonic() + 14\n            while time.monotonic() < until: sum(range(9))"
    )
    ended = by_hand(script(tmp_path, MEETING.replace("WHAT", work)), [0, 1], 2)
    assert [end.status for end in ended] == [0, 0], ended
    assert int(ended[0].said.partition("waited ")[2].split()[0]) > 8


#: All work by themselves, and look now and then whether all is well.
LOOKING = """
def main():
    with joined("cpu", 2) as w:
        w.barrier()
        if w.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        until = time.monotonic() + 40
        while time.monotonic() < until:
            w.check()
            time.sleep(0.05)
    print("came through", flush=True)

ends(main)
"""


# Breaks when a process that is lost is noticed only after long work, such as a step of seeding.
def test_who_is_lost_is_noticed_amid_work(tmp_path):
    first, _, last = by_hand(script(tmp_path, LOOKING), [0, 1, 2], 3)
    assert first.status == last.status == 1
    assert "came through" not in first.said + last.said
    assert (first.said + last.said).count("streamkm: process 1 of 3 on ") == 1
    assert max(first.after_s, last.after_s) < 30


def test_silence_and_idleness_are_counted_by_who_looks(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("streamkm.distributed.board.time.monotonic", lambda: now[0])
    watch = board.Listener(2)

    def look(at, *beats):
        now[0] = at
        watch.hear([board.Beat(*beat) for beat in beats])

    look(1, (1, 5, 0.5), (1, 4, 0.5))
    assert not watch.is_anyone_silent(60)
    # All were stopped for hours: nobody was looked at meanwhile.
    look(9000, (1, 5, 0.5), (1, 4, 0.5))
    assert not watch.is_anyone_silent(60)
    look(9001, (2, 5, 0.5), (2, 4, 0.5))
    look(9050, (3, 5, 0.6), (2, 4, 0.5))
    look(9062, (4, 5, 0.7), (2, 4, 0.5))
    assert watch.is_anyone_silent(60)
    assert not watch.is_anyone_silent(62)
    # It beats, but does nothing, and is waited for; the first is ahead.
    look(9063, (4, 5, 0.7), (9, 4, 0.5))
    assert not watch.is_anyone_silent(60)
    assert watch.is_anyone_idle(600, n_collectives=5)
    assert not watch.is_anyone_idle(600, n_collectives=4)
    look(9064, (4, 5, 0.7), (9, 4, 0.6))
    assert not watch.is_anyone_idle(600, n_collectives=5)
