"""From a run folder to a fitted estimator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkm.estimators.kmeans import KMeans
from streamkm.estimators.minibatch import MiniBatchKMeans
from streamkm.runs.storage import model

if TYPE_CHECKING:
    import os

__all__ = ["load_run"]


def load_run(path: str | os.PathLike[str]) -> KMeans | MiniBatchKMeans:
    """The estimator that the finished run in the folder `path` is, fitted.

    Its parameters are the run's settings, resolved. A run that began from an array has
    ``init="given"``: give another `init` before fitting such an estimator again. There are
    no ``labels_``: ``predict`` gives them.

    Raises
    ------
    streamkm.errors.RunError
        If `path` is no run, is not finished, or its model is damaged.
    """
    loaded = model.load_model(path)
    is_lloyd = loaded.settings["algorithm"] == "lloyd"
    return KMeans.from_model(loaded) if is_lloyd else MiniBatchKMeans.from_model(loaded)
