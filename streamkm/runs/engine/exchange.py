"""What the processes of a run exchange before seeding: moments of features, and sampled rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from streamkm.kernels import Moments

if TYPE_CHECKING:
    from streamkm.distributed.world import World

__all__ = ["in_order", "moments_of_all"]


def moments_of_all(parts: list[tuple[int, Moments]], world: World) -> list[Moments]:
    """Moments of batches of all processes, in the order of the batches.

    So that they are joined in the same order whoever took them. `parts` has the number of its batch
    with each.
    """
    if world.size == 1:
        return [moments for _, moments in parts]
    width = world.gather(len(parts) and 3 + 4 * len(parts[0][1].mean_D))
    own = torch.empty((0, max(width)), dtype=torch.float64)
    if parts:
        own = torch.stack([_as_row(index, moments) for index, moments in parts]).cpu()
    rows = torch.cat(world.gather_rows(own))
    rows = rows[torch.argsort(rows[:, 0], stable=True)]
    return [_from_row(row) for row in rows]


def _as_row(index: int, moments: Moments) -> torch.Tensor:
    device = moments.mean_D.device
    numbers = [
        torch.tensor([float(index)], dtype=torch.float64, device=device),
        moments.count.double().view(1),
        moments.n_dropped.double().view(1),
    ]
    return torch.cat((*numbers, moments.mean_D, moments.m2_D, moments.min_D, moments.max_D))


def _from_row(row: torch.Tensor) -> Moments:
    mean_D, m2_D, min_D, max_D = row[3:].chunk(4)
    return Moments(row[1], mean_D, m2_D, min_D, max_D, row[2].long())


def in_order(
    own: torch.Tensor, numbers: list[int], lengths: list[int], world: World
) -> torch.Tensor:
    """Rows of pieces that processes have read, put together in the order of the pieces.

    Parameters
    ----------
    own : Tensor of shape (S, ...)
        Rows of this process's pieces, one piece after the other.
    numbers : list of int
        Numbers of these pieces.
    lengths : list of int
        Rows of every piece of all processes.
    """
    if world.size == 1:
        return own
    everybody = world.gather(numbers)
    place: dict[int, torch.Tensor] = {}
    for rows, theirs in zip(world.gather_rows(own.cpu()), everybody, strict=True):
        pieces = rows.split([lengths[number] for number in theirs]) if theirs else ()
        place.update(zip(theirs, pieces, strict=True))
    return torch.cat([place[number] for number in range(len(lengths))]).to(own.device)
