"""model.safetensors as it lies on disk: tensors and what is said of them, sealed. No torch here."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.numpy import load

from streamkm.errors import Option, RunError
from streamkm.files import read_bytes, write_atomically
from streamkm.runs.tensorfile import tensor_file

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

__all__ = ["MODEL", "read_model_file", "write_model_file"]

MODEL = "model.safetensors"
FORMAT, METADATA = "2", "streamkm"


def write_model_file(path: Path, tensors: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Replace `path`; `about` is anything that JSON can hold."""
    about = {"format": FORMAT, **about}
    sealed = {**about, "sha256": _digest(about, tensors)}
    # One entry of metadata: this package writes several in order, but others may not.
    write_atomically(path, *tensor_file(tensors, {METADATA: json.dumps(sealed)}))


def read_model_file(run: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `write_model_file` was given, from the folder of a run.

    Raises
    ------
    RunError
        If the run is not finished, or its model was altered.
    """
    file = run / MODEL
    try:
        content = read_bytes(file)
    except FileNotFoundError:
        raise RunError(
            f"{run}: the run is not finished; repeat its fit with ", Option("resume", value=True)
        ) from None
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}") from error
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about: dict[str, Any] = json.loads(header["__metadata__"][METADATA])
        if about["format"] != FORMAT:
            raise RunError(f"{file}: its format is {about['format']}, this version reads {FORMAT}")
        if about.pop("sha256") != _digest(about, tensors):
            raise KeyError("its checksum does not match")
    except (
        SafetensorError,
        KeyError,
        TypeError,
        AttributeError,
        UnicodeDecodeError,
        json.JSONDecodeError,
        RecursionError,
    ) as error:
        raise RunError(
            f"{file} is damaged ({error!r}); remove it and repeat the fit with ",
            Option("resume", value=True),
        ) from error
    return tensors, about


def _digest(about: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    """sha256 of all that the file says."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}\n".encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()
