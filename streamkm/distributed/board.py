"""The notice board: where the processes of a run see who is alive, and why another one failed.

A collective that fails says only that some connection closed, or that time ran out. The board says
who is to blame. It is a few keys in a TCPStore of torch.distributed:

- Every process counts up its own key twice a second, from a thread. A process that was killed,
  stopped or cut off falls silent.
- Beside the count stands how many collectives the process has come to. A process that hangs in
  its own work still beats, but it is behind the others.
- Beside that stands how long it has worked, so that one that hangs is told from one that is busy.
- The first process that fails writes its error. The others end with the same status, in silence.

Clocks of machines are never compared.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from streamkm.errors import ElsewhereError, Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed.distributed_c10d import Store

__all__ = ["PROCESS_TIMEOUT_S", "Board", "Notice", "elsewhere", "within"]

#: Seconds after which a process that does not answer counts as lost.
PROCESS_TIMEOUT_S = 60.0
#: Seconds between two beats.
BEAT_S = 0.5
#: Seconds within which a living process must beat: several beats, for a machine that is busy.
SILENCE_S = 3.0
#: Seconds that the board has to answer before it counts as lost.
ANSWER_S = 5.0
#: Longest time between two looks for those who are to come.
LOOK_S = 0.2
#: Time between two looks, amid work, whether all is well.
CHECK_S = 2.0
#: A process hangs if others wait for it and it has done nothing for this multiple of the time in
#: which it must answer. A disk that refuses no write takes less.
IDLE_TIMES = 10
#: Seconds that the process that holds the board waits for the others to leave it.
LINGER_S = 5.0
#: Seconds that a process may take at most to find out what failed, say so and end.
LEAVE_S = 15.0

T = TypeVar("T")


@dataclass(frozen=True)
class Notice:
    """An error that a process told the others."""

    rank: int
    host: str
    status: int
    """Exit status of the process that failed."""
    message: str


def elsewhere(notice: Notice) -> ElsewhereError:
    """The error of a process that ends because another one has told an error."""
    where = f"process {notice.rank} on {notice.host} failed: "
    return ElsewhereError(where, notice.message, exit_status=notice.status)


@dataclass(frozen=True)
class RollCall:
    """Who does not take part any more."""

    silent: list[int]
    """Ranks that do not beat."""
    late: list[int]
    """Ranks that beat, but have not come to the collective that this process waited in."""


class Beat(NamedTuple):
    """What a process has shown of itself last."""

    n_beats: int
    n_collectives: int
    busy_s: float
    """Seconds of processor time, but for those of the thread that beats."""


class Listener:
    """Since when each process has been silent, or idle, as far as this one has looked."""

    def __init__(self, size: int) -> None:
        now = time.monotonic()
        self._beats = [Beat(0, 0, 0.0)] * size
        self._heard_at, self._doubted_at, self._active_at = ([now] * size for _ in range(3))

    def hear(self, beats: list[Beat]) -> None:
        """Take note of the beats of all."""
        now = time.monotonic()
        for rank, (before, beat) in enumerate(zip(self._beats, beats, strict=True)):
            if beat.n_beats != before.n_beats:
                self._heard_at[rank] = now
            elif self._doubted_at[rank] <= self._heard_at[rank]:
                self._doubted_at[rank] = now
            if beat[1:] != before[1:]:
                self._active_at[rank] = now
        self._beats = beats

    def is_anyone_silent(self, seconds: float) -> bool:
        """Whether a process has not beaten for that long.

        Not if it was not looked at meanwhile: all may have been stopped, and go on.
        """
        now = time.monotonic()
        return any(
            now - heard > seconds and doubted > heard and now - doubted > SILENCE_S
            for heard, doubted in zip(self._heard_at, self._doubted_at, strict=True)
        )

    def is_anyone_idle(self, seconds: float, n_collectives: int) -> bool:
        """Whether a process that has come to fewer collectives has done nothing for that long."""
        now = time.monotonic()
        return any(
            beat.n_collectives < n_collectives and now - active > seconds
            for beat, active in zip(self._beats, self._active_at, strict=True)
        )


class Board:
    """The notice board of one run, as one process sees it.

    Parameters
    ----------
    store : Store
        A connection of the board's own, because a call that waits keeps others from using it.
    rank : int
        This process.
    hosts : list of str
        Machines of all processes, in the order of ranks.
    held : Store, optional
        The store's server, if this process holds it: the board ends with the process.
    holder : str, optional
        Who holds the server, in words; process 0 by default.
    timeout_s : float
        Seconds after which a process that is silent counts as lost.
    may_end : bool
        Whether this process is ended, from the thread, if `timeout_s` and a little after another
        one told an error it has not ended. Not if it belongs to somebody else.
    launcher : int, optional
        Process that started this one and waits for it. Once it is gone, this process gets a
        SIGTERM, and stops with a checkpoint. None if nobody waits.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        hosts: list[str],
        *,
        held: Store | None = None,
        holder: str | None = None,
        timeout_s: float = PROCESS_TIMEOUT_S,
        may_end: bool = False,
        launcher: int | None = None,
    ) -> None:
        self._store = store
        self._rank = rank
        self._size = len(hosts)
        self._host = hosts[rank]
        self._held = held
        self.holder = holder or f"process 0 of {len(hosts)} on {hosts[0]}"
        self._timeout_s = timeout_s
        self._may_end = may_end
        self._launcher = launcher
        self._n_collectives = 0
        self._n_lost = 0
        self._is_lost = False
        self._watch = Listener(self._size)
        self._checked_at = time.monotonic()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="streamkm-beat", daemon=True)
        self._thread.start()
        # A daemon thread that is in C++ when the interpreter ends may take the process down.
        atexit.register(self.stop)

    def note_collective(self) -> None:
        """Count a collective that this process has come to."""
        self._n_collectives += 1

    def tell(self, error: BaseException) -> Notice | None:
        """Write why this process fails. Return the notice of another one that was first, if any.

        Returns None if the board does not answer.
        """
        status = getattr(error, "exit_status", 1)
        text = getattr(error, "for_command_line", None) or f"{type(error).__name__}: {error}"
        mine = json.dumps(asdict(Notice(self._rank, self._host, status, text)))
        for first in self._ask(lambda: self._store.compare_set("told", "", mine)):
            if first.decode() != mine:
                return Notice(**json.loads(first))
        return None

    def heard(self) -> Notice | None:
        """The error that a process told, if one did and the board answers."""
        return next(iter(self._ask(self._read)), None)

    def call_the_roll(self) -> RollCall | None:
        """Find out who is silent and who is late, within a few seconds.

        Returns None if the board does not answer.
        """
        before: list[Beat] = []
        now: list[Beat] = []
        silent = list(range(self._size))
        deadline = time.monotonic() + SILENCE_S
        while silent and time.monotonic() < deadline:
            answers = self._ask(self._beats)
            if not answers:
                return None
            now = answers[0]
            before = before or now
            silent = [rank for rank in silent if now[rank].n_beats == before[rank].n_beats]
            time.sleep(BEAT_S / 5)
        silent = [rank for rank in silent if rank != self._rank]
        behind = [r for r, beat in enumerate(now) if beat.n_collectives < self._n_collectives]
        late = [rank for rank in behind if rank not in silent]
        self._n_lost = len(silent) + len(late)
        return RollCall(silent, late)

    def is_well(self) -> bool:
        """Whether nobody has told an error or fallen silent; the board is asked now and then."""
        if time.monotonic() - self._checked_at < CHECK_S:
            return True
        answers = self._ask(lambda: (self._read(), self._beats()), self._timeout_s)
        self._checked_at = time.monotonic()
        if not answers:
            return False
        notice, beats = answers[0]
        self._watch.hear(beats)
        return notice is None and not self._watch.is_anyone_silent(self._timeout_s)

    def meet(self, where: str) -> bool:
        """Wait until all have come here, however long, as long as those who are missing work.

        Returns False if one told an error, fell silent or hangs, or if the board does not answer.
        """
        self.note_collective()
        key = f"met/{where}"
        # Nothing has failed yet: the board has as long to answer as any process.
        self._ask(lambda: self._store.add(key, 1), self._timeout_s)
        begin, watch = time.monotonic(), Listener(self._size)
        while True:
            answers = self._ask(
                lambda: (self._store.add(key, 0), self._read(), self._beats()), self._timeout_s
            )
            if not answers:
                return False
            n_here, notice, beats = answers[0]
            if n_here == self._size:
                return True
            watch.hear(beats)
            if (
                notice is not None
                or watch.is_anyone_silent(self._timeout_s)
                or watch.is_anyone_idle(IDLE_TIMES * self._timeout_s, self._n_collectives)
            ):
                return False
            time.sleep(min(LOOK_S, max(0.01, time.monotonic() - begin)))

    def stop(self) -> None:
        """End the thread."""
        atexit.unregister(self.stop)
        self._is_closed.set()
        self._thread.join(timeout=2 * BEAT_S)

    def leave(self) -> None:
        """End the thread; where the board would end with this process, let the others leave first.

        They may still be reading that all have come to the end, or why one failed.
        """
        self.stop()
        self._ask(lambda: self._store.add("left", 1))
        if self._held is not None:
            deadline = time.monotonic() + LINGER_S
            n_readers = self._size - self._n_lost
            while self._store.add("left", 0) < n_readers and time.monotonic() < deadline:
                time.sleep(BEAT_S / 10)

    def _ask(self, call: Callable[[], T], seconds: float = ANSWER_S) -> list[T]:
        """What the store answers; empty from the first time on that it does not answer."""
        answers = [] if self._is_lost else within(seconds, call)
        self._is_lost = not answers
        return answers

    # ---- the thread ---------------------------------------------------------

    def _beat(self) -> None:
        with suppress(RuntimeError):
            self._beat_while_there_is_a_board()
        # The board is gone, and who held it. That is the launcher, or process 0: then the run is
        # over, and a main thread that hangs does not know.
        is_over = self._may_end and self._launcher is None
        if is_over and not self._is_closed.wait(self._timeout_s + LEAVE_S):
            os._exit(1)
        while self._launcher is not None and not self._is_closed.wait(BEAT_S):
            self._look_for_the_launcher()

    def _beat_while_there_is_a_board(self) -> None:
        n_beats = 0
        told_at: float | None = None
        while not self._is_closed.wait(BEAT_S if n_beats else 0):
            n_beats += 1
            # To a tenth of a second: threads that only wait for something take less.
            busy_s = time.process_time() - time.thread_time()
            beat = f"{n_beats} {self._n_collectives} {busy_s:.1f}"
            self._store.set(f"beat/{self._rank}", beat)
            self._look_for_the_launcher()
            if not self._may_end or (notice := self._read()) is None:
                continue
            told_at = told_at or time.monotonic()
            # Who stops at a signal may still be writing the checkpoint.
            if notice.status != Interrupted.exit_status and (
                time.monotonic() - told_at > self._timeout_s + LEAVE_S
            ):
                os._exit(notice.status)

    def _look_for_the_launcher(self) -> None:
        if self._launcher not in (None, os.getppid()):
            self._launcher = None
            os.kill(os.getpid(), signal.SIGTERM)

    def _read(self) -> Notice | None:
        if not self._store.check(["told"]):
            return None
        return Notice(**json.loads(self._store.get("told")))

    def _beats(self) -> list[Beat]:
        """What each process has shown last; zeros before its first beat."""
        keys = [f"beat/{rank}" for rank in range(self._size)]
        if self._store.check(keys):
            values = self._store.multi_get(keys)
        else:
            values = [
                self._store.get(key) if self._store.check([key]) else b"0 0 0" for key in keys
            ]
        parts = (value.split() for value in values)
        return [Beat(int(beats), int(calls), float(busy)) for beats, calls, busy in parts]


def within(seconds: float, call: Callable[[], T]) -> list[T]:
    """The result of `call` alone in a list, which is empty if it fails or takes longer.

    A call to a TCPStore whose process is stopped, or whose link is cut, never returns. The thread
    that made it is left behind.
    """
    found: list[T] = []

    def run() -> None:
        with suppress(RuntimeError):
            found.append(call())

    thread = threading.Thread(target=run, name="streamkm-board", daemon=True)
    thread.start()
    thread.join(seconds)
    return found
