"""Several children that share one run, as its processes, and the blows that one of them gets."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.distributed.launched import RES_OPTIONS, free_port
from tests.torture.children import STEP_S, Child

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

__all__ = ["TIMEOUT_S", "Launched", "Team"]

#: Seconds after which a process that does not answer counts as lost, and in which all must have
#: ended after one was struck. Few take longer than 30 s, those that were still joining.
TIMEOUT_S, MOST_S = 8, 100.0


class Team:
    """The processes of one attempt; alone it is a process like any other."""

    #: What one of them may get, and how likely.
    blows: tuple[tuple[signal.Signals, int], ...] = (
        (signal.SIGKILL, 8), (signal.SIGTERM, 4), (signal.SIGINT, 2), (signal.SIGSTOP, 1),
    )  # fmt: skip

    def __init__(self, arguments: Sequence[str], log: Path, size: int) -> None:
        """Start `size` processes that run the command line."""
        place = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(size),
            "RES_OPTIONS": RES_OPTIONS,
        }
        log.write_text("")
        self._members = [
            Child(
                arguments,
                log,
                executed=False,
                variables={**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {},
            )
            for rank in range(size)
        ]
        self._struck_at = 0.0
        self._stopped: Child | None = None

    def wait_for(self, condition: Callable[[], bool], step_s: float = 0.0002) -> bool:
        """Wait for `condition`; False if a process ended first."""
        until = time.monotonic() + MOST_S
        while not condition() and time.monotonic() < until:
            if any(member.has_ended() for member in self._members):
                return False
            time.sleep(step_s)
        return True

    def strike(self, number: signal.Signals, rng: random.Random) -> None:
        """Send a signal to one process; SIGSTOP stops it until the others have ended."""
        member = rng.choice(self._members)
        self._struck_at = time.monotonic()
        member.send(number)
        if number is signal.SIGSTOP:
            self._stopped = member

    def pause(self, seconds: float, rng: random.Random) -> bool:
        """Stop one, and let it go on; whether it lived to be stopped."""
        return rng.choice(self._members).pause(seconds)

    def wait(self) -> tuple[list[int | None], float]:
        """How the processes ended, None for one that hung, and seconds since one was struck."""
        began = self._struck_at or time.monotonic()
        longest = MOST_S if self._struck_at else 120.0
        others = [member for member in self._members if member is not self._stopped]
        while time.monotonic() < began + longest:
            if all(member.has_ended() for member in others):
                break
            time.sleep(STEP_S)
        seconds = time.monotonic() - began
        hung = [not member.has_ended() and member is not self._stopped for member in self._members]
        statuses: list[int | None] = []
        for member, is_hung in zip(self._members, hung, strict=True):
            member.send(signal.SIGKILL)  # Nothing to one that has ended.
            ended = os.waitstatus_to_exitcode(os.waitpid(member.pid, 0)[1])
            statuses.append(None if is_hung else ended)
        return statuses, seconds if self._struck_at else 0.0


class Launched:
    """``python -m streamkm --processes N``: a launcher and its processes."""

    #: A launcher waits 30 s for one that is stopped before it kills it.
    blows: tuple[tuple[signal.Signals, int], ...] = (
        (signal.SIGKILL, 8), (signal.SIGTERM, 4), (signal.SIGINT, 2), (signal.SIGUSR1, 2),
    )  # fmt: skip

    def __init__(self, arguments: Sequence[str], log: Path, size: int) -> None:
        """Start the launcher, which starts `size` processes; with 1 it runs the command itself."""
        self._launcher = Child([*arguments, "--processes", str(size)], log, executed=True)
        self._processes: list[int] = []
        self._struck_at = 0.0

    def wait_for(self, condition: Callable[[], bool], step_s: float = 0.0002) -> bool:
        """Wait for `condition`; False if the launcher ended first."""
        return self._launcher.wait_for(condition, step_s)

    def strike(self, number: signal.Signals, rng: random.Random) -> None:
        """Send a signal to the launcher, or to one of its processes."""
        pid = self._launcher.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self._processes = [int(child) for child in children]
        self._struck_at = time.monotonic()
        with suppress(ProcessLookupError):
            os.kill(rng.choice([pid, *self._processes]), number)

    def pause(self, seconds: float, rng: random.Random) -> bool:
        """Stop the launcher, and let it go on; whether it lived to be stopped."""
        del rng
        return self._launcher.pause(seconds)

    def wait(self) -> tuple[list[int | None], float]:
        """How the launcher ended, and seconds from the blow to the end of the last process."""
        status = self._launcher.wait()
        # Those whose launcher was killed save, and end.
        until = time.monotonic() + MOST_S
        while any(map(_lives, self._processes)):
            if time.monotonic() > until:
                return [None], MOST_S
            time.sleep(STEP_S)
        return [status], time.monotonic() - self._struck_at if self._struck_at else 0.0


def _lives(process: int) -> bool:
    """Whether a process that may be nobody's child is at work; a zombie is not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
