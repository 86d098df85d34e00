"""Calls on the files of run folders and outputs.

Each reads or changes a file through the `os` of this module. A test puts a disk of its own in
its place: one that fails any call, or one that shows what a power cut may leave
(``tests/runs/faults.py``). Three do so elsewhere: sources read their own files, Zarr writes its
chunks, and the tuning of Triton kernels writes its cache, which may be lost.

A power cut leaves either the old content or the new, because the order is always the same:
write under a temporary name in the same folder, fsync, rename, fsync the folder. An fsync
that fails is a failure and is never tried again: the operating system may have dropped the
pages that it could not write, and a second fsync would succeed without them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from streamkm.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "FileLock",
    "LineFile",
    "OutputFile",
    "discard",
    "expanded",
    "file_sha256",
    "fsync_directory",
    "fsync_file",
    "is_folder",
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

#: Bytes of one read of a large file.
PIECE_BYTES = 1 << 20
#: Parts of one `writev`: as many as POSIX promises.
_PARTS_AT_ONCE = 16

#: Errors of a file system that cannot reserve space.
_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}
#: Attempts to take a lock. One fails only if the file is removed or replaced in that moment, or
#: where a file's inode number does not last.
_ATTEMPTS = 100
#: Pauses between attempts at a held lock, and seconds of one: enough for a process that only asks
#: who holds it.
_LOCK_PAUSES, _LOCK_PAUSE_S = 10, 0.01
#: Errors of a file system without locks.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


# ---- whole files ------------------------------------------------------------


def expanded(path: str | os.PathLike[str]) -> Path:
    """`path` with the home folder for a leading ``~``; as it is where no user has that name."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path.expanduser raises for `~nobody`


def read_bytes(path: Path) -> bytes:
    """The content of `path`."""
    with _opened(path, os.O_RDONLY) as fd:
        # One read, where it gives everything, leaves no pieces to join.
        return b"".join(_pieces(fd, os.fstat(fd).st_size + 1))


def pieces_of(path: Path) -> Iterator[bytes]:
    """The content of `path`, of any size, in pieces of `PIECE_BYTES` at most."""
    with _opened(path, os.O_RDONLY) as fd:
        yield from _pieces(fd, PIECE_BYTES)


def file_sha256(path: Path) -> str:
    """Hex digest of the content of `path`."""
    digest = hashlib.sha256()
    for piece in pieces_of(path):
        digest.update(piece)
    return digest.hexdigest()


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Replace the content of `path` by `parts`; on return it is on disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write_durably(temporary, *parts)
        rename_durably(temporary, path)
    except OSError:
        discard(temporary)
        raise


def write_durably(path: Path, *parts: bytes | memoryview) -> None:
    """Write `path` and fsync it; the caller fsyncs its folder."""
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        _write_all(fd, *parts)
        os.fsync(fd)


# ---- names ------------------------------------------------------------------


def fsync_file(path: Path) -> None:
    """Wait until what was written to `path` is on disk."""
    with _opened(path, os.O_RDONLY) as fd:
        os.fsync(fd)


#: The same call brings a folder's entries to the disk: names that were added, removed or changed.
fsync_directory = fsync_file


def rename_durably(path: Path, target: Path) -> None:
    """Rename `path` to `target`, in the same folder; on return the name is on disk."""
    os.replace(path, target)  # noqa: PTH105  # all calls are those of `os`
    fsync_directory(target.parent)


def make_directory(path: Path) -> None:
    """Make the folder `path` and those above it that are missing; their names are on disk."""
    if not path.parent.exists():
        make_directory(path.parent)
    try:
        os.mkdir(path)  # noqa: PTH102
    except FileExistsError:
        if not path.is_dir():
            raise
    # Also if it was there: an attempt that was killed may have made it just before.
    fsync_directory(path.parent)


def new_directory(path: Path) -> None:
    """Make a folder that must not exist; the caller fsyncs the one above it."""
    os.mkdir(path)  # noqa: PTH102


def is_folder(path: Path) -> bool | None:
    """Whether `path` is a folder, by one look at it; None if nothing is there."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return None


def names_in(directory: Path) -> list[str]:
    """Names in a folder; none if there is no such folder."""
    try:
        return os.listdir(directory)  # noqa: PTH208
    except FileNotFoundError:
        return []


def remove_file(path: Path) -> None:
    """Delete a file if it exists."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108


def remove_tree(path: Path) -> None:
    """Delete a file, or a folder with everything in it, if it exists."""
    if path.is_dir() and not path.is_symlink():
        for name in os.listdir(path):  # noqa: PTH208
            remove_tree(path / name)
        os.rmdir(path)  # noqa: PTH106
    else:
        remove_file(path)


def remove_empty(path: Path) -> None:
    """Delete a folder if it is empty."""
    with suppress(OSError):
        os.rmdir(path)  # noqa: PTH106


