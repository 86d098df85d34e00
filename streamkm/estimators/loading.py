"""Loads a run folder as a fitted estimator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from streamkm.errors import RunError
from streamkm.estimators.inputs import remember_reading
from streamkm.kernels import torch_alone_after_fork
from streamkm.runs.storage.model import load_model
from streamkm.runs.storage.run_folder import read_config, reading_of
from streamkm.tables import ALGORITHMS, load_class

if TYPE_CHECKING:
    import os

    from streamkm.estimators.kmeans import KMeans
    from streamkm.estimators.minibatch import MiniBatchKMeans

__all__ = ["load_run"]


def load_run(path: str | os.PathLike[str]) -> KMeans | MiniBatchKMeans:
    """Load a finished run as a fitted estimator.

    Parameters
    ----------
    path : path
        The run folder.

    Returns
    -------
    estimator : KMeans or MiniBatchKMeans
        Its parameters are the resolved settings of the run. After a run that began from an array,
        `init` is ``"given"``: set another one before you fit the estimator again. It has no
        ``labels_``; ``predict`` gives labels.

    Raises
    ------
    streamkm.errors.RunError
        If `path` is no run, or the run is not finished, or its model is damaged, or its algorithm
        is unknown.
    """
    with torch_alone_after_fork():
        loaded = load_model(path)
    algorithm = loaded.settings["algorithm"]
    if algorithm not in ALGORITHMS:
        raise RunError(
            f"{path}: this version of streamkm knows no algorithm {algorithm}; `streamkm predict` "
            "labels rows by this run"
        )
    estimator: KMeans | MiniBatchKMeans
    with torch_alone_after_fork():
        estimator = load_class(ALGORITHMS[algorithm].estimator).from_model(loaded)
        reading = reading_of(read_config(Path(path)))
        del reading["nan"]
        remember_reading(estimator, **reading)
    return estimator
