"""Checkpoints: committed as a whole, verified when loaded, never unpickled.

A checkpoint is a folder ``step-NNNNNNNN`` of two files. ``state.safetensors``
holds the tensors; ``manifest.json`` says where the run stands, under which
settings and on which data, with the sha256 of the tensors and of itself. The
folder is written and synced under a temporary name and then renamed, so a
folder of the final name is complete. An older checkpoint is deleted only after
the new one has been read back.

If the disk refuses a checkpoint, the run warns, goes on, and tries again when
the next one is due.

safetensors was chosen over ``torch.save``, whose format is pickle and runs
code when loaded, and over torch.distributed.checkpoint, which pickles its
metadata.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.numpy import load

from streamkm import __version__
from streamkm.errors import Option, RunError
from streamkm.files import (
    discard,
    file_sha256,
    fsync_directory,
    is_folder,
    make_directory,
    names_in,
    new_directory,
    read_bytes,
    remove_tree,
    rename_durably,
    write_durably,
)
from streamkm.ranges import named
from streamkm.runs.storage.tensor_file import tensor_file
from streamkm.sealed import DAMAGE, in_words, seal, unseal
from streamkm.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy as np

    from streamkm.config import Cadence

__all__ = [
    "FORMAT",
    "Checkpoint",
    "Checkpointer",
    "NoCheckpoints",
    "load_checkpoint",
    "save_checkpoint",
]

logger = logging.getLogger("streamkm")

STATE, MANIFEST = "state.safetensors", "manifest.json"
#: Of 4, passes in sequence are cut into batches by blocks, and their sums are whole numbers.
FORMAT, READ_TOO = 4, (3,)

#: Errors of a disk that has lost a file. After any other (no descriptor, no memory, no permission)
#: the file may be intact, and to pass it over would throw work away.
_LOST = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.EBADMSG}
_LOST.add(getattr(errno, "EUCLEAN", errno.EIO))  # Linux's for a damaged file system.


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read back and verified."""

    path: Path
    step: int
    """Batches applied since the run began; the seeding counts as one."""
    tensors: dict[str, np.ndarray]
    manifest: dict[str, Any]


class Checkpointer:
    """Saves checkpoints to one folder, says when one is due, and keeps the newest `keep`."""

    def __init__(self, directory: Path, cadence: Cadence, keep: int) -> None:
        self.directory = directory
        self._cadence = cadence
        self._keep = keep
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._n_failed, self._failure = 0, ""
        self._under_way: threading.Thread | None = None
        self._error: BaseException | None = None

    def load(self, check: Callable[[Checkpoint], None]) -> Checkpoint | None:
        """See `load_checkpoint`; the cadence counts on from the checkpoint's step."""
        checkpoint = load_checkpoint(self.directory, check)
        if checkpoint is not None:
            self._saved_step = checkpoint.step
        self._saved_at = time.monotonic()
        return checkpoint

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint should be saved at `step`."""
        elapsed_s = time.monotonic() - self._saved_at
        return self._cadence.is_due(step - self._saved_step, elapsed_s)

    def save(
        self,
        step: int,
        tensors: dict[str, np.ndarray],
        manifest: dict[str, Any],
        *,
        is_last: bool = False,
    ) -> Path | None:
        """See `save_checkpoint`; None if the disk refuses.

        The log names a refusal when it begins, when its reason changes and when it ends, not at
        every checkpoint between.

        Raises
        ------
        OSError
            If the disk refuses and `is_last` says that no other checkpoint will follow.
        """
        self.wait()
        try:
            return self._save(step, tensors, manifest, is_last=is_last)
        finally:
            self._saved_at, self._saved_step = time.monotonic(), step

    def save_later(
        self,
        step: int,
        fetch: Callable[[], dict[str, np.ndarray] | None],
        manifest: dict[str, Any],
    ) -> None:
        """`save` by a thread, which waits for the tensors; None of them saves nothing.

        There is one such thread at most: the next one begins when it has ended.
        """
        self.wait()
        self._saved_at, self._saved_step = time.monotonic(), step

        def work() -> None:
            try:
                tensors = fetch()
                if tensors is not None:
                    self._save(step, tensors, manifest, is_last=False)
            except BaseException as error:  # noqa: BLE001  # `wait` raises it where somebody sees it
                self._error = error

        self._under_way = threading.Thread(target=work, name="streamkm-checkpoint")
        self._under_way.start()

    def wait(self) -> None:
        """Wait for the checkpoint under way, if there is one; raise what has ended its thread."""
        self.close()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait for the checkpoint under way, if there is one."""
        if self._under_way is not None:
            self._under_way.join()
            self._under_way = None

    def _save(
        self, step: int, tensors: dict[str, np.ndarray], manifest: dict[str, Any], *, is_last: bool
    ) -> Path | None:
        try:
            with named("checkpoint"):
                path = save_checkpoint(self.directory, step, tensors, manifest, keep=self._keep)
            self._note_success(step)
            return path
        except OSError as error:
            if is_last:
                raise
            self._note_failure(step, error)
            return None

    def _note_failure(self, step: int, error: OSError) -> None:
        self._n_failed += 1
        # By its reason: its text names the file, and so the step.
        if error.strerror != self._failure:
            logger.warning(
                "the checkpoint of step %d cannot be saved (%s); the run goes on, and tries "
                "again whenever one is due", step, error,
            )  # fmt: skip
        self._failure = error.strerror or ""

    def _note_success(self, step: int) -> None:
        if self._n_failed:
            failed = counted(self._n_failed, "checkpoint")
            logger.warning("checkpoints are saved again, at step %d; %s failed", step, failed)
        self._n_failed, self._failure = 0, ""

    def conclude(self) -> None:
        """Remove what a killed attempt has left, and log how many checkpoints in a row failed."""
        self.wait()
        with suppress(OSError):  # The disk may be dead; the result matters more.
            _discard_unfinished(self.directory)
        if self._n_failed:
            failed = counted(self._n_failed, "checkpoint")
            logger.warning("the last %s could not be saved (%s)", failed, self._failure)