def discard(*paths: Path) -> None:
    """Delete what a failure left and ignore errors: the user must hear of the failure."""
    for path in paths:
        with suppress(OSError):
            remove_tree(path)


# ---- files that grow --------------------------------------------------------


class OutputFile:
    """A file that is read and written by position."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Open `path`; with `create` it must not exist yet."""
        self._path = path
        self._fd = _open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0))

    @property
    def size(self) -> int:
        """Length in bytes."""
        return os.fstat(self._fd).st_size

    def read(self, position: int, n_bytes: int) -> bytes:
        """Up to `n_bytes` from `position` on; empty only at the end."""
        with _naming(self._path):
            return os.pread(self._fd, n_bytes, position)

    def write(self, position: int, data: bytes | memoryview) -> None:
        """Write all of `data` from `position` on."""
        view = memoryview(data)
        with _naming(self._path):
            while view:
                count = os.pwrite(self._fd, view, position)
                view, position = view[count:], position + count

    def reserve(self, size: int) -> None:
        """Make the file `size` bytes long and, where the file system can, reserve the space."""
        with _naming(self._path):
            os.ftruncate(self._fd, size)
        self.reserve_part(0, size)

    def reserve_part(self, position: int, n_bytes: int) -> None:
        """Reserve the space of `n_bytes` from `position` on, where the file system can."""
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._fd, position, n_bytes)
        except OSError as error:
            if error.errno in _NO_FALLOCATE:
                return
            reason = f"{error.strerror}: {n_bytes} bytes are needed; free space or choose another"
            raise OSError(error.errno, f"{reason} folder", str(self._path)) from error

    def sync(self) -> None:
        """Wait until what was written is on disk."""
        with _naming(self._path):
            os.fsync(self._fd)

    def close(self) -> None:
        """Close it."""
        _close(self._fd)


class LineFile:
    """A file that lines are appended to; a line that a crash cut short stays one of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = _open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def append(self, line: str) -> None:
        """Append `line`, which holds no newline."""
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
    """A lock file that one process holds and that names this process.

    The operating system releases the lock when its owner ends in any way, so a file that a
    killed process left is free. A file that was removed or replaced between opening and locking
    is no lock: `take` opens it again.
    """

    def __init__(self, path: Path, subject: Path, doing: str) -> None:
        """`subject` is what only one process may write, `doing` what the owner does with it."""
        self._path, self._subject, self._doing = path, subject, doing
        self._fd: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def take(self) -> None:
        """Take the lock.

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
                # Undone before the close: only the owner may remove the file.
                undo.callback(discard, self._path)
                os.ftruncate(fd, 0)
                _write_all(fd, f"process {os.getpid()} on {os.uname().nodename}".encode())
                undo.pop_all()
                self._fd = fd
        return self.is_held

    def share(self) -> None:
        """Let others `join`; `take` has to wait until this process and all of them release."""
        assert self._fd is not None
        self._share(self._fd)

    def join(self) -> None:
        """Hold a lock together with the process that shares it."""
        fd = _open(self._path, os.O_RDWR)
        try:
            self._share(fd)
        except BaseException:
            _close(fd)
            raise
        self._fd = fd

    def _share(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self.refusal(_written_by(fd)) from None

    def release(self, *, remove: bool = False) -> None:
        """Release the lock, if it is held; with `remove` delete its file, if nobody shares it."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            if remove:
                with suppress(OSError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    discard(self._path)
            _close(fd)

    def owner(self) -> str | None:
        """Who holds the lock, or None; asking takes a shared lock for an instant."""
        # An OSError: there is no file, or it may not be read.
        with suppress(OSError), _opened(self._path, os.O_RDONLY) as fd:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _written_by(fd)
        return None

    def refusal(self, owner: str) -> RunError:
        """The error that `take` raises while `owner` holds the lock."""
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
        # A process in `owner` holds the lock for an instant.
        with suppress(BlockingIOError):
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(_LOCK_PAUSE_S)
    return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _written_by(fd: int) -> str:
    return os.pread(fd, 1000, 0).decode(errors="replace").strip() or "another process"


# ---- descriptors ------------------------------------------------------------


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in an OSError: a call on a descriptor does not."""
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
    # What must last is synced by now. An error here tells nothing and would hide one that does.
    with suppress(OSError):
        os.close(fd)


def _pieces(fd: int, n_bytes: int) -> Iterator[bytes]:
    while piece := os.read(fd, n_bytes):
        yield piece


def _write_all(fd: int, *parts: bytes | memoryview) -> None:
    # Several parts in one call: a state has dozens of small tensors.
    views = [memoryview(part) for part in parts if len(part)]
    while views:
        count = os.writev(fd, views[:_PARTS_AT_ONCE])
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = views[0][count:]
