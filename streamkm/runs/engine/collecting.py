"""Brings what the processes find of their rows to the first one, in the order of the rows.

A process goes on to its next unit of blocks while the first one still labels or writes, and the
first one asks for rows before it comes to them: nobody waits for the way.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from streamkm.distributed.transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamkm.distributed.world import World
    from streamkm.stream.plan import Place

__all__ = ["collected"]


def collected(
    places: Iterator[Place],
    own: Iterator[np.ndarray],
    dtype: np.dtype[Any],
    world: World,
    most: int,
) -> Iterator[tuple[Place, np.ndarray | None]]:
    """Each place with what was found of its rows; in processes but the first with None.

    Parameters
    ----------
    places : iterator of Place
        Where the batches of all processes lie.
    own : iterator of ndarray of shape (n_rows,)
        What this process finds, for each of its places.
    dtype : dtype
        Of these arrays.
    world : World
        The processes; all go through the whole iterator.
    most : int
        Arrays that wait for the first process to take them, at most.
    """
    if world.is_first:
        return _received(places, own, dtype, world)
    return _sent(places, own, world, most)


def _received(
    places: Iterator[Place], own: Iterator[np.ndarray], dtype: np.dtype[Any], world: World
) -> Iterator[tuple[Place, np.ndarray]]:
    ahead: deque[tuple[Place, Transfer | None]] = deque()
    while True:
        for place in islice(places, world.size - len(ahead)):
            coming = None
            if place.owner != world.rank:
                memory = torch.empty(place.n_rows * dtype.itemsize, dtype=torch.uint8)
                coming = Transfer.of_receiving(world, memory, place.owner)
            ahead.append((place, coming))
        if not ahead:
            return
        place, coming = ahead.popleft()
        yield place, next(own) if coming is None else coming.wait().numpy().view(dtype)


def _sent(
    places: Iterator[Place], own: Iterator[np.ndarray], world: World, most: int
) -> Iterator[tuple[Place, None]]:
    going: deque[Transfer] = deque()
    for place in places:
        if place.owner == world.rank:
            rows = torch.from_numpy(next(own).view(np.uint8))
            going.append(Transfer.of_sending(world, rows, receiver=0))
            while len(going) > most:
                going.popleft().wait()
        yield place, None
    for transfer in going:
        transfer.wait()
