"""Every call that this package makes on files of its own: run folders and outputs.

They all go through the `os` of this module, so that a test can put a disk of its own in its
place: one that fails each call in turn, and shows what a power cut may leave
(``tests/runs/faults.py``). Sources are read elsewhere; Zarr writes its chunks itself.

A power cut leaves either the old content or the new, because the order is always the same:
write under a temporary name in the same folder, fsync, rename, fsync the folder. An fsync
that fails is a failure and is never tried again: after it the kernel may have dropped the
pages that it could not write, and a second call would succeed without them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from streamkm.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "FileLock",
    "LineFile",
    "OutputFile",
    "discard",
    "file_sha256",
    "fsync_directory",
    "fsync_file",
    "make_directory",
    "names_in",
    "new_directory",
    "pieces_of",
    "read_bytes",
    "remove_empty",
    "remove_file",
    "remove_tree",
    "rename_durably",
    "write_atomically",
    "write_durably",
]

PIECE_BYTES, _PARTS_AT_ONCE = 1 << 20, 16

#: What file systems answer that cannot reserve space.
_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}
#: Each fails only if the name is removed in that moment, or where inodes have no lasting numbers.
_ATTEMPTS = 100
#: So often is a lock asked for again before it is somebody else's, and so many seconds apart.
_LOCK_PAUSES, _LOCK_PAUSE_S = 10, 0.01
#: What file systems answer that keep no locks.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


# ---- whole files ------------------------------------------------------------


def read_bytes(path: Path) -> bytes:
    """The content of `path`."""
    with _opened(path, os.O_RDONLY) as fd:
        # In one piece where one call gives it all, so that nothing has to be joined.
        return b"".join(_pieces(fd, os.fstat(fd).st_size + 1))


def pieces_of(path: Path) -> Iterator[bytes]:
    """The content of `path`, however large."""
    with _opened(path, os.O_RDONLY) as fd:
        yield from _pieces(fd, PIECE_BYTES)


def file_sha256(path: Path) -> str:
    """Hex digest of the content of `path`."""
    digest = hashlib.sha256()
    for piece in pieces_of(path):
        digest.update(piece)
    return digest.hexdigest()


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Replace the content of `path` by `parts`; afterwards it is on disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write_durably(temporary, *parts)
        rename_durably(temporary, path)
    except OSError:
        discard(temporary)
        raise


def write_durably(path: Path, *parts: bytes | memoryview) -> None:
    """Write `path` and fsync it; its folder's entry is for the caller to fsync."""
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        _write_all(fd, *parts)
        os.fsync(fd)


# ---- names ------------------------------------------------------------------


def fsync_file(path: Path) -> None:
    """Bring what was written to `path` to the disk."""
    with _opened(path, os.O_RDONLY) as fd:
        os.fsync(fd)


#: A folder's entries (names that appeared, vanished, changed) are synced the same way.
fsync_directory = fsync_file


def rename_durably(path: Path, target: Path) -> None:
    """Give `path` the name `target`, in the same folder; afterwards that is on disk."""
    os.replace(path, target)  # noqa: PTH105  # all calls are those of `os`
    fsync_directory(target.parent)


def make_directory(path: Path) -> None:
    """Make the folder `path`, if it is missing, and those above it; their names are on disk."""
    if not path.parent.exists():
        make_directory(path.parent)
    try:
        os.mkdir(path)  # noqa: PTH102
    except FileExistsError:
        if not path.is_dir():
            raise
    # Also of one that is there: an attempt that was killed may have made it just before.
    fsync_directory(path.parent)


def new_directory(path: Path) -> None:
    """Make a folder that is not there; its entry is for the caller to fsync."""
    os.mkdir(path)  # noqa: PTH102


def names_in(directory: Path) -> list[str]:
    """Names of what is in a folder; none if there is no such folder."""
    try:
        return os.listdir(directory)  # noqa: PTH208
    except FileNotFoundError:
        return []


def remove_file(path: Path) -> None:
    """Delete a file, if it is there."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108


def remove_tree(path: Path) -> None:
    """Delete a file, or a folder and all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        for name in os.listdir(path):  # noqa: PTH208
            remove_tree(path / name)
        os.rmdir(path)  # noqa: PTH106
    else:
        remove_file(path)


def remove_empty(path: Path) -> None:
    """Delete a folder that has nothing in it; any other stays."""
    with suppress(OSError):
        os.rmdir(path)  # noqa: PTH106


def discard(*paths: Path) -> None:
    """Delete what a failure left, as far as can be: the failure is what the user must hear of."""
    for path in paths:
        with suppress(OSError):
            remove_tree(path)


# ---- files that grow --------------------------------------------------------


