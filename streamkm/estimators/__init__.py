"""The scikit-learn interface: `KMeans`, `MiniBatchKMeans`, and `load_run` for finished runs."""

from streamkm.estimators.kmeans import KMeans
from streamkm.estimators.loading import load_run
from streamkm.estimators.minibatch import MiniBatchKMeans

__all__ = ["KMeans", "MiniBatchKMeans", "load_run"]
