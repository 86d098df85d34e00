"""Several processes of a run as threads of one: a `World` whose collectives go through memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from streamkm.distributed.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["together"]

T = TypeVar("T")


class _Meeting:
    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.brought: list[Any] = [None] * size


class _Done:
    def wait(self) -> None:
        """Nothing is under way."""


class _Thread:
    """What `World` offers, for one of several threads."""

    def __init__(self, rank: int, size: int, meeting: _Meeting) -> None:
        self.rank, self.size, self.is_first, self.is_alike = rank, size, rank == 0, True
        self.host, self.hosts = "here", ["here"] * size
        self._meeting = meeting

    def gather(self, value: Any) -> list[Any]:
        meeting = self._meeting
        meeting.brought[self.rank] = value
        meeting.barrier.wait()
        found = list(meeting.brought)
        meeting.barrier.wait()
        return found

    def gather_rows(self, rows: torch.Tensor) -> list[torch.Tensor]:
        return [each.clone() for each in self.gather(rows.clone())]

    part = World.part

    def agree(self, what: dict[str, Any]) -> None:
        self.gather(what)

    def check(self) -> None:
        """Nobody is lost: a thread that fails breaks the barrier."""

    def meet(self) -> None:
        """Whoever is at work is waited for."""
        self._meeting.barrier.wait()

    def fill_in_(self, *tensors: torch.Tensor) -> None:
        brought = self.gather([tensor.clone() for tensor in tensors])
        for rank, theirs in enumerate(brought):
            for own, other in zip(tensors, theirs, strict=True):
                rows = slice(*(len(own) * edge // self.size for edge in (rank, rank + 1)))
                own[rows] = other[rows]

    def sum_(self, *tensors: torch.Tensor) -> None:
        self._reduce(tensors, lambda stacked: stacked.sum(dim=0))

    def sum_later(self, *tensors: torch.Tensor) -> _Done:
        self.sum_(*tensors)
        return _Done()

    def max_(self, *tensors: torch.Tensor) -> None:
        self._reduce(tensors, lambda stacked: stacked.amax(dim=0))

    def broadcast_(self, *tensors: torch.Tensor, source: int = 0) -> None:
        for own, theirs in zip(
            tensors, self.gather([tensor.clone() for tensor in tensors])[source], strict=True
        ):
            own.copy_(theirs)

    def _reduce(
        self,
        tensors: tuple[torch.Tensor, ...],
        reduce: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        brought = self.gather([tensor.clone() for tensor in tensors])
        for own, *all_of_them in zip(tensors, *brought, strict=True):
            own.copy_(reduce(torch.stack(all_of_them)))


def together(size: int, work: Callable[[World], T]) -> list[T]:
    """What `work` returns in each of `size` processes, which share a world."""
    meeting = _Meeting(size)

    def run(rank: int) -> T:
        try:
            return work(_Thread(rank, size, meeting))  # type: ignore[arg-type]
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))
