"""Load a run folder as a fitted estimator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkm.errors import RunError
from streamkm.estimators.kmeans import KMeans
from streamkm.estimators.minibatch import MiniBatchKMeans
from streamkm.runs.storage import model

if TYPE_CHECKING:
    import os

__all__ = ["load_run"]

#: By the name of an algorithm in `streamkm.tables.ALGORITHMS`.
_ESTIMATORS: dict[str, type[KMeans | MiniBatchKMeans]] = {
    "lloyd": KMeans,
    "minibatch": MiniBatchKMeans,
}


def load_run(path: str | os.PathLike[str]) -> KMeans | MiniBatchKMeans:
    """A fitted estimator from the finished run in the folder `path`.

    Its parameters are the run's settings, resolved. A run that began from an array has
    ``init="given"``: give another `init` before fitting such an estimator again. There are
    no ``labels_``: ``predict`` gives them.

    Raises
    ------
    streamkm.errors.RunError
        If `path` is no run, is not finished, its model is damaged, or no estimator is for its
        algorithm.
    """
    loaded = model.load_run(path)
    algorithm = loaded.settings["algorithm"]
    if algorithm not in _ESTIMATORS:
        raise RunError(
            f"{path}: no estimator is for the algorithm {algorithm}; the command predict labels "
            "rows by this run"
        )
    return _ESTIMATORS[algorithm].from_model(loaded)
