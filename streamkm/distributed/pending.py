"""Sums over processes that have begun and that nobody has waited for yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    import torch.distributed as dist

__all__ = ["Part", "Pending"]


@dataclass(frozen=True)
class Part:
    """An all-reduce that has begun."""

    tensors: list[torch.Tensor]
    buffer: torch.Tensor | None
    """What is reduced; None for the one tensor itself."""
    work: dist.Work


class Pending:
    """A sum that has begun; `World.sum_later` makes it."""

    def __init__(self, finish: Callable[[Part], None], parts: list[Part]) -> None:
        self._finish = finish
        self._parts = parts

    def wait(self) -> None:
        """Wait for the sums, and copy them into the tensors."""
        parts, self._parts = self._parts, []
        for part in parts:
            self._finish(part)
