"""Peers that may be installed beside a GPU, each called as its own documentation shows."""

from __future__ import annotations

import importlib
import importlib.util
import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["assign_peers", "iteration_peers"]


def assign_peers(
    seconds: Callable[[Callable[[], object]], float], x_BD: torch.Tensor, c_KD: torch.Tensor
) -> dict[str, Any]:
    """Seconds of one assignment by each peer that is installed, or why it failed."""
    found: dict[str, Any] = {}

    def chunked() -> None:
        c_sq_K = c_KD.float().square().sum(dim=1)
        for part in x_BD.split(2**14):
            (c_sq_K - 2 * (part @ c_KD.T)).argmin(dim=1)

    found["torch, chunks"] = seconds(chunked)
    if importlib.util.find_spec("flash_kmeans"):
        found["flash-kmeans"] = attempt(lambda: seconds(flash_kmeans_assign(x_BD, c_KD)))
    return found


def flash_kmeans_assign(x_BD: torch.Tensor, c_KD: torch.Tensor) -> Callable[[], object]:
    module = importlib.import_module("flash_kmeans.assign_euclid_triton")
    x, c = x_BD[None], c_KD[None]
    norms = x.float().square().sum(dim=2)
    return lambda: module.euclid_assign_triton(x, c, norms)


def iteration_peers(x_BD: torch.Tensor, k: int) -> dict[str, Any]:
    """Seconds of one iteration by each peer, or why it failed: from runs of 2 and 12."""
    found: dict[str, Any] = {}
    if importlib.util.find_spec("flashlib"):

        def flashlib(n: int) -> object:
            return importlib.import_module("flashlib").flash_kmeans(x_BD, n_clusters=k, max_iters=n)

        found["flashlib"] = attempt(lambda: per_iteration(flashlib))
    if importlib.util.find_spec("flash_kmeans"):

        def flash_kmeans(n: int) -> object:
            module = importlib.import_module("flash_kmeans")
            return module.batch_kmeans_Euclid(x_BD[None], n_clusters=k, max_iters=n, tol=0.0)

        found["flash-kmeans"] = attempt(lambda: per_iteration(flash_kmeans))
    if importlib.util.find_spec("fastkmeans"):

        def fastkmeans(n: int) -> object:
            module = importlib.import_module("fastkmeans")
            model = module.FastKMeans(d=x_BD.shape[1], k=k, niter=n, tol=-1.0, gpu=True)
            return model.train(x_BD.cpu().numpy())

        found["fastkmeans"] = attempt(lambda: per_iteration(fastkmeans))
    return found


def per_iteration(run: Callable[[int], object]) -> float:
    run(2)  # compiles
    times = []
    for n in (2, 12):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run(n)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return (times[1] - times[0]) / 10


def attempt(measure: Callable[[], float]) -> float | str:
    try:
        return measure()
    except Exception as error:  # noqa: BLE001  # what a peer raises is a result of this run
        return f"{type(error).__name__}: {error}"[:500]
