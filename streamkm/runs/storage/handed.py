"""Hands what one process has read to the others, which need not see the run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamkm.distributed.world import World

__all__ = ["handed_round"]


def handed_round(
    about: Any, arrays: Mapping[str, np.ndarray], world: World
) -> tuple[Any, dict[str, np.ndarray]]:
    """What the first process of `world` brings, in all of them; what others bring counts for none.

    Parameters
    ----------
    about : object
        Anything that JSON holds.
    arrays : mapping of str to ndarray
        Arrays by name.
    """
    # To read a large checkpoint or model may take longer than a process has to answer.
    world.meet()
    layout = {name: [array.dtype.name, array.shape] for name, array in arrays.items()}
    about, layout = world.gather([about, layout])[0]
    if world.is_first:
        held = {name: np.array(array) for name, array in arrays.items()}
    else:
        held = {name: np.empty(tuple(shape), dtype) for name, (dtype, shape) in layout.items()}
    world.broadcast_(*(torch.from_numpy(array) for array in held.values() if array.size))
    return about, held
