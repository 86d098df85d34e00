"""The scikit-learn interface: estimators, functions, and `load_run` for finished runs."""

from streamkm.estimators.bisecting import BisectingKMeans
from streamkm.estimators.functions import k_means, kmeans_plusplus
from streamkm.estimators.kmeans import KMeans
from streamkm.estimators.loading import load_run
from streamkm.estimators.minibatch import MiniBatchKMeans
from streamkm.estimators.partitioning import Partition, partition
from streamkm.estimators.sweeping import sweep

__all__ = [
    "BisectingKMeans",
    "KMeans",
    "MiniBatchKMeans",
    "Partition",
    "k_means",
    "kmeans_plusplus",
    "load_run",
    "partition",
    "sweep",
]
