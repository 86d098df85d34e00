"""The result of a run: centroids with all that is needed to label rows by them."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save

from streamkm.clustering.scaling import Scaling
from streamkm.errors import Option, RunError
from streamkm.files import write_atomically
from streamkm.runs.folder import read_config

if TYPE_CHECKING:
    import os

    import torch

    from streamkm.runs.folder import RunFolder

__all__ = ["Model", "load_run"]

FORMAT, METADATA = "2", "streamkm"


@dataclass(frozen=True)
class Model:
    """K fitted centroids over D features."""

    centroids_KD: torch.Tensor
    """In the scaled space, float32 or float64."""
    counts_K: torch.Tensor
    """Rows that each centroid is the mean of, int64. After a closing pass, or with lloyd, the
    exact sizes of the clusters of that pass; else the rows of all epochs as they came. Rows of
    weight 0 are not counted."""
    sums_KD: torch.Tensor
    """Sums of those rows in the scaled space, each times its weight, float64."""
    weights_K: torch.Tensor
    """Sums of their weights, float64; of shape (0,) for a run without weights."""
    scaling: Scaling
    settings: dict[str, Any]
    """The settings of the run that made it, as `FitConfig.as_dict` gives them."""
    inertia: float | None
    """Sum of squared distances (times weights), in the scaled space, of the rows of those
    clusters to the centroids: their exact inertia if the last pass moved nothing, else an upper
    bound of it. None for minibatch without a closing pass."""
    figures: dict[str, Any]
    """How it went: ``n_iter`` (passes over the data), ``n_steps`` (updates), ``epoch_inertia``
    (over the last of those passes, before each update) and ``dtype`` (of the data)."""

    @property
    def k(self) -> int:
        """Number of clusters."""
        return len(self.centroids_KD)

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.centroids_KD.shape[1]

    @property
    def centroids(self) -> np.ndarray:
        """Centroids in the space of the input, float32, shape (K, D)."""
        return self.scaling.inverse(self.centroids_KD.cpu()).float().numpy()

    def on_host(self) -> Model:
        """The same model with its tensors in host memory."""
        scaling = replace(
            self.scaling,
            shift_D=self.scaling.shift_D.cpu(),
            factor_D=self.scaling.factor_D.cpu(),
        )
        return replace(
            self,
            centroids_KD=self.centroids_KD.cpu(),
            counts_K=self.counts_K.cpu(),
            sums_KD=self.sums_KD.cpu(),
            weights_K=self.weights_K.cpu(),
            scaling=scaling,
        )

    def save(self, folder: RunFolder) -> None:
        """Write centroids.npy, then model.safetensors, whose presence says that a run is over."""
        buffer = io.BytesIO()
        np.save(buffer, self.centroids, allow_pickle=False)
        write_atomically(folder.centroids, buffer.getvalue())
        tensors = {
            "centroids": self.centroids_KD,
            "counts": self.counts_K,
            "sums": self.sums_KD,
            "weights": self.weights_K,
            "scaling.shift": self.scaling.shift_D,
            "scaling.factor": self.scaling.factor_D,
        }
        # One entry: safetensors writes several in a random order, and the same
        # model would be another file each time.
        on_host = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        about = {
            "format": FORMAT,
            "normalize": self.scaling.normalize,
            "settings": self.settings,
            "figures": self.figures,
            "inertia": self.inertia,
        }
        sealed = {**about, "sha256": _digest(about, on_host)}
        metadata = {METADATA: json.dumps(sealed)}
        write_atomically(folder.model, save(on_host, metadata))


def load_run(path: str | os.PathLike[str]) -> Model:
    """The model of the finished run in the folder `path`.

    Raises
    ------
    RunError
        If `path` is no run, is not finished, or its model is damaged.
    """
    path = Path(path)
    read_config(path)
    file = path / "model.safetensors"
    try:
        content = file.read_bytes()
    except OSError:
        raise RunError(
            f"{path}: the run is not finished; repeat its fit with ", Option("resume", value=True)
        ) from None
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = json.loads(header["__metadata__"][METADATA])
        if about["format"] != FORMAT:
            raise RunError(f"{file}: its format is {about['format']}, this version reads {FORMAT}")
        if about.pop("sha256") != _digest(about, tensors):
            raise KeyError("its checksum does not match")
        model = Model(
            centroids_KD=tensors["centroids"],
            counts_K=tensors["counts"],
            sums_KD=tensors["sums"],
            weights_K=tensors["weights"],
            scaling=Scaling(
                tensors["scaling.shift"],
                tensors["scaling.factor"],
                normalize=about["normalize"],
            ),
            settings=about["settings"],
            figures=about["figures"],
            inertia=about["inertia"],
        )
    except (
        SafetensorError,
        KeyError,
        TypeError,
        UnicodeDecodeError,
        json.JSONDecodeError,
    ) as error:
        raise RunError(
            f"{file} is damaged ({error!r}); remove it and repeat the fit with ",
            Option("resume", value=True),
        ) from error
    return model


def _digest(about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    """sha256 of all that the file says."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()
