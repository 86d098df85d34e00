"""The world of a process whose group somebody else has made."""

from __future__ import annotations

from streamkm.distributed.current import world
from streamkm.distributed.world import ALONE
from tests.distributed.launched import script, torchrun


def test_a_process_without_a_group_is_alone():
    assert world() is ALONE


FOREIGN = """
import weakref

def main():
    dist.init_process_group("gloo")
    w = world()
    assert (w.size, w.rank) == (2, dist.get_rank()) and world() is w
    n = torch.tensor([w.rank + 1])
    w.sum_(n)
    assert n.item() == 3 and len(w.gather("x" * w.rank)) == 2
    dist.barrier()  # The program's own group stays in use.
    try:
        with w.telling():
            if w.rank == 1:
                raise NonFiniteError("row 7 is NaN")
            w.barrier()
    except StreamkmError as error:
        told = f"{type(error).__name__}: {error}"
    # The program goes on, and may try again with a new world.
    assert dist.is_initialized()
    later = world()
    assert later is not w
    texts = later.gather(told)
    assert texts[1] == "NonFiniteError: row 7 is NaN", texts
    assert texts[0].startswith("ElsewhereError: process 1 on ") and texts[0].endswith(texts[1][16:])
    group = weakref.ref(dist.group.WORLD)
    dist.destroy_process_group()
    assert group() is None, "the program's group goes when the program destroys it"
    assert world() is ALONE
    print("all is well", flush=True)

ends(main)
"""


# Breaks when a failure in Ray, Lightning or a notebook leaves the others waiting for 30 minutes.
def test_a_group_of_somebody_else_serves(tmp_path):
    done = torchrun(2, script(tmp_path, FOREIGN))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all is well") == 2


# At the very end a thread of torch still holds tensors of the last collectives. Where a group lived
# longer than the interpreter, that took one process in ten down.
LAST = """
def main():
    dist.init_process_group("gloo")
    for _ in range(2):
        world().gather("x")
    print("all is well", flush=True)

ends(main)
"""


def test_a_program_that_ends_without_goodbye_ends_well(tmp_path):
    done = torchrun(3, script(tmp_path, LAST))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all is well") == 3
