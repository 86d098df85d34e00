"""The result of a run: centroids with all that is needed to label rows by them."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from streamkm.clustering.scaling import Scaling
from streamkm.errors import RunError
from streamkm.files import write_atomically
from streamkm.runs.storage.model_file import (
    MODEL,
    centroids_are_whole,
    read_model_file,
    write_model_file,
)
from streamkm.runs.storage.run_folder import read_config
from streamkm.sealed import DAMAGE, in_words

if TYPE_CHECKING:
    import os

    from streamkm.runs.storage.run_folder import RunFolder

__all__ = ["Model", "load_model"]


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
        content = self._centroids_file()
        write_atomically(folder.centroids, content)
        tensors = {
            "centroids": self.centroids_KD,
            "counts": self.counts_K,
            "sums": self.sums_KD,
            "weights": self.weights_K,
            "scaling.shift": self.scaling.shift_D,
            "scaling.factor": self.scaling.factor_D,
        }
        about = {
            "normalize": self.scaling.normalize,
            "settings": self.settings,
            "figures": self.figures,
            "inertia": self.inertia,
            "centroids_sha256": hashlib.sha256(content).hexdigest(),
        }
        arrays = {name: tensor.cpu().contiguous().numpy() for name, tensor in tensors.items()}
        write_model_file(folder.model, arrays, about)

    def mend_centroids(self, folder: RunFolder) -> bool:
        """Write centroids.npy again unless it is what the run wrote; whether that was needed."""
        _, about = read_model_file(folder.path)
        if centroids_are_whole(folder.centroids, about):
            return False
        write_atomically(folder.centroids, self._centroids_file())
        return True

    def _centroids_file(self) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, self.centroids, allow_pickle=False)
        return buffer.getvalue()


def load_model(path: str | os.PathLike[str]) -> Model:
    """The model of the finished run in the folder `path`.

    Raises
    ------
    RunError
        If `path` is no run, is not finished, or its model is damaged.
    """
    path = Path(path)
    read_config(path)
    arrays, about = read_model_file(path)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    try:
        _check_shapes(tensors)
        settings = about["settings"]
        settings["metric"], settings["nan"]
        return Model(
            centroids_KD=tensors["centroids"],
            counts_K=tensors["counts"],
            sums_KD=tensors["sums"],
            weights_K=tensors["weights"],
            scaling=Scaling(
                tensors["scaling.shift"],
                tensors["scaling.factor"],
                normalize=about["normalize"],
                keeps_units=settings["scale"] == "none",
            ),
            settings=settings,
            figures=about["figures"],
            inertia=about["inertia"],
        )
    except DAMAGE as error:
        raise RunError(
            f"{path / MODEL} is no model of a run: {in_words(error)}; restore it from a copy"
        ) from error


def _check_shapes(tensors: dict[str, torch.Tensor]) -> None:
    """Refuse tensors that no run writes, whoever wrote their checksum."""
    k, n_features = tensors["centroids"].shape
    is_weighted = len(tensors["weights"]) > 0
    for name, shape in (
        ("centroids", (k, n_features)),
        ("counts", (k,)),
        ("sums", (k, n_features)),
        ("weights", (k,) if is_weighted else (0,)),
        ("scaling.shift", (n_features,)),
        ("scaling.factor", (n_features,)),
    ):
        found, is_whole = tensors[name], name == "counts"
        if found.shape != shape or found.is_floating_point() == is_whole:
            raise ValueError(f"its {name} are {found.dtype} of shape {tuple(found.shape)}")
    if not k or not n_features or not bool(tensors["centroids"].isfinite().all()):
        raise ValueError("its centroids are none, or not finite")
