"""The algorithms and the kernels that can be chosen by name, one line each.

The command line, the checks of settings, the help and the engine are all made from these
tables, so that a new algorithm or kernel is one file and one line here. A line names the class
as text, and the engine imports it when it is chosen: ``--help`` and a mistyped option must not
wait for torch. (Sources and sinks have tables of their own, in their registries.)
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

__all__ = ["ALGORITHMS", "KERNELS", "AlgorithmEntry", "KernelEntry", "load_class"]


@dataclass(frozen=True, slots=True)
class AlgorithmEntry:
    """One line of `ALGORITHMS`: when and how centroids move, and what follows from that."""

    home: str
    """``module:Class`` of a `streamkm.clustering.algorithm.Algorithm`."""
    summary: str
    """For the help: when centroids move."""
    epochs: int
    """Passes over the data at most, where ``epochs`` is not given."""
    tol: float
    """Value of ``tol`` where it is not given; 0 never stops."""
    shuffles: bool
    """Whether an epoch reads the blocks in random order; otherwise from the first row on."""
    closes: bool
    """Whether a closing pass follows in any case; otherwise only if a cluster has no row."""
    watches_batches: bool
    """Whether it knows ``max_no_improvement``."""
    estimator: str
    """``module:Class`` of the estimator that `streamkm.load_run` makes of its runs."""


@dataclass(frozen=True, slots=True)
class KernelEntry:
    """One line of `KERNELS`: who does the arithmetic."""

    home: str
    """``module:Class`` of a `streamkm.kernels.Kernel`."""
    devices: tuple[str, ...]
    """Types of devices that it runs on."""
    package: str | None = None
    """A package that it needs and streamkm does not bring along everywhere."""


#: By the name that ``--algorithm`` takes; the first is the default.
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
}

#: By the name that ``--kernel`` takes; ``auto`` is the first that runs.
KERNELS = {
    "triton": KernelEntry("streamkm.kernels.triton:TritonKernel", ("cuda",), package="triton"),
    "cpu": KernelEntry("streamkm.kernels.cpu:CpuKernel", ("cpu",)),
    "reference": KernelEntry("streamkm.kernels.reference:ReferenceKernel", ("cpu", "cuda")),
}


def load_class(home: str) -> Any:
    """The class that `home`, as ``module:Class``, names."""
    module, _, name = home.partition(":")
    return getattr(importlib.import_module(module), name)
