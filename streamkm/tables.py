"""The tables of algorithms and kernels: one line for each that can be chosen by name.

The command line, its help, the checks of settings and the engine read these tables, so that a new
algorithm or kernel is one file and one line here. A line names the class as text, and the engine
imports the class when it is chosen: ``--help`` and a mistyped option must not wait for torch.
Formats have a table in `streamkm.sources.formats`, outputs one in `streamkm.sinks`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

__all__ = ["ALGORITHMS", "KERNELS", "AlgorithmEntry", "KernelEntry", "load_class"]


@dataclass(frozen=True, slots=True)
class AlgorithmEntry:
    """One line of `ALGORITHMS`: when and how centroids move, and what follows from that."""

    home: str
    """``module:Class`` of a `streamkm.clustering.algorithm.Algorithm`."""
    summary: str
    """When centroids move, for the help."""
    epochs: int
    """Default of ``epochs``, the passes over the data at most."""
    tol: float
    """Default of ``tol``; the help shows 0 as "off"."""
    shuffles: bool
    """Whether an epoch reads the blocks in random order; if not, from the first row on."""
    closes: bool
    """Whether a closing pass follows in any case; if not, only if a cluster has no row."""
    watches_batches: bool
    """Whether it takes ``max_no_improvement``."""
    estimator: str
    """``module:Class`` of the estimator that `streamkm.load_run` makes of its runs."""
    min_gain: float | None = None
    """Default of ``min_gain``; None if it takes none."""
    rates: tuple[str, ...] = ()
    """What ``rate`` may be, the default first; empty if it takes none."""
    branches: bool = False
    """Whether it takes ``branching``: rows are compared with the clusters of a branch."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    """Types of the devices it runs on."""


@dataclass(frozen=True, slots=True)
class KernelEntry:
    """One line of `KERNELS`: who does the arithmetic."""

    home: str
    """``module:Class`` of a `streamkm.kernels.Kernel`."""
    devices: tuple[str, ...]
    """Types of the devices that it runs on."""
    package: str | None = None
    """A package that it needs and that installing streamkm does not bring to every platform."""


#: The algorithms by the name that ``--algorithm`` takes; the first is the default.
ALGORITHMS = {
    "minibatch": AlgorithmEntry(
        "streamkm.clustering.minibatch:MiniBatch",
        "after every batch",
        epochs=1,
        tol=0.0,
        shuffles=True,
        closes=True,
        watches_batches=True,
        estimator="streamkm.estimators:MiniBatchKMeans",
        min_gain=1e-4,
        rates=("annealed", "mean"),
    ),
    "lloyd": AlgorithmEntry(
        "streamkm.clustering.lloyd:Lloyd",
        "after every pass",
        epochs=100,
        tol=1e-4,
        shuffles=False,
        closes=False,
        watches_batches=False,
        estimator="streamkm.estimators:KMeans",
    ),
    "tree": AlgorithmEntry(
        "streamkm.clustering.tree:Tree",
        "after every batch, each row compared with a part of very many clusters",
        epochs=1,
        tol=0.0,
        shuffles=True,
        closes=True,
        watches_batches=True,
        estimator="streamkm.estimators:MiniBatchKMeans",
        min_gain=1e-4,
        rates=("annealed", "mean"),
        branches=True,
        devices=("cpu",),
    ),
}

#: The kernels by the name that ``--kernel`` takes, fastest first: ``auto`` is the first that runs.
KERNELS = {
    "triton": KernelEntry("streamkm.kernels.triton:TritonKernel", ("cuda",), package="triton"),
    "cpu": KernelEntry("streamkm.kernels.cpu:CpuKernel", ("cpu",)),
    "reference": KernelEntry("streamkm.kernels.reference:ReferenceKernel", ("cpu", "cuda")),
}


@cache
def load_class(home: str) -> Any:
    """Import the class that `home` names as ``module:Class``."""
    module, _, name = home.partition(":")
    return getattr(importlib.import_module(module), name)
