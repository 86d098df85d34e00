"""Reads and writes model.safetensors: tensors and facts about them, sealed. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.numpy import load

from streamkm.errors import Option, RunError
from streamkm.files import file_sha256, read_bytes, write_atomically
from streamkm.runs.storage.run_folder import MODEL, run_owner
from streamkm.runs.storage.tensor_file import tensor_file
from streamkm.sealed import DAMAGE, in_words

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

__all__ = [
    "MODEL",
    "NEWER_FIGURES",
    "DamagedModelError",
    "centroids_are_whole",
    "read_model_file",
    "write_model_file",
]

FORMAT, METADATA = "2", "streamkm"

#: Figures that older versions did not write, and what is said in their place.
NEWER_FIGURES = {"stop_reason": "not recorded: an older version of streamkm made this run"}


class DamagedModelError(RunError):
    """The file is not what a run wrote; a run with a checkpoint can write it again."""

    def __init__(self, file: Path, why: str) -> None:
        self.what = f"{file} is damaged ({why})"
        super().__init__(
            f"{self.what}; restore it from a copy, or repeat the fit with ",
            Option("resume", value=True),
            " to have it written again from the newest checkpoint",
        )


def write_model_file(path: Path, tensors: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Replace `path` by `tensors` and `about`, which JSON must be able to hold."""
    about = {"format": FORMAT, **about}
    sealed = {**about, "sha256": _digest(about, tensors)}
    # One entry of metadata holds all: a program that rewrites the file may reorder several.
    write_atomically(path, *tensor_file(tensors, {METADATA: json.dumps(sealed)}))


def read_model_file(run: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and ``about`` that `write_model_file` wrote to the run folder `run`.

    Raises
    ------
    DamagedModelError
        If the file was altered.
    RunError
        If the run is not finished, the file cannot be read, or another version wrote it.
    """
    file = run / MODEL
    try:
        content = read_bytes(file)
    except FileNotFoundError:
        owner = run_owner(run)
        if owner is not None:
            raise RunError(
                f"{run}: the run is not finished, {owner} is working on it; wait for it to end"
            ) from None
        raise RunError(
            f"{run}: the run is not finished, and no process works on it; repeat its fit with ",
            Option("resume", value=True),
        ) from None
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}") from error
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about: dict[str, Any] = json.loads(header["__metadata__"][METADATA])
        version = about["format"]
        is_whole = about.pop("sha256") == _digest(about, tensors)
    except (SafetensorError, *DAMAGE) as error:
        raise DamagedModelError(file, in_words(error)) from error
    if version != FORMAT and is_whole:
        raise RunError(
            f"{file}: its format is {version}, this version of streamkm reads {FORMAT}; use the "
            "version that wrote it"
        )
    if not is_whole:
        # Another format may also have another checksum.
        other = "" if version == FORMAT else f", or it is of format {version}, not {FORMAT}"
        raise DamagedModelError(file, f"its checksum does not match{other}")
    return tensors, about


def centroids_are_whole(path: Path, about: dict[str, Any], of: str = "centroids") -> bool:
    """Whether the .npy file at `path` is what the run wrote; `about` comes from its model."""
    try:
        return bool(file_sha256(path) == about[f"{of}_sha256"])
    except FileNotFoundError:
        return False


def _digest(about: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    """The sha256 of everything in the file."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}\n".encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()
