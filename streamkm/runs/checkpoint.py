"""Checkpoints: committed as a whole, verified when loaded, never unpickled.

A checkpoint is a folder ``step-NNNNNNNN`` of two files. ``state.safetensors``
holds the tensors; ``manifest.json`` says where the run stands, under which
settings and on which data, with the sha256 of the tensors and of itself. The
folder is written and synced under a temporary name and then renamed, so that
whatever has the final name is complete. An older checkpoint is deleted only
after the new one has been read back.

safetensors was chosen over ``torch.save``, whose format is pickle and runs
code when loaded, and over torch.distributed.checkpoint, which pickles its
metadata.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from streamkm.errors import Option, RunError
from streamkm.files import file_sha256, fsync_directory, fsync_file, write_durably

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from streamkm.config import Cadence

__all__ = ["Checkpoint", "Checkpointer", "NoCheckpoints", "load_checkpoint", "save_checkpoint"]

logger = logging.getLogger("streamkm")

STATE, MANIFEST = "state.safetensors", "manifest.json"
FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read back and verified."""

    path: Path
    step: int
    """Batches applied since the run began; the seeding counts as one."""
    tensors: dict[str, np.ndarray]
    manifest: dict[str, Any]


class Checkpointer:
    """Saves to one folder as often as asked, and keeps the newest few."""

    def __init__(self, directory: Path, cadence: Cadence, keep: int) -> None:
        self.directory = directory
        self._cadence = cadence
        self._keep = keep
        self._saved_at, self._saved_step = time.monotonic(), 0

    def load(self) -> Checkpoint | None:
        """See `load_checkpoint`; the cadence counts on from there."""
        checkpoint = load_checkpoint(self.directory)
        if checkpoint is not None:
            self._saved_step = checkpoint.step
        self._saved_at = time.monotonic()
        return checkpoint

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint should be saved at `step`."""
        elapsed_s = time.monotonic() - self._saved_at
        return self._cadence.is_due(step - self._saved_step, elapsed_s)

    def save(self, step: int, tensors: dict[str, np.ndarray], manifest: dict[str, Any]) -> Path:
        """See `save_checkpoint`."""
        path = save_checkpoint(self.directory, step, tensors, manifest, keep=self._keep)
        self._saved_at, self._saved_step = time.monotonic(), step
        return path


class NoCheckpoints:
    """Stands for a `Checkpointer` where a fit has no run folder: nothing is saved or loaded."""

    def load(self) -> None:
        """There is never one to go on from."""

    def is_due(self, _step: int) -> bool:
        """Never."""
        return False

    def save(self, _step: int, _tensors: dict[str, np.ndarray], _manifest: dict[str, Any]) -> None:
        """Save nothing."""


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
        If anything could not be written; the checkpoints before are untouched.
    """
    target = directory / f"step-{step:08d}"
    if target.exists():
        if _load(target) is not None:
            return target  # A resumed run that was stopped before its first batch.
        shutil.rmtree(target)
    if not directory.exists():
        directory.mkdir()
        fsync_directory(directory.parent)
    # What a killed attempt, or a full disk, left of other steps would stay for good.
    for left_over in directory.glob(".step-*.tmp"):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = directory / f".{target.name}.tmp"
    temporary.mkdir()
    try:
        save_file(tensors, temporary / STATE)
    except SafetensorError as error:
        raise OSError(f"{temporary}: the checkpoint cannot be written: {error}") from error
    fsync_file(temporary / STATE)
    body = {
        "format": FORMAT,
        "step": step,
        "state": {
            "sha256": file_sha256(temporary / STATE),
            "bytes": (temporary / STATE).stat().st_size,
        },
        **manifest,
    }
    write_durably(temporary / MANIFEST, _seal(body))
    fsync_directory(temporary)
    temporary.rename(target)
    fsync_directory(directory)
    if _load(target) is None:
        raise RunError(f"{target}: the checkpoint reads back damaged; check the disk")
    _delete_others(directory, target, keep)
    return target


def load_checkpoint(directory: Path) -> Checkpoint | None:
    """The newest valid checkpoint in `directory`; None if there is none at all.

    Damaged ones are named in the log and passed over.

    Raises
    ------
    RunError
        If there are checkpoints and every one of them is damaged.
    """
    found = _newest_first(directory)
    for path in found:
        checkpoint = _load(path)
        if checkpoint is not None:
            return checkpoint
        logger.warning("%s is damaged; trying the checkpoint before it", path)
    if found:
        raise RunError(
            f"{directory}: none of its {len(found)} checkpoints is intact; "
            "restore one from a backup, or start anew with another ",
            Option("run_dir"),
        )
    return None


def _load(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, or None if any part of it is missing or altered."""
    try:
        manifest = _unseal((path / MANIFEST).read_bytes())
        if file_sha256(path / STATE) != manifest["state"]["sha256"]:
            raise ValueError("the checksum of the state does not match")
        tensors = load_file(path / STATE)
        step, version = int(manifest["step"]), manifest["format"]
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        logger.debug("%s: %s", path, error)
        return None
    if version != FORMAT:
        raise RunError(f"{path}: its format is {version}, this version of streamkm reads {FORMAT}")
    return Checkpoint(path, step, tensors, manifest)


def _seal(body: dict[str, Any]) -> bytes:
    return json.dumps({**body, "sha256": _digest(body)}, indent=2).encode()


def _unseal(content: bytes) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(content)
    if body.pop("sha256") != _digest(body):
        raise ValueError("the checksum of the manifest does not match")
    return body


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _newest_first(directory: Path) -> list[Path]:
    found = directory.glob("step-*")
    return sorted(found, key=lambda path: (len(path.name), path.name), reverse=True)


def _delete_others(directory: Path, newest: Path, keep: int) -> None:
    """Delete all but `newest` and the ``keep - 1`` before it.

    Later steps go too: the run did not go on from them, so they were damaged,
    and would else count as the newest while sound ones are deleted.
    """
    found = _newest_first(directory)
    place = found.index(newest)
    for path in found[:place] + found[place + keep :]:
        shutil.rmtree(path)
