"""scikit-learn's interface: KMeans and MiniBatchKMeans for arrays of any size, and load_run."""

from streamkm.estimators.kmeans import KMeans
from streamkm.estimators.loading import load_run
from streamkm.estimators.minibatch import MiniBatchKMeans

__all__ = ["KMeans", "MiniBatchKMeans", "load_run"]
