"""Saving and stopping: all processes learn of it after the same step."""

from __future__ import annotations

import time

import pytest

from streamkm.distributed.world import ALONE
from streamkm.runs.engine.agreement import MOST_STEPS, Agreement
from tests.distributed.together import together


def test_one_process_is_answered_at_once() -> None:
    agreement = Agreement(ALONE)
    assert agreement.after_step(stop=False, due=False) == (False, False)
    assert agreement.after_step(stop=True, due=False) == (True, False)
    assert agreement.after_step(stop=False, due=True) == (False, True)
    agreement.finish()


# Breaks when a process acts on what it wants itself, or on what others have not learnt yet.
@pytest.mark.parametrize("what", ["stop", "due"])
@pytest.mark.parametrize("who", [0, 2])
def test_what_one_wants_all_learn_after_the_same_step(what, who) -> None:
    def work(world) -> list[tuple[int, bool, bool]]:
        agreement = Agreement(world)
        learnt: list[tuple[int, bool, bool]] = []
        for step in range(400):
            wants = world.rank == who and step >= 10 and not learnt
            answer = agreement.after_step(**{"stop": False, "due": False, what: wants})
            if any(answer) and not (learnt and what == "stop"):
                learnt.append((step, *answer))
        agreement.finish()
        return learnt

    found = together(3, work)
    assert found[0] == found[1] == found[2]
    # What is asked for once is answered once: a checkpoint is not saved twice.
    ((step, stops, is_due),) = found[0]
    assert 10 < step <= 10 + 2 * MOST_STEPS
    assert (stops, is_due) == ((True, False) if what == "stop" else (False, True))


# Breaks when a signal waits for many long steps.
def test_long_steps_are_looked_at_one_by_one() -> None:
    def work(world) -> int:
        agreement = Agreement(world)
        for step in range(20):
            time.sleep(0.3)
            if agreement.after_step(stop=step >= 3, due=False)[0]:
                return step
        return -1

    assert together(2, work) == [4, 4]


# Breaks when slow steps after quick ones are looked at as seldom as those: a signal would wait for
# passes of Lloyd's algorithm as it may for steps of seeding.
def test_steps_of_another_kind_are_looked_at_anew() -> None:
    def work(world) -> int:
        agreement = Agreement(world)
        for _ in range(3 * MOST_STEPS):
            agreement.after_step(stop=False, due=False)
        agreement.begin()
        for step in range(20):
            time.sleep(0.3)
            if agreement.after_step(stop=step >= 3, due=False)[0]:
                return step
        return -1

    assert together(2, work) == [4, 4]


# Breaks when one that wanted a checkpoint as another phase began thinks that it has said so.
def test_what_was_under_way_is_said_again() -> None:
    def work(world) -> list[bool]:
        agreement = Agreement(world)
        agreement.after_step(stop=False, due=True)
        agreement.begin()
        return [agreement.after_step(stop=False, due=True)[1] for _ in range(2)]

    assert together(2, work) == [[False, True]] * 2
