"""What processes exchange before seeding comes out in the order of the array."""

from __future__ import annotations

import pytest
import torch

from streamkm.clustering.scaling import RunningMoments
from streamkm.kernels import moments_in_parts
from streamkm.runs.engine.exchange import in_order, moments_of_all
from tests.distributed.together import together


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_moments_are_joined_in_the_order_of_batches(size, rng) -> None:
    """Joined in another order, or with one left out, they differ in their bits."""
    batches = [torch.from_numpy(rng.normal(i, 1 + i, size=(20 + i, 4))) for i in range(7)]
    batches[3][2, 1] = torch.nan
    expected = RunningMoments.empty(4, torch.device("cpu"))
    for batch in batches:
        expected.update_(batch)

    def work(world) -> RunningMoments:
        own = range(world.rank, len(batches), world.size)
        parts = [(i, part) for i in own for part in moments_in_parts(batches[i], None)]
        found = RunningMoments.empty(4, torch.device("cpu"))
        found.join_(moments_of_all(parts, world))
        return found

    for found in together(size, work):
        for name, tensor in expected.tensors().items():
            assert torch.equal(found.tensors()[name], tensor), name


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_pieces_are_put_together_in_their_order(size) -> None:
    """A piece of no rows, and a process without a piece, change nothing."""
    pieces = [torch.arange(i * 10, i * 10 + n).view(-1, 1) for i, n in enumerate((3, 0, 5, 1))]
    lengths = [len(piece) for piece in pieces]

    def work(world) -> torch.Tensor:
        numbers = list(range(world.rank, len(pieces), world.size))
        own = torch.cat([pieces[number] for number in numbers] or [pieces[1]])
        return in_order(own, numbers, lengths, world)

    for found in together(size, work):
        assert found.tolist() == torch.cat(pieces).tolist()
