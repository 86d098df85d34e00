"""Disks for tests: one that fails any call, one that shows what a power cut may leave.

Both stand in the place of `os` in `streamkm.files`, through which every call on a run's own
files goes.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

from streamkm import files

#: The calls that are recorded, failed and replayed; the rest of `os` is passed on.
CALLS = {
    "open", "close", "read", "pread", "writev", "pwrite", "fsync", "ftruncate", "posix_fallocate",
    "replace", "unlink", "mkdir", "rmdir", "listdir",
}  # fmt: skip
WRITES = {"writev", "pwrite"}
READS = {"read", "pread"}
#: Calls that a full disk can refuse.
GROWING = {*WRITES, "open", "fsync", "ftruncate", "posix_fallocate", "replace", "mkdir"}

KINDS = ("EIO", "ENOSPC", "EINTR", "EMFILE", "short", "torn")


def applies(kind: str, call: str) -> bool:
    """Whether a fault of that kind can happen to that call."""
    return {
        "EIO": True,
        "ENOSPC": call in GROWING,
        "EINTR": call not in {"replace", "unlink", "mkdir", "rmdir"},
        "EMFILE": call in {"open", "listdir"},
        "short": call in WRITES | READS,
        "torn": call in WRITES,
        "EROFS": call in {*GROWING, "unlink", "rmdir"} - {"open", "fsync"},
    }[kind]


class Disk:
    """Passes every call on, and counts them; open descriptors are known."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.descriptors: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            return self.on_call(name, real, arguments)

        return call

    def on_call(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        result = real(*arguments)
        if name == "open":
            self.descriptors.add(result)
        if name == "close":
            self.descriptors.discard(arguments[0])
        return result

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """While entered, this package's own files lie here."""
        vars(files)["os"] = self
        try:
            yield
        finally:
            vars(files)["os"] = os


class FaultyDisk(Disk):
    """The `at`-th call fails in one way; with `for_good` every later one of its sort, too."""

    def __init__(self, at: int, kind: str, *, for_good: bool = False) -> None:
        super().__init__()
        self.at, self.kind, self.for_good = at, kind, for_good
        self.failed = ""

    def on_call(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        number = len(self.calls) - 1
        is_now = number >= self.at if self.for_good else number == self.at
        if self.failed == "torn" and name in WRITES:
            self.failed = "done"
            self._fail(errno.ENOSPC)
        if not is_now or not applies(self.kind, name):
            return super().on_call(name, real, arguments)
        if self.kind in ("short", "torn"):
            # The first half is done; the next write of a torn one finds no space.
            self.failed = self.kind
            return super().on_call(name, real, _halved(name, arguments))
        self.failed = self.kind
        if name == "close":  # Which closes whatever it answers.
            super().on_call(name, real, arguments)
        return self._fail(getattr(errno, self.kind))

    @staticmethod
    def _fail(number: int) -> None:
        raise OSError(number, os.strerror(number))


def _halved(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    fd, what, *rest = arguments
    if name in READS:
        return (fd, (what + 1) // 2, *rest)
    whole = b"".join(what) if name == "writev" else bytes(what)
    half = whole[: (len(whole) + 1) // 2]
    return (fd, [half] if name == "writev" else half, *rest)


# ---- power cuts -------------------------------------------------------------

#: A file's content, or a folder's entries: names and inodes.
State = bytes | dict[str, int]


@dataclass
class Moment:
    """The disk at one point of a record: what each inode has been since it was last synced."""

    call: str
    root: int
    histories: dict[int, list[State]]
    """The first state is on disk for good, the last is what programs see."""
    marks: dict[str, Any] = field(default_factory=dict)
    """What had been promised by then."""


class RecordingDisk(Disk):
    """Remembers the disk under `root` before every call, with what was synced of it.

    It looks at the files themselves, so that what others write there (Zarr) counts too:
    it is lost in a power cut unless it was synced by its path.
    """

    def __init__(self, root: Path, before: dict[int, list[State]] | None = None) -> None:
        """What lies under `root` is synced, unless `before` says otherwise."""
        super().__init__()
        self.root, self.moments, self.marks = root, list[Moment](), dict[str, Any]()
        self._held: dict[int, int] = {}
        self._histories: dict[int, list[State]] = dict(before or {})
        self._observe(is_synced=before is None)

    def on_call(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        self._observe()
        self._remember(name)
        result = super().on_call(name, real, arguments)
        if name == "fsync":
            self._observe()
            inode = os.fstat(arguments[0]).st_ino
            if inode in self._histories:  # What lies elsewhere is on a disk with power.
                self._histories[inode] = self._histories[inode][-1:]
        return result

    def finish(self) -> None:
        """Remember how it all ended, and let the inodes go."""
        self._observe()
        self._remember("end")
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()

    def _remember(self, call: str) -> None:
        histories = {inode: list(states) for inode, states in self._histories.items()}
        root = self.root.stat().st_ino
        self.moments.append(Moment(call, root, histories, dict(self.marks)))

    def _observe(self, *, is_synced: bool = False) -> None:
        for folder, _, names in os.walk(self.root):
            entries = {entry.name: entry.inode() for entry in os.scandir(folder)}
            self._note(Path(folder), entries, is_synced=is_synced)
            for name in names:
                path = Path(folder, name)
                self._note(path, path.read_bytes(), is_synced=is_synced)

    def _note(self, path: Path, state: State, *, is_synced: bool) -> None:
        inode = path.stat().st_ino
        if inode not in self._held:
            # While it is held its number is given to no other file.
            self._held[inode] = os.open(path, os.O_RDONLY)
        empty: State = b"" if isinstance(state, bytes) else {}
        states = self._histories.setdefault(inode, [state if is_synced else empty])
        if states[-1] != state:
            states.append(state)


Image = dict[int, State]


def images(moment: Moment, seed: int, n_random: int) -> Iterator[tuple[str, Image]]:
    """What a power cut at `moment` may leave: some of what was not synced, in any order."""

    def image(of_file: Callable[[list[State]], State], of_folder: Callable[[list[State]], State]):
        return {
            inode: (of_folder if isinstance(states[-1], dict) else of_file)(states)
            for inode, states in moment.histories.items()
        }

    yield "nothing lost", image(_last, _last)
    yield "all lost that was not synced", image(_first, _first)
    yield "contents lost, names kept", image(_first, _last)
    yield "names lost, contents kept", image(_last, _first)
    yield "contents cut in half", image(_half, _last)
    yield "contents of zeros in part", image(_zeros, _last)
    rng = random.Random(seed)
    for number in range(n_random):
        yield (
            f"at random, {number}",
            image(
                lambda states: rng.choice([*states, _half(states), _zeros(states)]),
                lambda states: _reordered(states, rng),
            ),
        )


def _first(states: list[State]) -> State:
    return states[0]


def _last(states: list[State]) -> State:
    return states[-1]


def _half(states: list[State]) -> State:
    """The first half as it was written last, the rest as it is on disk for good."""
    before, after = states[0], states[-1]
    assert isinstance(before, bytes)
    assert isinstance(after, bytes)
    middle = len(after) // 2
    return after[:middle] + before[middle:] if len(states) > 1 else after


def _zeros(states: list[State]) -> State:
    """The same, at the length that it had last: what is not on disk reads as zeros."""
    half = _half(states)
    assert isinstance(half, bytes)
    return half.ljust(len(states[-1]), b"\0")


def _reordered(states: list[State], rng: random.Random) -> State:
    """Some of the changes of a folder that were not synced; a renaming is one."""
    entries = dict(states[0])  # type: ignore[arg-type]
    for before, after in pairwise(states):
        assert isinstance(before, dict)
        assert isinstance(after, dict)
        if rng.random() < 0.5:
            for name in before.keys() - after.keys():
                entries.pop(name, None)
            entries |= {name: inode for name, inode in after.items() if before.get(name) != inode}
    return entries


def restore(image: Image, root: int, folder: Path) -> dict[int, int]:
    """Lay `image` out in a new folder; the new inode of each that is in it."""
    inodes: dict[int, int] = {}

    def lay(inode: int, path: Path) -> None:
        state = image[inode]
        if isinstance(state, bytes):
            path.write_bytes(state)
        else:
            path.mkdir()
            for name, child in state.items():
                if child in image:
                    lay(child, path / name)
        inodes[inode] = path.stat().st_ino

    lay(root, folder)
    return inodes


def digest(image: Image, root: int) -> str:
    """The same for images that look the same."""
    parts = []

    def walk(inode: int, name: str) -> None:
        state = image[inode]
        if isinstance(state, bytes):
            parts.append(f"{name} {sha256(state).hexdigest()}")
        else:
            parts.append(f"{name}/")
            for child in sorted(state):
                if state[child] in image:
                    walk(state[child], f"{name}/{child}")

    walk(root, "")
    return sha256("\n".join(parts).encode()).hexdigest()
