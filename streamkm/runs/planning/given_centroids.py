"""Reads and checks the first centroids that a user gives, as a file or an array."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streamkm.errors import ConfigError, Option, SourceError
from streamkm.sources.base import RowRange
from streamkm.sources.npy import open_npy

if TYPE_CHECKING:
    from streamkm.config import FitConfig

__all__ = ["given_centroids"]


def given_centroids(
    config: FitConfig, n_features: int, given_KD: np.ndarray | None
) -> np.ndarray | None:
    """The first centroids, float64, shape (K, D); None if ``config.init`` is a way of seeding.

    They are `given_KD` where ``config.init`` is ``given``, else the content of the ``.npy`` file
    that it names.

    Raises
    ------
    ConfigError
        If the file or array is missing, has another shape, or holds anything but finite real
        numbers; if rows are normalised and a centroid is zero.
    """
    if config.init == "given":
        name, centroids_KD = Option("init"), given_KD
        if centroids_KD is None:
            raise ConfigError("init given: the centroids must be passed along, there are none")
    elif config.init.endswith(".npy"):
        name = Option("init", config.init)
        centroids_KD = _read_centroids(Path(config.init), name, (config.k, n_features))
    else:
        return None
    if centroids_KD.shape != (config.k, n_features) or centroids_KD.dtype.kind not in "fiu":
        raise ConfigError(
            name,
            f": {config.k} centroids of {n_features} features are needed (real numbers), "
            f"these are {centroids_KD.dtype} of shape {centroids_KD.shape}",
        )
    if not np.isfinite(centroids_KD).all():
        raise ConfigError(name, ": the centroids hold NaN or infinity")
    if config.normalizes and not centroids_KD.any(axis=1).all():
        raise ConfigError(name, ": a centroid of zeros has no direction to normalise")
    wide_KD: np.ndarray = centroids_KD.astype(np.float64)
    return wide_KD


def _read_centroids(path: Path, name: Option, shape: tuple[int, int]) -> np.ndarray:
    """The array in a file, refused before memory is allocated if its header says another shape."""
    try:
        with closing(open_npy(path, keep_open=False)) as source:
            spec = source.spec
            if (spec.n_rows, spec.n_features) != shape:
                raise ConfigError(
                    name,
                    f": {shape[0]} centroids of {shape[1]} features are needed, these are "
                    f"{spec.n_rows} of {spec.n_features}",
                )
            centroids_KD = np.empty(shape, spec.storage)
            source.read(RowRange(0, spec.n_rows), centroids_KD)
    except SourceError as error:
        raise ConfigError(name, f": no .npy file that can be read ({error})") from None
    return centroids_KD
