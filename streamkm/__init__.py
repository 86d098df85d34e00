"""k-means for arrays larger than memory, with runs that resume after an interruption."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamkm.estimators import (
        BisectingKMeans,
        KMeans,
        MiniBatchKMeans,
        k_means,
        kmeans_plusplus,
        load_run,
        partition,
        sweep,
    )
    from streamkm.reports import report
    from streamkm.sources import open_source

__version__ = "0.1.0"

__all__ = [
    "BisectingKMeans",
    "KMeans",
    "MiniBatchKMeans",
    "k_means",
    "kmeans_plusplus",
    "load_run",
    "open_source",
    "partition",
    "report",
    "sweep",
]

#: The module of each public name. A name is imported on first use, because ``--help`` and a
#: mistyped path must not wait the seconds that importing torch takes.
_HOMES = {
    "BisectingKMeans": "streamkm.estimators",
    "k_means": "streamkm.estimators",
    "kmeans_plusplus": "streamkm.estimators",
    "KMeans": "streamkm.estimators",
    "MiniBatchKMeans": "streamkm.estimators",
    "load_run": "streamkm.estimators",
    "open_source": "streamkm.sources",
    "partition": "streamkm.estimators",
    "report": "streamkm.reports",
    "sweep": "streamkm.estimators",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