class NoCheckpoints:
    """Takes the place of a `Checkpointer` in a fit without a run folder."""

    def load(self, _check: Callable[[Checkpoint], None]) -> None:
        """Load nothing."""

    def is_due(self, _step: int) -> bool:
        """Never due."""
        return False


def save_checkpoint(
    directory: Path,
    step: int,
    tensors: dict[str, np.ndarray],
    manifest: dict[str, Any],
    *,
    keep: int,
) -> Path:
    """Commit a checkpoint to `directory` and delete all but the newest `keep`.

    Raises
    ------
    OSError
        If the checkpoint cannot be written or reads back damaged; earlier ones are untouched.
    """
    target = directory / f"step-{step:08d}"
    temporary = directory / f".{target.name}.tmp"
    if not directory.exists():
        make_directory(directory)
    if target.exists():
        if _holds(target, tensors):
            # A resumed run was stopped before its first batch. The attempt before it may have
            # been killed between the rename of this folder and the fsync of `directory`.
            fsync_directory(directory)
            return target
        # Damaged, or passed over when it was loaded.
        remove_tree(target)
    # Nothing else deletes what a killed attempt, or a full disk, left of other steps.
    _discard_unfinished(directory)
    try:
        new_directory(temporary)
        _write(temporary, step, tensors, manifest)
        rename_durably(temporary, target)
        _verify(target)
    except (OSError, _Damaged) as error:
        # It must not count as the newest later on, and others need its space.
        discard(temporary, target)
        if isinstance(error, _Damaged):
            reason = f"it reads back damaged, {error}; check the disk"
            raise OSError(errno.EIO, reason, str(target)) from error
        raise
    _delete_others(directory, target, keep)
    return target


def _discard_unfinished(directory: Path) -> None:
    if directory.exists():
        discard(*(directory / name for name in names_in(directory) if name.startswith(".step-")))


def _write(
    folder: Path, step: int, tensors: dict[str, np.ndarray], manifest: dict[str, Any]
) -> None:
    """Write and sync both files and their folder."""
    parts = tensor_file(tensors)
    write_durably(folder / STATE, *parts)
    body = {
        "format": FORMAT,
        "streamkm": __version__,
        "step": step,
        "state": {"sha256": _digest(parts), "bytes": sum(map(len, parts))},
        **manifest,
    }
    write_durably(folder / MANIFEST, seal(body))
    fsync_directory(folder)


