"""The result of a run: its centroids and all that is needed to label rows by them."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from streamkm.clustering.branches import Level
from streamkm.clustering.scaling import Scaling
from streamkm.clustering.sizes import SizeRule
from streamkm.distributed.world import ALONE
from streamkm.errors import RunError
from streamkm.files import write_atomically
from streamkm.runs.storage.handed import handed_round
from streamkm.runs.storage.model_file import (
    MODEL,
    NEWER_FIGURES,
    centroids_are_whole,
    read_model_file,
    write_model_file,
)
from streamkm.runs.storage.run_folder import read_config
from streamkm.sealed import DAMAGE, in_words

if TYPE_CHECKING:
    import os

    from streamkm.clustering.carried import CarriedRows
    from streamkm.distributed.world import World
    from streamkm.runs.storage.run_folder import RunFolder

__all__ = ["Model", "load_model"]

_HOST = torch.device("cpu")
#: Names of the tensors of a `SizeRule`.
SIZES = ("prices", "closes", "moved.rows", "moved.to")


@dataclass(frozen=True)
class Model:
    """K fitted centroids over D features."""

    centroids_KD: torch.Tensor
    """Centroids in the scaled space, float32 or float64."""
    counts_K: torch.Tensor
    """Rows that each centroid is the mean of, int64. After a closing pass, or with lloyd, these
    are the exact sizes of the clusters in the last pass; otherwise rows of all epochs are counted
    as they came. Rows of weight 0 are not counted."""
    sums_KD: torch.Tensor
    """Sums of those rows in the scaled space, each times its weight, float64."""
    weights_K: torch.Tensor
    """Sums of the weights of those rows, float64; shape (0,) for a run without weights."""
    scaling: Scaling
    settings: dict[str, Any]
    """Settings of the run that made the model, as `FitConfig.as_dict` gives them."""
    inertia: float | None
    """Sum of the squared distances, times weights, of the rows of those clusters to the centroids,
    in the scaled space. If the last pass moved nothing, this is the exact inertia, else an upper
    bound of it. None for minibatch without a closing pass."""
    figures: dict[str, Any]
    """``n_iter`` (epochs), ``n_steps`` (updates), ``epoch_inertia`` (of the last of those epochs,
    with each batch's distances taken before its update), ``dtype`` (of the data) and
    ``stop_reason`` (why training ended, in words; models that no run has trained have none)."""
    feature_names: tuple[str, ...] = ()
    """Names of the features; empty if the data had none."""
    level: Level | None = None
    """The branches of a tree, in the scaled space; None for other algorithms."""
    sizes: SizeRule | None = None
    """What decides labels where sizes have bounds, None where not. Then counts, sums and inertia
    are those of the bounded clusters, and ``figures["sizes"]`` says more."""
    carried: CarriedRows | None = field(default=None, repr=False, compare=False)
    """What the last pass has left for labelling the same rows at once; it is not saved."""

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
        return self._unscaled(self.centroids_KD)

    def _unscaled(self, points_KD: torch.Tensor) -> np.ndarray:
        return self.scaling.on(_HOST).inverse(points_KD.cpu()).float().numpy()

    def on_host(self) -> Model:
        """The same model with its tensors in host memory."""
        return replace(
            self,
            centroids_KD=self.centroids_KD.cpu(),
            counts_K=self.counts_K.cpu(),
            sums_KD=self.sums_KD.cpu(),
            weights_K=self.weights_K.cpu(),
            scaling=self.scaling.on(_HOST),
            level=None if self.level is None else Level(*(each.cpu() for each in self.level)),
            sizes=None if self.sizes is None else SizeRule(*(each.cpu() for each in self.sizes)),
        )

    def save(self, folder: RunFolder) -> None:
        """Write centroids.npy, then model.safetensors, which marks the run as complete.

        A tree's branches come before, in centroids-level-1.npy.
        """
        files = self._centroid_files(folder)
        for path, content in files.items():
            write_atomically(path, content)
        tensors = {
            "centroids": self.centroids_KD,
            "counts": self.counts_K,
            "sums": self.sums_KD,
            "weights": self.weights_K,
            "scaling.shift": self.scaling.shift_D,
            "scaling.factor": self.scaling.factor_D,
        }
        if self.level is not None:
            tensors |= {"branches": self.level.centroids_JD, "parents": self.level.parents_K}
        if self.sizes is not None:
            tensors |= dict(zip(SIZES, self.sizes, strict=True))
        about = {
            "normalize": self.scaling.normalize,
            "settings": self.settings,
            "figures": self.figures,
            "inertia": self.inertia,
            "centroids_sha256": hashlib.sha256(files[folder.centroids]).hexdigest(),
        }
        if self.level is not None:
            about["branches_sha256"] = hashlib.sha256(files[folder.branches]).hexdigest()
        if self.feature_names:
            about["feature_names"] = list(self.feature_names)
        arrays = {name: tensor.cpu().contiguous().numpy() for name, tensor in tensors.items()}
        write_model_file(folder.model, arrays, about)

    def mend_centroids(self, folder: RunFolder) -> bool:
        """Write the centroids again unless they are what the run wrote; True if they were not."""
        _, about = read_model_file(folder.path)
        files = self._centroid_files(folder)
        if centroids_are_whole(folder.centroids, about) and (
            self.level is None or centroids_are_whole(folder.branches, about, of="branches")
        ):
            return False
        for path, content in files.items():
            write_atomically(path, content)
        return True

    def _centroid_files(self, folder: RunFolder) -> dict[Path, bytes]:
        """The content of each .npy file of centroids, the clusters' last."""
        points = {folder.centroids: self.centroids_KD}
        if self.level is not None:
            points = {folder.branches: self.level.centroids_JD, **points}
        files = {}
        for path, points_KD in points.items():
            buffer = io.BytesIO()
            np.save(buffer, self._unscaled(points_KD), allow_pickle=False)
            files[path] = buffer.getvalue()
        return files


def load_model(path: str | os.PathLike[str], world: World = ALONE) -> Model:
    """The model of the finished run in the folder `path`.

    The first process of `world` reads it for all: a collective.

    Raises
    ------
    RunError
        If `path` is no run, the run is not finished, or its model is damaged.
    """
    path = Path(path)
    about: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    if world.is_first:
        read_config(path)
        arrays, about = read_model_file(path)
    if world.size > 1:
        about, arrays = handed_round(about, arrays, world)
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
            figures=NEWER_FIGURES | about["figures"],
            inertia=about["inertia"],
            feature_names=_names(about, tensors["centroids"].shape[1]),
            level=_level(tensors),
            sizes=_sizes(tensors, about["figures"]),
        )
    except DAMAGE as error:
        raise RunError(
            f"{path / MODEL} is no model of a run: {in_words(error)}; restore it from a copy"
        ) from error


