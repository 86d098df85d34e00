"""Runs that are killed at drawn moments, resumed, and compared byte by byte at the end."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.torture.children import Child, in_a_fork
from tests.torture.jobs import (
    LARGE_SHAPE,
    SMALL_SHAPE,
    Job,
    large_jobs,
    small_jobs,
    write_arrays,
)
from tests.torture.team import TIMEOUT_S, Launched, Team

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: A run is killed so often at most before it may end.
MOST_KILLS = 12
#: Of the moments: how many follow a file that appears; of the signals that ask for an end: how
#: many are followed by one that does not ask, while a checkpoint is being saved.
BY_FILE, FOLLOWED = 0.4, 0.4
#: After a file appeared, and between two signals, at most.
SHORTLY_S = 0.004

#: How a process may end of a signal: of itself, by the status that it promises, or as Python
#: does before and after `main`.
_MAY_END = {
    signal.SIGKILL: {-signal.SIGKILL},
    signal.SIGTERM: {75, -signal.SIGTERM},
    signal.SIGINT: {75, 1, 130, -signal.SIGINT},
}


@dataclass
class Figures:
    """What a campaign has done."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    """Signals that ended, or stopped for a while, a process that lived."""
    phases: Counter[str] = field(default_factory=Counter)
    """Where the run stood then."""
    runs: Counter[str] = field(default_factory=Counter)
    """Runs that were brought to their end and compared, by name."""
    attempts: int = 0
    executed: int = 0
    """Of the kills, those of ``python -m streamkm``; the others are of forks that run it."""
    differences: list[str] = field(default_factory=list)
    """Files that differ from the uninterrupted run's, and ends that should not be."""
    seconds: float = 0.0
    sizes: Counter[str] = field(default_factory=Counter)
    """Numbers of processes of the attempts that were killed, where there are several."""
    longest_s: float = 0.0
    """Of several processes: from the blow to the end of the last that was not struck."""

    @property
    def n_kills(self) -> int:
        return self.kills.total()

    def as_dict(self) -> dict[str, Any]:
        counted = {"kills": self.kills, "phases": self.phases, "runs": self.runs}
        return {
            "seed": self.seed,
            "n_kills": self.n_kills,
            **{name: dict(sorted(counts.items())) for name, counts in counted.items()},
            "executed": self.executed,
            "attempts": self.attempts,
            "seconds": round(self.seconds, 1),
            "processes": dict(sorted(self.sizes.items())),
            "longest_s": round(self.longest_s, 1),
            "differences": self.differences,
        }

    def __str__(self) -> str:
        return (
            f"{self.n_kills} kills in {self.attempts} attempts at {self.runs.total()} runs, "
            f"{len(self.differences)} differences (seed {self.seed}, {self.seconds:.0f} s)"
        )


