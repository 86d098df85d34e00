"""The processes of one run, as one of them sees it: its number, and what all do together.

The rest of streamkm asks a `World` and never torch.distributed. A world of one process does
nothing at all, so code is the same for one process and for many.

Every method but `check`, `tell` and `heard` is collective: all processes call it, in the same
order, with tensors of the same dtypes, shapes and type of device. If another process dies, hangs or
fails meanwhile, it raises an `ElsewhereError` or a `ProcessLostError`.
"""

from __future__ import annotations

import json
import re
import socket
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from streamkm.distributed.board import Board, Notice, elsewhere, within
from streamkm.errors import (
    ConfigError,
    ElsewhereError,
    Interrupted,
    Option,
    ProcessLostError,
    StreamkmError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ALONE", "Pending", "World"]

#: Seconds that closing a group may take. It waits for collectives that have begun.
CLOSE_S = 5.0


class World:
    """The processes of one run, and this one among them.

    Parameters
    ----------
    rank, local_rank : int
        Number of this process among all, and among those of its machine; both from 0.
    hosts : list of str
        Names of the machines of all processes, in the order of ranks.
    group : ProcessGroup, optional
        The group that collectives use; None for one process alone.
    board : Board, optional
        Where a failure is told; None for one process alone.
    is_alike : bool
        Whether all processes compute on the same model of processor. If not, the last bits of
        what each computes by itself may differ.

    Attributes
    ----------
    size : int
        Number of processes.
    host : str
        Name of this machine.
    waited_s : float
        Seconds that this process has waited in collectives so far: for the network, and for
        processes that came later. Collectives on CUDA tensors do not count: nobody waits for them
        here.
    """

    def __init__(
        self,
        rank: int,
        local_rank: int,
        hosts: list[str],
        *,
        group: dist.ProcessGroup | None = None,
        board: Board | None = None,
        is_alike: bool = True,
    ) -> None:
        self.is_alike = is_alike
        self.rank = rank
        self.size = len(hosts)
        self.local_rank = local_rank
        self.hosts = hosts
        self.host = hosts[rank]
        self.waited_s = 0.0
        self._n_meetings = 0
        self._group = group
        self._board = board
        # Flat buffers that no collective is using.
        self._free: list[torch.Tensor] = []

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which writes and speaks for all."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The group of torch.distributed; None for one process alone, and after a failure."""
        return self._group

    @property
    def is_closed(self) -> bool:
        """Whether it cannot be used any more, after a failure."""
        return self.size > 1 and self._group is None

    # ---- reduce -------------------------------------------------------------

    def sum_(self, *tensors: torch.Tensor) -> None:
        """Replace each tensor by its sum over all processes.

        There is one all-reduce for each dtype. Sums of integers are exact. The order in which
        floating-point numbers are added depends on the number of processes.
        """
        self.sum_later(*tensors).wait()

    def sum_later(self, *tensors: torch.Tensor) -> Pending:
        """Begin `sum_`. Until `Pending.wait` the tensors hold anything, and must not be changed.

        One contiguous tensor is added up where it is; several are copied together.
        """
        return self._reduce(tensors, dist.ReduceOp.SUM)

    def max_(self, *tensors: torch.Tensor) -> None:
        """Replace each element by the largest of all processes."""
        self._reduce(tensors, dist.ReduceOp.MAX).wait()

    def barrier(self) -> None:
        """Wait until all processes have come here."""
        self.max_(torch.zeros(1, dtype=torch.int32))

    def meet(self) -> None:
        """Wait until all have come here, however long that takes one that is at work.

        Other collectives fail after the time that a process has to answer. This one is for work
        that one process does alone, such as seeding or a checkpoint on a slow disk: it fails only
        if a process dies, stops, tells an error, or does nothing for ten times as long. It takes up
        to 0.2 s longer than the work.
        """
        if self._board is None:
            return
        self._n_meetings += 1
        if not self._board.meet(str(self._n_meetings)):
            raise self._lost(RuntimeError("a process did not come"))

    # ---- hand round ---------------------------------------------------------

    def broadcast_(self, *tensors: torch.Tensor, source: int = 0) -> None:
        """Replace each tensor by that of process `source`, to the bit."""
        if self.size == 1 or not tensors:
            return
        buffer = torch.cat([_bytes(tensor) for tensor in tensors])
        self._broadcast(buffer, source)
        begin = 0
        for tensor in tensors:
            end = begin + tensor.nbytes
            # (A copy, because a slice may not begin where the dtype wants it to.)
            part = buffer[begin:end].clone()
            tensor.copy_(part.view(tensor.dtype).view(tensor.shape))
            begin = end

    def gather(self, value: Any) -> list[Any]:
        """Small values of all processes, in the order of ranks.

        A value is anything that JSON holds; tuples come back as lists. Nothing is unpickled.
        """
        if self.size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self._lengths(text)
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: text.numel()] = text
        texts = [torch.empty_like(padded) for _ in lengths]
        with self.waiting():
            dist.all_gather(texts, padded, group=self._group)
        pairs = zip(texts, lengths, strict=True)
        return [json.loads(bytes(text[:length].tolist())) for text, length in pairs]

    def gather_rows(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all processes, in the order of ranks.

        Their first dimension may differ, and may be 0.
        """
        if self.size == 1:
            return [rows]
        mine = _bytes(rows)
        parts = []
        # One broadcast for each process, because in an all-gather all are as long as the longest.
        for rank, length in enumerate(self._lengths(mine)):
            part = mine if rank == self.rank else mine.new_empty(length)
            if length:
                self._broadcast(part, rank)
            parts.append(part.view(rows.dtype).view(-1, *rows.shape[1:]))
        return parts

    def part(self, n: int) -> slice:
        """The part of `n` rows that is this process's, where all have all of them."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def fill_in_(self, *tensors: torch.Tensor) -> None:
        """Fill in the rows of the other processes: each has filled in its `part` of all tensors.

        The tensors have the same number of rows, and are contiguous.
        """
        if self.size == 1 or not len(tensors[0]):
            return
        n_rows = len(tensors[0])
        own = torch.cat([_bytes(tensor[self.part(n_rows)]) for tensor in tensors])
        width = sum(tensor[:1].nbytes for tensor in tensors)
        padded = own.new_zeros(-(-n_rows // self.size) * width)
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with self.waiting():
            dist.all_gather(parts, padded, group=self._group)
        for rank, part in enumerate(parts):
            begin, end = (n_rows * edge // self.size for edge in (rank, rank + 1))
            start = 0
            for tensor in tensors:
                rows = tensor[begin:end]
                # (A copy, because a slice may not begin where the dtype wants it to.)
                found = part[start : start + rows.nbytes].clone()
                rows.copy_(found.view(tensor.dtype).view(rows.shape))
                start += rows.nbytes

    def agree(self, what: dict[str, Any]) -> None:
        """Check that all processes have the same values.

        Raises
        ------
        ConfigError
            The same in all processes: it names the first key that differs, two processes and
            their values.
        """
        if self.size == 1:
            return
        self.meet()  # What each has had to find out, such as rows of its data, may have taken long.
        self.compare(self.gather({"host": self.host, "what": what}))

    @staticmethod
    def compare(records: list[dict[str, Any]]) -> None:
        """Raise a ConfigError if the ``what`` of the records, one a process, differ."""
        first = records[0]
        for key in dict.fromkeys(key for record in records for key in record["what"]):
            value = first["what"].get(key)
            for rank, record in enumerate(records):
                other = record["what"].get(key)
                # As text, because NaN differs from itself.
                if json.dumps(other, sort_keys=True) != json.dumps(value, sort_keys=True):
                    raise ConfigError(
                        f"all processes of a run need the same {key}: rank 0 on {first['host']} "
                        f"has {value}, rank {rank} on {record['host']} has {other}; start them "
                        "with the same command, data and versions"
                    )

    # ---- fail together ------------------------------------------------------

    def check(self) -> None:
        """Raise if another process failed or fell silent; for long work between collectives."""
        if self._board is not None and not self._board.is_well():
            raise self._lost(RuntimeError("a process fell silent"))

    def tell(self, error: BaseException) -> Notice | None:
        """Tell the others why this process fails; they end with the same status.

        Returns
        -------
        Notice or None
            What another process told before. Then this one need not speak.
        """
        return self._board.tell(error) if self._board else None

    def heard(self) -> Notice | None:
        """The error that a process has told; None if none has."""
        return self._board.heard() if self._board else None

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the others of an error that leaves the block, and leave the group.

        Of errors that several processes raise at once, one is told: in the other processes an
        `ElsewhereError` takes its place. The world cannot be used any more.
        """
        try:
            yield
        except BaseException as error:
            if isinstance(error, Interrupted) and self._board is not None:
                # All stop at the same step. Once one has ended the launcher ends the others, and
                # one may still be saving.
                self._board.meet("stop")
            first = None if isinstance(error, ElsewhereError) else self.tell(error)
            self.close()
            if first is not None and isinstance(error, StreamkmError):
                raise elsewhere(first) from error
            raise

    def close(self) -> None:
        """Leave the group, so that the others cannot wait for this process."""
        self.leave_group()
        if self._board is not None:
            self._board.leave()

    def leave_group(self) -> None:
        """Destroy the group, if there is one, and with it the threads of torch that serve it."""
        groups, self._group = [self._group], None
        if groups[0] is None:
            return

        def destroy() -> None:
            # The last reference: its end waits for those threads.
            group = groups.pop()
            with suppress(ValueError):  # The program has destroyed all groups already.
                dist.destroy_process_group(group)

        within(CLOSE_S, destroy)

    # ---- how ----------------------------------------------------------------

    def _reduce(self, tensors: tuple[torch.Tensor, ...], op: dist.ReduceOp.RedOpType) -> Pending:
        kinds: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
        if self.size > 1:
            for tensor in tensors:
                kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        parts = []
        for (dtype, device), alike in kinds.items():
            if not (n := sum(tensor.numel() for tensor in alike)):
                continue
            if len(alike) == 1 and alike[0].is_contiguous():
                buffer, flat = None, alike[0].view(-1)
            else:
                buffer = self._take(n, dtype, device)
                flat = buffer[:n]
                torch.cat([tensor.reshape(-1) for tensor in alike], out=flat)
            with self.waiting():
                work = dist.all_reduce(flat, op, group=self._group, async_op=True)
            parts.append(_Part(alike, buffer, work))
        return Pending(self._finish, parts)

    def _take(self, n: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A flat buffer of at least `n` elements: one that is kept, or a larger one instead."""
        kept = [b for b in self._free if b.dtype == dtype and b.device == device]
        large = [buffer for buffer in kept if buffer.numel() >= n]
        if kept:
            gone = (large or kept)[0]
            self._free = [buffer for buffer in self._free if buffer is not gone]
        return large[0] if large else torch.empty(n, dtype=dtype, device=device)

    def _finish(self, part: _Part) -> None:
        """Wait for an all-reduce, hand out its result, and keep the buffer."""
        with self.waiting(is_new=False):
            part.work.wait()
        if part.buffer is None:
            return
        begin = 0
        for tensor in part.tensors:
            end = begin + tensor.numel()
            tensor.copy_(part.buffer[begin:end].view(tensor.shape))
            begin = end
        self._free.append(part.buffer)

    def _lengths(self, flat: torch.Tensor) -> list[int]:
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = flat.numel()
        self.sum_(lengths)
        found: list[int] = lengths.tolist()
        return found

    def _broadcast(self, flat: torch.Tensor, source: int) -> None:
        with self.waiting():
            dist.broadcast(flat, group=self._group, group_src=source)

    @contextmanager
    def waiting(self, *, is_new: bool = True) -> Iterator[None]:
        """Time a collective; if it fails, find out why.

        It is new unless it has begun in another such block.
        """
        if self._board is not None and is_new:
            self._board.note_collective()
        begin = time.perf_counter()
        try:
            yield
        except RuntimeError as error:
            raise self._lost(error) from error
        self.waited_s += time.perf_counter() - begin

    def _lost(self, cause: RuntimeError) -> StreamkmError:
        """The error of a collective that failed: what another process told, or who is missing."""
        if (notice := self.heard()) is not None:
            return elsewhere(notice)
        said = (str(cause).splitlines() or [type(cause).__name__])[0]
        said = re.sub(r"\[/[^\]]*\] ", "", said)  # a line of C++
        roll = self._board.call_the_roll() if self._board else None
        if self._board is None:
            missing = f"a process of the run was lost: {said}"
        elif (notice := self.heard()) is not None:
            return elsewhere(notice)
        elif roll is None:
            missing = f"{self._board.holder} does not answer: it was killed, or the link is down"
        elif roll.silent:
            missing = f"{self._named(roll.silent)} died, was stopped or lost the link"
        elif roll.late:
            missing = f"{self._named(roll.late)} hung: the others waited for it in vain"
        elif self._group is None:
            missing = (
                f"{self._named([self.rank])} cannot connect to the others ({said}): let them use "
                "any port of each other's, and name their network in GLOO_SOCKET_IFNAME on CPUs, "
                "NCCL_SOCKET_IFNAME on GPUs"
            )
        else:
            missing = f"the processes of the run lost each other: {said}"
        return ProcessLostError(missing + "; continue with ", Option("resume", value=True))

    def _named(self, ranks: list[int]) -> str:
        names = [f"process {rank} of {self.size} on {self.hosts[rank]}" for rank in ranks[:3]]
        more = f" and {len(ranks) - 3} more" if len(ranks) > 3 else ""
        return ", ".join(names) + more


@dataclass(frozen=True)
class _Part:
    """An all-reduce that has begun."""

    tensors: list[torch.Tensor]
    buffer: torch.Tensor | None
    """What is reduced; None for the one tensor itself."""
    work: dist.Work


class Pending:
    """A sum that has begun; `World.sum_later` makes it."""

    def __init__(self, finish: Callable[[_Part], None], parts: list[_Part]) -> None:
        self._finish = finish
        self._parts = parts

    def wait(self) -> None:
        """Wait for the sums, and copy them into the tensors."""
        parts, self._parts = self._parts, []
        for part in parts:
            self._finish(part)


_NOTHING = torch.empty(0, dtype=torch.uint8)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, flat; a view where it is contiguous."""
    # Not of an empty tensor, which may have no strides that allow it.
    return tensor.contiguous().view(-1).view(torch.uint8) if tensor.numel() else _NOTHING


#: One process, which is alone.
ALONE = World(0, 0, [socket.gethostname()])
