"""Which blocks a sample is of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamkm.sources import Choice

BLOCK = 10
#: Blocks of samples of 20 % of 40 blocks, of the seeds 0 and 1.
KNOWN = [[1, 5, 7, 14, 17, 33, 34], [6, 7, 8, 12, 19, 27, 28, 29, 30, 34, 36]]


# Breaks when rows are drawn one by one, or blocks depend on more than their number and the seed.
@given(
    share=st.floats(0.01, 0.99), seed=st.integers(0, 2**64), more=st.integers(0, 500),
    start=st.integers(0, 100), lower=st.floats(0.01, 1.0),
)  # fmt: skip
def test_whether_a_block_is_in_the_sample_depends_on_its_number_alone(
    share: float, seed: int, more: int, start: int, lower: float
) -> None:
    def rows(n: int, first: int, of_share: float) -> set[int]:
        choice = Choice(n, first, n, BLOCK, of_share, seed)
        found = [choice.whole_row(row) for row in range(choice.n_rows)]
        assert found == sorted(set(found))
        assert found
        return set(found)

    whole = rows(2000, 0, share)
    assert all(row in whole for block in {row // BLOCK for row in whole}
               for row in range(BLOCK * block, BLOCK * block + BLOCK))  # fmt: skip
    part = rows(2000, start, share)
    if len(part) > BLOCK:
        assert part == {row for row in whole if row >= start}
    if len(whole) > BLOCK:
        assert whole <= rows(2000 + more * BLOCK, 0, share)
        less = rows(2000, 0, share * lower)
        assert less <= whole or len(less) == BLOCK


def test_a_sample_holds_about_its_share_of_the_blocks() -> None:
    for seed in range(5):
        assert 900 < Choice(100_000, 0, 100_000, BLOCK, 0.1, seed).n_rows / BLOCK < 1100


# The same seed must give the same blocks in every version: runs are resumed by newer ones.
def test_known_samples() -> None:
    def blocks(seed: int) -> list[int]:
        choice = Choice(400, 0, 400, BLOCK, 0.2, seed)
        return sorted({choice.whole_row(row) // BLOCK for row in range(choice.n_rows)})

    assert [blocks(seed) for seed in (0, 1)] == KNOWN