def _level(tensors: dict[str, torch.Tensor]) -> Level | None:
    """The branches of a tree; None if the model has none."""
    if "branches" not in tensors:
        return None
    (k, n_features), level = (
        tensors["centroids"].shape,
        Level(tensors["branches"], tensors["parents"]),
    )
    n_branches = len(level.centroids_JD)
    if level.centroids_JD.shape != (n_branches, n_features) or level.parents_K.shape != (k,):
        raise ValueError(f"its branches are of shape {tuple(level.centroids_JD.shape)}")
    if not 0 <= int(level.parents_K.min()) <= int(level.parents_K.max()) < n_branches:
        raise ValueError(f"a cluster is of none of its {n_branches} branches")
    return level


def _sizes(tensors: dict[str, torch.Tensor], figures: dict[str, Any]) -> SizeRule | None:
    """What bounds the sizes; None if the model has no bounds."""
    if "prices" not in tensors:
        return None
    # Models of older versions have no rows that moved.
    tensors = dict.fromkeys(SIZES[2:], torch.zeros(0, dtype=torch.int64)) | tensors
    found, k = SizeRule(*(tensors[name] for name in SIZES)), len(tensors["centroids"])
    is_whole = found.prices_K.shape == found.closes_K.shape == (k,)
    if not is_whole or not bool((found.prices_K >= 0).all()):
        raise ValueError(f"its prices are of shape {tuple(found.prices_K.shape)}, or below 0")
    rows_M, to_M = found.moved_rows_M, found.moved_to_M
    if rows_M.shape != to_M.shape or not bool(((to_M >= 0) & (to_M < k)).all()):
        raise ValueError(f"its moved rows are of shape {tuple(rows_M.shape)}, or of no cluster")
    if rows_M.is_floating_point() or not bool((rows_M[1:] > rows_M[:-1]).all()):
        raise ValueError("its moved rows are not numbers of rows in order")
    figures["sizes"]["fingerprint"], figures["sizes"]["least"], figures["sizes"]["most"]
    return found


def _names(about: dict[str, Any], n_features: int) -> tuple[str, ...]:
    """Names of the features: those of older versions' runs, and of data without names, are none."""
    names = tuple(about.get("feature_names", ()))
    if names and (len(names) != n_features or not all(isinstance(name, str) for name in names)):
        raise ValueError(f"its {len(names)} names are not one for each of {n_features} features")
    return names


def _check_shapes(tensors: dict[str, torch.Tensor]) -> None:
    """Refuse tensors that no run writes, even if their checksum is right."""
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
        raise ValueError("it has no centroids, or some are not finite")
