"""Load a run folder as a fitted estimator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkm.errors import RunError
from streamkm.runs.storage.model import load_model
from streamkm.tables import ALGORITHMS, load_class

if TYPE_CHECKING:
    import os

    from streamkm.estimators.kmeans import KMeans
    from streamkm.estimators.minibatch import MiniBatchKMeans

__all__ = ["load_run"]


def load_run(path: str | os.PathLike[str]) -> KMeans | MiniBatchKMeans:
    """A fitted estimator from the finished run in the folder `path`.

    Its parameters are the run's settings, resolved. A run that began from an array has
    ``init="given"``: give another `init` before fitting such an estimator again. There are
    no ``labels_``: ``predict`` gives them.

    Raises
    ------
    streamkm.errors.RunError
        If `path` is no run, is not finished, its model is damaged, or its algorithm is
        unknown.
    """
    loaded = load_model(path)
    algorithm = loaded.settings["algorithm"]
    if algorithm not in ALGORITHMS:
        raise RunError(
            f"{path}: this version of streamkm knows no algorithm {algorithm}; `streamkm predict` "
            "labels rows by this run"
        )
    estimator: KMeans | MiniBatchKMeans
    estimator = load_class(ALGORITHMS[algorithm].estimator).from_model(loaded)
    return estimator
