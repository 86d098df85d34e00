"""The waiting room, with real processes: who is missing, and who is one too many."""

from __future__ import annotations

from tests.distributed.launched import MEET, by_hand, script


def test_one_alone_says_for_whom_it_waits(tmp_path):
    waiting = script(tmp_path, MEET)
    first, last = by_hand(waiting, [0, 3], 4, TIMEOUT="2")
    said = sorted([first.said, last.said])
    # It is told once, by the one whose time ran out first.
    assert said[0] == ""
    assert "waited 2 s at 127.0.0.1:" in said[1]
    assert "for 2 of 4 processes: number 1, 2 did not come; start them all, or unset" in said[1]
    assert said[1].count("\n") == 1
    assert first.status == last.status == 1


def test_two_of_one_number_are_refused(tmp_path):
    ends = by_hand(script(tmp_path, MEET), [0, 1, 1], 3)
    assert [end.status for end in ends] == [2, 2, 2]
    said = [end.said for end in ends if end.said]
    assert len(said) == 1
    assert "two processes say that they are number 1 of 3" in said[0]
