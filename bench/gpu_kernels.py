"""The kernels on a GPU, each beside the ceiling of the card that it should reach."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import torch
import triton

from bench.gpu_peers import assign_peers, iteration_peers
from bench.gpu_run import Run, write_results
from bench.gpu_targets import ASSIGN_TARGETS
from streamkm.kernels import Rows
from streamkm.kernels.triton.kernel import TritonKernel
from streamkm.kernels.triton.tiles import Tile, fits_one_read, tiles

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "assign",
    "assign_float32",
    "ceilings",
    "iteration",
    "small",
    "update",
]


def ceilings(run: Run) -> None:
    """The card's own rates: product, copy, link, and the disk's, each as it is found."""
    n = run.size(8192, 128)
    a, b = run.normal(n, n, dtype=torch.bfloat16), run.normal(n, n, dtype=torch.bfloat16)
    found = run.results[run.part] = {"bf16_matrix_flops": 2 * n**3 / run.seconds(lambda: a @ b)}
    source = torch.ones(run.size(2**30, 2**16), dtype=torch.float32, device=run.device)
    target = torch.empty_like(source)
    found["copy_bytes_per_s"] = 2 * source.nbytes / run.seconds(lambda: target.copy_(source))
    write_results(run.out, run.results)
    if not run.is_rehearsal:
        found["link_bytes_per_s"] = link_alone(run.device)
    found["disk_bytes_per_s"] = disk_alone(run.data / "disk", run.size(2**31, 2**16))
    write_results(run.out, run.results)


def link_alone(device: torch.device) -> float:
    host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True).fill_(1)
    target = torch.empty_like(host, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    target.copy_(host, non_blocking=True)
    start.record()
    for _ in range(20):
        target.copy_(host, non_blocking=True)
    end.record()
    end.synchronize()
    return float(20 * host.nbytes / (start.elapsed_time(end) / 1e3))


def disk_alone(path: Path, n_bytes: int) -> float:
    """Bytes a second of one thread that reads a file which the page cache does not hold."""
    block = bytes(min(n_bytes, 2**24))
    try:
        with path.open("wb") as file:
            for _ in range(n_bytes // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            while file.read(len(block)):
                pass
        return n_bytes / (time.perf_counter() - start)
    finally:
        path.unlink(missing_ok=True)


def assign(run: Run) -> None:
    """Assign bfloat16 rows of unit length: exact, fast, other tiles, peers."""
    shapes = [
        (d, k)
        for k in (20_000, 256, 4096)
        for d in (64, 128, 256, 512, 1024)
        if k == 20_000 or d in ASSIGN_TARGETS
    ]
    limit = run.ceiling("bf16_matrix_flops")
    for d, k in [(64, 20_000)] if run.is_rehearsal else shapes:
        n_rows, k = run.size(2**18 if k < 20_000 or d <= 256 else 2**16, 40), run.size(k, 70)
        x_BD, c_KD = run.unit(n_rows, d, dtype=torch.bfloat16), run.unit(k, d)
        norms_B = x_BD.float().square().sum(dim=1)
        # Tuned, as a run tunes them on its first batch.
        exact = TritonKernel(n_rows, k, torch.float32, run.device, tune=True)
        fast = TritonKernel(n_rows, k, torch.float32, run.device, "fast", tune=True)
        # By default, without tuning: the tiles of three stages.
        plain = TritonKernel(n_rows, k, torch.float32, run.device)
        times: dict[str, float | str] = {
            "exact": run.seconds(lambda: exact.assign(x_BD, norms_B, c_KD)),  # noqa: B023
            "fast": run.seconds(lambda: fast.assign(x_BD, norms_B, c_KD)),  # noqa: B023
            "default tile": run.seconds(lambda: plain.assign(x_BD, norms_B, c_KD)),  # noqa: B023
        }
        before = int(exact.n_rechecked)
        exact.assign(x_BD, norms_B, c_KD)
        rechecked = (int(exact.n_rechecked) - before) / n_rows
        rate = 2 * n_rows * k * d / limit
        share, fast_share = (rate / float(times[name]) for name in ("exact", "fast"))
        row: dict[str, Any] = {
            "rows": n_rows, "k": k, "d": d, "seconds": times,
            "share_of_matrix_rate": {"exact": share, "fast": fast_share},
            "exact_costs": fast_share / share - 1, "rechecked_share": rechecked,
            "tuned": str(exact._tile),  # noqa: SLF001
            "peers": assign_peers(run.seconds, x_BD, c_KD.bfloat16()),
        }  # fmt: skip
        if k == run.size(20_000, 70):
            for tile in tiles(d, torch.float32, run.major)[: run.size(16, 1)]:
                times[str(tile)] = tile_seconds(run, tile, x_BD, norms_B, c_KD)
        run.add(row)
    crowded(run)


def crowded(run: Run) -> None:
    """What 1 % of rows cost that have thousands of centroids nearly as near as the nearest."""
    n_rows, k, d = run.size(2**17, 20), run.size(20_000, 60), 128
    c_KD = run.unit(k, d)
    c_KD[: k // 3] = c_KD[0] + 3e-5 * run.normal(k // 3, d)
    plain_BD = run.unit(n_rows, d)
    crowded_BD = plain_BD.clone()
    n_crowded = max(n_rows // 100, 1)
    crowded_BD[:: n_rows // n_crowded] = c_KD[0] + 3e-5 * run.normal(
        len(range(0, n_rows, n_rows // n_crowded)), d
    )
    kernel = TritonKernel(n_rows, k, torch.float32, run.device)
    norms_B = plain_BD.new_ones(n_rows)
    times = [
        run.seconds(lambda: kernel.assign(x_BD, norms_B, c_KD))  # noqa: B023
        for x_BD in (plain_BD, crowded_BD)
    ]
    run.add({"crowded_rows": n_crowded, "rows": n_rows, "k": k, "d": d, "seconds_without": times[0],
             "seconds_with": times[1], "crowd_costs": times[1] / times[0] - 1})  # fmt: skip


def tile_seconds(
    run: Run, tile: Tile, x_BD: torch.Tensor, norms_B: torch.Tensor, c_KD: torch.Tensor
) -> float | str:
    """Seconds with another tile, or why it does not run: some need more than a processor has."""
    kernel = TritonKernel(len(x_BD), len(c_KD), torch.float32, run.device, tile=tile)
    try:
        return run.seconds(lambda: kernel.assign(x_BD, norms_B, c_KD))
    except (RuntimeError, triton.runtime.errors.OutOfResources) as error:
        return f"{type(error).__name__}: {error}"[:300]


def assign_float32(run: Run) -> dict[str, Any]:
    """Exact labels of float32 rows beside torch's product in full float32."""
    n_rows, k, d = run.size(2**18, 64), run.size(4096, 100), 128
    x_BD, c_KD = run.normal(n_rows, d), run.normal(k, d)
    norms_B = x_BD.square().sum(dim=1)
    kernel = TritonKernel(n_rows, k, torch.float32, run.device)
    ours = run.seconds(lambda: kernel.assign(x_BD, norms_B, c_KD))

    def chunked() -> None:
        c_sq_K = c_KD.square().sum(dim=1)
        for part in x_BD.split(2**15):
            torch.addmm(c_sq_K, part, c_KD.T, alpha=-2).argmin(dim=1)

    theirs = run.seconds(chunked)
    return {
        "rows": n_rows, "k": k, "d": d, "exact_s": ours, "torch_mm_argmin_s": theirs,
        "ratio": theirs / ours,
    }  # fmt: skip