def load_checkpoint(
    directory: Path, check: Callable[[Checkpoint], None] | None = None
) -> Checkpoint | None:
    """The newest valid checkpoint in `directory`; None if there is none at all.

    Damaged ones are named in the log and passed over. One for which `check` raises one of
    `DAMAGE` counts as damaged: it is whole, but no run with these settings saved it. Those that a
    fit at work deletes meanwhile, because it has saved newer ones, are looked for again.

    Raises
    ------
    RunError
        If there are checkpoints and every one of them is damaged, or one has another format. If one
        is whole but `check` refuses it, the error names the version that wrote it.
    """
    while found := _newest_first(directory):
        refused = ""
        for path in found:
            checkpoint = None
            try:
                checkpoint = _load(path)
                if check is not None:
                    with _reading():
                        check(checkpoint)
                return checkpoint
            except _Damaged as error:
                if checkpoint is not None and not refused:
                    refused = _of_another_version(checkpoint, error)
                if is_folder(path) is None:
                    break
                goes_on = "" if path == found[-1] else "; trying the checkpoint before it"
                logger.warning("%s is damaged (%s)%s", path, error, goes_on)
        if found == _newest_first(directory):
            if refused:
                raise RunError(refused, Option("run_dir"))
            raise RunError(
                f"{directory}: none of its {len(found)} checkpoints is intact; "
                "restore one from a backup, or start anew with another ",
                Option("run_dir"),
            )
    return None


def _of_another_version(checkpoint: Checkpoint, error: _Damaged) -> str:
    """What is said of a checkpoint that is whole, but not of this run, up to the option."""
    wrote = checkpoint.manifest.get("streamkm", "of before versions were recorded")
    return (
        f"{checkpoint.path} is whole, but streamkm {__version__} cannot go on from it ({error}): "
        f"streamkm {wrote} wrote it; go on with that, or start anew with another "
    )


class _Damaged(Exception):  # noqa: N818  # never leaves this module
    """Some part of a checkpoint is missing or altered."""


@contextmanager
def _reading() -> Iterator[None]:
    """Turn an error in a ``with`` block into `_Damaged`, unless the file may be intact."""
    try:
        yield
    except (SafetensorError, *DAMAGE) as error:
        raise _Damaged(in_words(error)) from error
    except OSError as error:
        if error.errno not in _LOST:
            raise
        raise _Damaged(str(error)) from error


def _load(path: Path) -> Checkpoint:
    with _reading():
        manifest = unseal(read_bytes(path / MANIFEST))
        content = read_bytes(path / STATE)
        _check_state(hashlib.sha256(content).hexdigest(), manifest)
        tensors = load(content)
        step, version = int(manifest["step"]), manifest["format"]
    if version not in (FORMAT, *READ_TOO):
        raise RunError(f"{path}: its format is {version}, this version of streamkm reads {FORMAT}")
    return Checkpoint(path, step, tensors, manifest)


def _verify(path: Path) -> str:
    """The sha256 of the tensors; `_Damaged` if it is not the manifest's. Loads no tensors."""
    with _reading():
        sha256 = file_sha256(path / STATE)
        _check_state(sha256, unseal(read_bytes(path / MANIFEST)))
    return sha256


def _holds(path: Path, tensors: dict[str, np.ndarray]) -> bool:
    """Whether the checkpoint in `path` is intact and holds `tensors`."""
    try:
        return _verify(path) == _digest(tensor_file(tensors))
    except _Damaged:
        return False


def _digest(parts: Sequence[bytes | memoryview]) -> str:
    """The sha256 of what is in memory, whatever the disk made of it."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _check_state(sha256: str, manifest: dict[str, Any]) -> None:
    if sha256 != manifest["state"]["sha256"]:
        raise ValueError("the checksum of its state does not match")


def _newest_first(directory: Path) -> list[Path]:
    found = (name for name in names_in(directory) if name.startswith("step-"))
    return [directory / name for name in sorted(found, key=lambda n: (len(n), n), reverse=True)]


def _delete_others(directory: Path, newest: Path, keep: int) -> None:
    """Delete all but `newest` and the ``keep - 1`` before it.

    Later steps go too: the run did not resume from them, so they were damaged.
    If they stayed, they would count as the newest, and intact ones be deleted.
    """
    try:
        found = _newest_first(directory)
        place = found.index(newest)
        for path in found[:place] + found[place + keep :]:
            remove_tree(path)
    except OSError as error:
        logger.warning("an older checkpoint cannot be deleted (%s); delete it yourself", error)