class OutputFile:
    """A file that is written by position."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """With `create` there must be no such file yet."""
        self._path = path
        self._fd = _open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0))

    @property
    def size(self) -> int:
        """Bytes."""
        return os.fstat(self._fd).st_size

    def read(self, position: int, n_bytes: int) -> bytes:
        """Up to `n_bytes` from `position` on; none only at the end."""
        with _naming(self._path):
            return os.pread(self._fd, n_bytes, position)

    def write(self, position: int, data: bytes | memoryview) -> None:
        """Write all of `data`."""
        view = memoryview(data)
        with _naming(self._path):
            while view:
                count = os.pwrite(self._fd, view, position)
                view, position = view[count:], position + count

    def reserve(self, size: int) -> None:
        """Make it `size` bytes long, on disk too where the file system can."""
        try:
            os.ftruncate(self._fd, size)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._fd, 0, size)
        except OSError as error:
            if error.errno in _NO_FALLOCATE:
                return
            reason = f"{error.strerror}: {size} bytes are needed; free space or choose another"
            raise OSError(error.errno, f"{reason} folder", str(self._path)) from error

    def sync(self) -> None:
        """Wait until what was written is on disk."""
        with _naming(self._path):
            os.fsync(self._fd)

    def close(self) -> None:
        """Close it."""
        _close(self._fd)


class LineFile:
    """A file that lines are added to; what a crash tore stays a line of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = _open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def append(self, line: str) -> None:
        """Add `line`, which has no newline."""
        with _naming(self._path):
            size = os.fstat(self._fd).st_size
            is_torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"
            lines = ["", line, ""] if is_torn else [line, ""]
            _write_all(self._fd, "\n".join(lines).encode())

    def close(self) -> None:
        """Close it."""
        _close(self._fd)


# ---- locks ------------------------------------------------------------------


class FileLock:
    """A file that one process holds, and that says which.

    The kernel lets go of it when its owner ends, however that comes about, so that a file
    which a killed process left is free. A file that was removed, or replaced, between opening
    and locking is no lock: it is opened again.
    """

    def __init__(self, path: Path, subject: Path, doing: str) -> None:
        """`subject` is what must not be written twice, `doing` what its owner does with it."""
        self._path, self._subject, self._doing = path, subject, doing
        self._fd: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether it is ours."""
        return self._fd is not None

    def take(self) -> None:
        """Hold it from now on.

        Raises
        ------
        RunError
            If another process, or another thread, holds it; if the file system has no locks.
        """
        for _ in range(_ATTEMPTS):
            if self._try():
                return
        raise RunError(f"{self._path}: is replaced again and again; choose another file system")

    def _try(self) -> bool:
        with ExitStack() as undo, _naming(self._path):
            fd = _open(self._path, os.O_RDWR | os.O_CREAT)
            undo.callback(_close, fd)
            self._lock(fd)
            if self._is_in_place(fd):
                undo.callback(discard, self._path)  # Before closing: the name may go while held.
                os.ftruncate(fd, 0)
                _write_all(fd, f"process {os.getpid()} on {os.uname().nodename}".encode())
                undo.pop_all()
                self._fd = fd
        return self.is_held

    def release(self, *, remove: bool = False) -> None:
        """Let go of it; with `remove` nothing of it is left."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            if remove:
                discard(self._path)
            _close(fd)

    def owner(self) -> str | None:
        """Who holds it, if anybody does; asking takes it, shared, for an instant."""
        # (There may be none, or nobody may look.)
        with suppress(OSError), _opened(self._path, os.O_RDONLY) as fd:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _written_by(fd)
        return None

    def refusal(self, owner: str) -> RunError:
        """What `take` raises while it is `owner`'s."""
        return RunError(f"{self._subject}: {owner} is {self._doing}; wait for it or stop it")

    def _lock(self, fd: int) -> None:
        try:
            _flock(fd)
        except BlockingIOError:
            raise self.refusal(_written_by(fd)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            discard(self._path)
            raise RunError(
                f"{self._subject}: its file system has no locks ({error.strerror}), so that two "
                "processes could write at once; choose a place on another file system, or mount "
                "this one with locks (Lustre: -o flock, NFS: without nolock)"
            ) from error

    def _is_in_place(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._path))  # noqa: PTH116
        except FileNotFoundError:
            return False


def _flock(fd: int) -> None:
    for _ in range(_LOCK_PAUSES):
        # Who only asks whose it is holds it for an instant.
        with suppress(BlockingIOError):
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(_LOCK_PAUSE_S)
    return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _written_by(fd: int) -> str:
    return os.pread(fd, 1000, 0).decode(errors="replace").strip() or "another process"


# ---- descriptors ------------------------------------------------------------


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An error says which file it was: calls on descriptors do not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags, 0o666)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = _open(path, flags)
    with _naming(path):
        try:
            yield fd
        finally:
            _close(fd)


def _close(fd: int) -> None:
    # What has to last is synced by then: an error of closing has nothing to tell, and would
    # stand before one that has.
    with suppress(OSError):
        os.close(fd)


def _pieces(fd: int, n_bytes: int) -> Iterator[bytes]:
    while piece := os.read(fd, n_bytes):
        yield piece


def _write_all(fd: int, *parts: bytes | memoryview) -> None:
    # As many at once as every system takes: states have dozens of small tensors.
    views = [memoryview(part) for part in parts if len(part)]
    while views:
        count = os.writev(fd, views[:_PARTS_AT_ONCE])
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = views[0][count:]