def update(run: Run) -> None:
    """Add rows to sums and counts, beside a copy of their bytes."""
    n_rows, d = run.size(2**21, 70), 128
    x_BD = run.normal(n_rows, d)
    limit = run.ceiling("copy_bytes_per_s")
    for k in (64, 1024, 20_000):
        generator = torch.Generator(run.device).manual_seed(k)
        labels_B = torch.randint(k, (n_rows,), generator=generator, device=run.device)
        sums_KD = torch.zeros((k, d), dtype=torch.float64, device=run.device)
        counts_K = torch.zeros(k, dtype=torch.int64, device=run.device)
        kernel = TritonKernel(n_rows, k, torch.float32, run.device)
        whole_s = run.seconds(
            lambda: kernel.accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K)  # noqa: B023
        )
        sort_s = run.seconds(lambda: torch.sort(labels_B.short(), stable=True))  # noqa: B023
        share = x_BD.nbytes / whole_s / limit
        run.add(
            {
                "rows": n_rows, "k": k, "d": d, "seconds": whole_s, "sort_s": sort_s,
                "share_of_copy_rate": share,
            }
        )  # fmt: skip


def small(run: Run) -> None:
    """Assign and add up rows of few features and centroids, beside a copy of their bytes."""
    n_rows = run.size(2**22, 70)
    limit = run.ceiling("copy_bytes_per_s")
    shapes = ((16, 3), (16, 128), (64, 16), (64, 64), (128, 32), (256, 32), (256, 128))
    for k, d in shapes[:2] if run.is_rehearsal else shapes:
        x_BD, c_KD = run.normal(n_rows, d), run.normal(k, d)
        norms_B = x_BD.square().sum(dim=1)
        sums_KD = x_BD.new_zeros((k + 1, d), dtype=torch.float64)
        counts_K = torch.zeros(k + 1, dtype=torch.int64, device=run.device)
        kernel = TritonKernel(n_rows, k, torch.float32, run.device)
        given = Rows(x_BD, norms_B)

        def in_two() -> None:
            labels_B, _ = kernel.assign(x_BD, norms_B, c_KD)  # noqa: B023
            kernel.accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K)  # noqa: B023

        step_s = run.seconds(
            lambda: kernel.step(given, c_KD, sums_KD=sums_KD, counts_K=counts_K)  # noqa: B023
        )
        before = int(kernel.n_rechecked)
        kernel.step(given, c_KD, sums_KD=sums_KD, counts_K=counts_K)
        share = x_BD.nbytes / step_s / limit
        # Labels and distances are written too: 12 bytes a row.
        moved_share = (x_BD.nbytes + 12 * n_rows) / step_s / limit
        run.add(
            {
                "rows": n_rows, "k": k, "d": d, "one_read": fits_one_read(k, d, torch.float32),
                "step_s": step_s, "assign_then_add_s": run.seconds(in_two),
                "rechecked_share": (int(kernel.n_rechecked) - before) / n_rows,
                "share_of_copy_rate": share, "with_results": moved_share,
            }
        )  # fmt: skip


def iteration(run: Run) -> dict[str, Any]:
    """A whole iteration of Lloyd's algorithm in memory, as peers time theirs."""
    n_rows, k, d = run.size(2**20, 64), run.size(1024, 8), 128
    x_BD = run.normal(n_rows, d)
    c_KD, norms_B = x_BD[:k].clone(), x_BD.square().sum(dim=1)
    kernel = TritonKernel(n_rows, k, torch.float32, run.device)

    def ours() -> None:
        labels_B, _ = kernel.assign(x_BD, norms_B, c_KD)
        sums_KD = torch.zeros_like(c_KD, dtype=torch.float64)
        counts_K = torch.zeros_like(c_KD[:, 0], dtype=torch.int64)
        kernel.accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K)
        sums_KD / counts_K[:, None]

    return {
        "rows": n_rows, "k": k, "d": d, "streamkm_exact_s": run.seconds(ours),
        "peers": iteration_peers(x_BD, k),
    }  # fmt: skip
