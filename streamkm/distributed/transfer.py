"""Tensors on their way from one process to another; no other process takes part.

For what one process alone needs, such as labels that process 0 writes. Nobody waits for a tensor
before it is used: it travels beside the arithmetic of both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch.distributed as dist

if TYPE_CHECKING:
    import torch

    from streamkm.distributed.world import World

__all__ = ["Transfer"]


class Transfer:
    """A tensor that is being sent or received, and must not be touched before `wait`."""

    def __init__(self, world: World, tensor: torch.Tensor, work: dist.Work | None) -> None:
        self._world, self._tensor, self._work = world, tensor, work

    @classmethod
    def of_sending(cls, world: World, tensor: torch.Tensor, receiver: int) -> Self:
        """Begin to send `tensor`. What one process sends another comes in the same order."""
        with world.waiting(is_new=False):
            return cls(world, tensor, dist.isend(tensor, group=world.group, group_dst=receiver))

    @classmethod
    def of_receiving(cls, world: World, tensor: torch.Tensor, sender: int) -> Self:
        """Begin to receive into `tensor`, of the same dtype and shape as what is sent."""
        with world.waiting(is_new=False):
            return cls(world, tensor, dist.irecv(tensor, group=world.group, group_src=sender))

    def wait(self) -> torch.Tensor:
        """Wait until the tensor has gone, or has come, and return it."""
        with self._world.waiting(is_new=False):
            if self._work is not None:
                self._work.wait()
        return self._tensor