class Campaign:
    """Kills in a folder of its own, drawn from a seed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._rng = folder, random.Random(seed)
        self.figures = Figures(seed)

    def small(self, kills: int) -> None:
        """Kills of forks, over small arrays; their number is given."""
        self._rounds("small", kills, executed=False)

    def large(self, kills: int) -> None:
        """Kills of ``python -m streamkm``, over large arrays; their number is given."""
        self._rounds("large", kills, executed=True)

    def several(self, kills: int, *, executed: bool) -> None:
        """Kills of one of 1 to 4 processes, whose number changes at every attempt.

        They are forks over small arrays; with `executed` those of a launcher over large ones.
        """
        began, figures = time.monotonic(), self.figures
        before = figures.n_kills
        rounds = self._jobs("large" if executed else "small", executed=executed)
        while figures.n_kills < before + kills:
            job, whole, seconds = next(rounds)
            if job.run is None:
                self._tortured_together(job, whole, seconds, executed=executed)
        figures.executed += executed * (figures.n_kills - before)
        figures.seconds += time.monotonic() - began

    def _tortured_together(
        self, job: Job, whole: dict[str, bytes], seconds: float, *, executed: bool
    ) -> None:
        """Kill processes of `job` some times, let it end, and compare."""
        out, figures, rng = self._folder / "killed", self.figures, self._rng
        _make_anew(out)
        n_left = rng.randint(2, MOST_KILLS)
        while True:
            figures.attempts += 1
            size = rng.randint(1, 4)
            how = [*self._how(is_fit=True, executed=executed), "--process-timeout", str(TIMEOUT_S)]
            kind = Launched if executed else Team
            team = kind([*job.command(out), *how], self._log, size)
            struck = self._strike_one(team, out, seconds * size) if n_left else None
            statuses, spent = team.wait()
            figures.longest_s = max(figures.longest_s, spent)
            if set(statuses) == {0}:
                break
            log = self._log.read_text()
            died = any(status is not None and status < 0 for status in statuses)
            # Of a signal that is answered all stop alike; of one that kills the others end.
            is_right = set(statuses) == {75} or (
                set(statuses)
                <= {0, 1, 75, 130, *(-number for number in (*_MAY_END, signal.SIGUSR1))}
                and (died or executed or struck is signal.SIGINT)
            )
            if struck is None or not is_right or "Traceback" in log:
                name = struck.name if struck else "no signal"
                last = log.strip()[-300:]
                figures.differences.append(
                    f"{job.name}: {size} ended with {statuses} after {name}: {last}"
                )
                return
            n_left -= 1
            figures.kills[struck.name] += 1
            figures.phases[job.phase(out)] += 1
            figures.sizes[str(size)] += 1
        figures.runs[job.name] += 1
        results = job.results(out)
        for name in sorted(whole.keys() | results.keys()):
            if whole.get(name) != results.get(name):
                figures.differences.append(f"{job.name}: {name} differs")
        left = [path.name for path in out.rglob("*.tmp")]
        figures.differences += [f"{job.name}: {name} is left" for name in left]

    def _strike_one(
        self, team: Team | Launched, out: Path, seconds: float
    ) -> signal.Signals | None:
        """Wait for a drawn moment and strike one process; the signal, if one was sent."""
        rng = self._rng
        numbers = [number for number, _ in team.blows]
        number = rng.choices(numbers, [weight for _, weight in team.blows])[0]
        if not self._moment(team, out, seconds):
            return None
        if rng.random() < 0.2 and team.pause(rng.uniform(0, 0.3), rng):
            self.figures.kills["SIGSTOP, SIGCONT"] += 1
            self.figures.phases["any, then went on"] += 1
        team.strike(number, rng)
        return number

    def _rounds(self, size: str, kills: int, *, executed: bool) -> None:
        began, figures = time.monotonic(), self.figures
        until = figures.n_kills + kills
        rounds = self._jobs(size, executed=executed) if kills else iter(())
        while figures.n_kills < until:
            job, whole, seconds = next(rounds)
            before = figures.n_kills
            most = min(self._rng.randint(1, MOST_KILLS), until - before)
            self._tortured(job, whole, seconds, most, executed=executed)
            figures.executed += executed * (figures.n_kills - before)
        figures.seconds += time.monotonic() - began

    def _jobs(self, size: str, *, executed: bool) -> Iterator[tuple[Job, dict[str, bytes], float]]:
        """Each job in turn, again and again, with its uninterrupted results and how long it took.

        A job is run uninterrupted when its first turn comes.
        """
        folder = self._folder / size
        shape, jobs_of = (SMALL_SHAPE, small_jobs) if size == "small" else (LARGE_SHAPE, large_jobs)
        arrays, run = folder / "arrays", folder / "model"
        in_a_fork(lambda: write_arrays(arrays, shape))
        model = Job("model", arrays / "x.npy", ("--init", "random"))
        self._uninterrupted(model, run, executed=executed)
        known = {}
        while True:
            for job in jobs_of(arrays, run / "run"):
                if job not in known:
                    known[job] = self._uninterrupted(job, folder / "whole", executed=executed)
                yield (job, *known[job])

    def _uninterrupted(
        self, job: Job, out: Path, *, executed: bool
    ) -> tuple[dict[str, bytes], float]:
        began = time.monotonic()
        _make_anew(out)
        status = Child(job.command(out), self._log, executed=executed).wait()
        if status != 0:
            raise RuntimeError(f"{job.name} ends with {status}: {self._log.read_text()}")
        return job.results(out), time.monotonic() - began

    def _tortured(
        self, job: Job, whole: dict[str, bytes], seconds: float, most: int, *, executed: bool
    ) -> None:
        """Kill `job` so often at most, let it end, and compare."""
        out, figures = self._folder / "killed", self.figures
        _make_anew(out)
        stop_at, status, ended = figures.n_kills + most, -1, None
        while status != 0:
            may_kill = figures.n_kills < stop_at
            figures.attempts += 1
            how = self._how(is_fit=job.run is None, executed=executed)
            child = Child([*job.command(out), *how], self._log, executed=executed)
            struck = self._strike(child, out, seconds) if may_kill else []
            ended = child.wait()
            status = 0 if ended == 0 else self._judge(job, out, struck, ended, how)
        figures.runs[job.name] += 1
        results = job.results(out) if ended == 0 else whole
        for name in sorted(whole.keys() | results.keys()):
            if whole.get(name) != results.get(name):
                figures.differences.append(f"{job.name}: {name} differs")

    def _judge(
        self, job: Job, out: Path, struck: list[signal.Signals], ended: int | None, how: list[str]
    ) -> int:
        """Count a kill; 0, which ends the round, if the process did not end as it should."""
        figures, log = self.figures, self._log.read_text()
        deadly = [number for number in struck if number in _MAY_END and ended in _MAY_END[number]]
        if not deadly or "Traceback" in log:
            last = log.strip().rsplit("\n", 1)[-1]
            names = ", ".join(number.name for number in struck) or "no signal"
            figures.differences.append(
                f"{job.name}: ended with {ended} after {names} ({' '.join(how)}): {last}"
            )
            return 0
        figures.kills[deadly[-1].name] += 1
        figures.phases[job.phase(out)] += 1
        return -1

    def _strike(self, child: Child, out: Path, seconds: float) -> list[signal.Signals]:
        """Wait for a drawn moment and send what was drawn; the signals that were sent."""
        rng = self._rng
        numbers = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
        number = rng.choices(numbers, [2, 1, 1])[0]
        if rng.random() < 0.25:
            if not self._moment(child, out, seconds):
                return []
            if child.pause(rng.uniform(0, 0.02)):
                self.figures.kills["SIGSTOP"] += 1
                self.figures.phases["any, then went on"] += 1
        if not self._moment(child, out, seconds):
            return []
        child.send(number)
        if number is signal.SIGKILL or rng.random() > FOLLOWED:
            return [number]
        time.sleep(rng.uniform(0, SHORTLY_S))
        second = rng.choice([number, signal.SIGKILL])
        child.send(second)
        return [number, second]

    def _moment(self, child: Child | Team | Launched, out: Path, seconds: float) -> bool:
        """Wait for a moment of the run's life; False if it ended first."""
        rng = self._rng
        if rng.random() > BY_FILE:
            until = time.monotonic() + rng.uniform(0, seconds)
            return child.wait_for(lambda: time.monotonic() >= until)
        wanted, seen = rng.randint(1, 8), {_temporary(out)}
        delay = rng.choice([0, rng.uniform(0, SHORTLY_S)])

        def has_appeared() -> bool:
            seen.add(_temporary(out))
            return len(seen - {None}) >= wanted

        if not child.wait_for(has_appeared, step_s=0):
            return False
        until = time.monotonic() + delay
        return child.wait_for(lambda: time.monotonic() >= until)

    def _how(self, *, is_fit: bool, executed: bool) -> list[str]:
        """Options that may change from one attempt to the next."""
        rng = self._rng
        every = rng.choice(["5", "9", "0.3s"] if executed else ["2", "3", "7", "0.02s"])
        how = ["--device", "cpu", "--read-threads", str(rng.randrange(4))]
        how += ["--max-host-memory", rng.choice(["320MiB", "700MiB", "3GiB"])]
        how += ["--checkpoint-every", every]
        return [*how, "--keep-checkpoints", rng.choice("23")] if is_fit else how

    @property
    def _log(self) -> Path:
        return self._folder / "log"


def _temporary(out: Path) -> str | None:
    """Name of something that is being written, with what tells it from its predecessors."""
    for folder in (out / "run" / "checkpoints", out, out / "run"):
        try:
            names = [entry for entry in folder.iterdir() if entry.name.endswith(".tmp")]
            for entry in names:
                return f"{entry.name} {entry.stat().st_ino}"
        except OSError:
            continue  # It is not there yet, or has been renamed meanwhile.
    return None


def _make_anew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
