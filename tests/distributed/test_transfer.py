"""Tensors that go from one process to another."""

from __future__ import annotations

from tests.distributed.launched import by_hand, script

SENT = """
from streamkm.distributed.transfer import Transfer

def main():
    with joined("cpu", 20) as w:
        if w.is_first:
            # Asked for in another order than they are sent in by several, and before they are sent.
            memory = [(sender, torch.empty(1000 + i)) for i in range(3) for sender in (2, 1)]
            coming = [(s, Transfer.of_receiving(w, each, s)) for s, each in memory]
            w.meet()
            for i, (sender, transfer) in enumerate(coming):
                assert transfer.wait().unique().tolist() == [10 * sender + i // 2]
        else:
            w.meet()
            going = [torch.full((1000 + i,), 10.0 * w.rank + i) for i in range(3)]
            for transfer in [Transfer.of_sending(w, each, receiver=0) for each in going]:
                transfer.wait()
        n = torch.tensor([w.rank])
        w.sum_(n)
        assert n.item() == 3
        # Who waits for one that fails hears of it.
        if w.rank == 2:
            raise NonFiniteError("row 7 is NaN")
        if w.is_first:
            Transfer.of_receiving(w, torch.empty(5), 2).wait()

ends(main)
"""


def test_tensors_come_in_the_order_in_which_they_were_sent(tmp_path):
    ends = by_hand(script(tmp_path, SENT), [0, 1, 2], 3)
    assert [end.status for end in ends] == [2, 2, 2], ends
    assert [end.said for end in ends] == ["", "", "streamkm: row 7 is NaN\n"]
