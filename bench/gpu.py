"""Check and measure the Triton kernels on a CUDA GPU: scripts/gpu

Correctness comes first. Times are medians by device events; every rate stands
beside the card's own ceilings, a bfloat16 matrix product and a copy, measured in
the same run. A peer that is installed is timed beside; one that fails is reported
with its error. ``--rehearse`` goes through everything at toy sizes on the CPU, with
interpreted kernels: it shows that the script works and measures nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

if "--rehearse" in sys.argv:
    # Read when triton is imported.
    os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton

from bench.gpu_fit import measure_fits
from bench.gpu_peers import assign_peers, iteration_peers
from streamkm.kernels import Rows
from streamkm.kernels.triton import TritonKernel, fits_one_read
from streamkm.kernels.triton_tiles import Tile, tiles

ROOT = Path(__file__).parents[1]
#: Shares of the bfloat16 matrix rate that assign has to reach, by the number of features.
ASSIGN_TARGETS = {64: 0.45, 128: 0.60, 256: 0.75}


@dataclass
class Run:
    """One run of the script: what it measures with, until when, and what it has found."""

    device: torch.device
    ends_at: float
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def is_rehearsal(self) -> bool:
        return self.device.type == "cpu"

    def size(self, full: int, toy: int) -> int:
        return toy if self.is_rehearsal else full

    def seconds(self, action: Callable[[], object]) -> float:
        """Median time of `action` on the device."""
        if self.is_rehearsal:
            start = time.perf_counter()
            action()
            return time.perf_counter() - start
        milliseconds: float = triton.testing.do_bench(
            action, warmup=20, rep=150, return_mode="median"
        )
        return milliseconds / 1e3

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(sum(shape))
        values = torch.randn(shape, generator=generator, device=self.device)
        return values.to(dtype)

    def unit(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.nn.functional.normalize(self.normal(*shape)).to(dtype)

    def section(self, name: str, measure: Callable[[Run], object]) -> None:
        """Measure, unless the time is up; a failure costs this section only, and is reported."""
        if time.monotonic() > self.ends_at:
            self.results[name] = "left out: the time was up"
        else:
            started = time.monotonic()
            try:
                self.results[name] = measure(self)
            except (
                RuntimeError,
                ValueError,
                OSError,
                ImportError,
                subprocess.SubprocessError,
            ) as error:
                self.results[name] = {"failed": f"{type(error).__name__}: {error}"[:2000]}
            print(f"{name} ({time.monotonic() - started:.0f} s):", flush=True)
        print(json.dumps(self.results[name], indent=1), flush=True)


def check(run: Run) -> dict[str, Any]:
    """The tests that need a GPU."""
    if run.is_rehearsal:
        return {"passed": True, "output": "left out: a rehearsal has no GPU"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider",
         "-o", "addopts=", "-o", "filterwarnings=default", "--import-mode=importlib", "-rfE",
         "--no-header",
         "tests/kernels/test_triton.py",
         "tests/runs/test_on_gpu.py"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=200,
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
    )  # fmt: skip
    return {"passed": done.returncode == 0, "output": done.stdout[-3000:] + done.stderr[-1000:]}


def ceilings(run: Run) -> dict[str, float]:
    n = run.size(8192, 128)
    a, b = run.normal(n, n, dtype=torch.bfloat16), run.normal(n, n, dtype=torch.bfloat16)
    product_s = run.seconds(lambda: a @ b)
    source = torch.ones(run.size(2**30, 2**16), dtype=torch.float32, device=run.device)
    target = torch.empty_like(source)
    copy_s = run.seconds(lambda: target.copy_(source))
    return {
        "bf16_matrix_flops": 2 * n**3 / product_s,
        "copy_bytes_per_s": 2 * source.nbytes / copy_s,
    }


def assign(run: Run) -> list[dict[str, Any]]:
    """k = 20,000, bfloat16 rows of unit length: exact, fast, other tiles, peers."""
    n_rows, k = run.size(2**18, 64), run.size(20_000, 100)
    limit = run.results["ceilings"]["bf16_matrix_flops"]
    rows = []
    for d, target in ASSIGN_TARGETS.items():
        x_BD, c_KD = run.unit(n_rows, d, dtype=torch.bfloat16), run.unit(k, d)
        norms_B = x_BD.float().square().sum(dim=1)
        exact = TritonKernel(n_rows, k, torch.float32, run.device)
        fast = TritonKernel(n_rows, k, torch.float32, run.device, "fast")
        times: dict[str, float | str] = {
            "exact": run.seconds(lambda: exact.assign(x_BD, norms_B, c_KD)),  # noqa: B023
            "fast": run.seconds(lambda: fast.assign(x_BD, norms_B, c_KD)),  # noqa: B023
        }
        before = int(exact.n_rechecked)
        exact.assign(x_BD, norms_B, c_KD)
        rechecked = (int(exact.n_rechecked) - before) / n_rows
        for tile in tiles(d, torch.float32, run.major):
            times[str(tile)] = tile_seconds(run, tile, x_BD, norms_B, c_KD)
        peers = assign_peers(run.seconds, x_BD, c_KD.bfloat16())
        rate = 2 * n_rows * k * d / limit
        share, fast_share = (rate / float(times[name]) for name in ("exact", "fast"))
        rows.append(
            {
                "rows": n_rows, "k": k, "d": d, "seconds": times, "peers": peers,
                "share_of_matrix_rate": {"exact": share, "fast": fast_share},
                "target": {"share": target, "reached": share >= target},
                "exact_costs": fast_share / share - 1, "rechecked_share": rechecked,
            }
        )  # fmt: skip
    return rows


def tile_seconds(
    run: Run, tile: Tile, x_BD: torch.Tensor, norms_B: torch.Tensor, c_KD: torch.Tensor
) -> float | str:
    """Time with another tile, or why it does not run: some need more than a processor has."""
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
    ratio = theirs / ours
    return {
        "rows": n_rows, "k": k, "d": d, "exact_s": ours, "torch_mm_argmin_s": theirs,
        "ratio": ratio, "target": {"ratio": 2.0, "reached": ratio >= 2.0},
    }  # fmt: skip


def update(run: Run) -> list[dict[str, Any]]:
    """Sums and counts, by the bytes of the rows; a hundred runs are compared by the checks."""
    n_rows, d = run.size(2**21, 70), 128
    x_BD = run.normal(n_rows, d)
    limit = run.results["ceilings"]["copy_bytes_per_s"]
    rows = []
    for k in (64, 1024, 20_000):
        labels_B = torch.randint(k, (n_rows,), device=run.device)
        sums_KD = torch.zeros((k, d), device=run.device)
        counts_K = torch.zeros(k, dtype=torch.int64, device=run.device)
        kernel = TritonKernel(n_rows, k, torch.float32, run.device)
        whole_s = run.seconds(
            lambda: kernel.accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K)  # noqa: B023
        )
        sort_s = run.seconds(lambda: torch.sort(labels_B.short(), stable=True))  # noqa: B023
        share = x_BD.nbytes / whole_s / limit
        rows.append(
            {
                "rows": n_rows, "k": k, "d": d, "seconds": whole_s, "sort_s": sort_s,
                "share_of_copy_rate": share, "target": {"share": 0.6, "reached": share >= 0.6},
            }
        )  # fmt: skip
    return rows


def small(run: Run) -> list[dict[str, Any]]:
    """Assign and update where rows are few features and centroids: in bytes of the rows."""
    n_rows = run.size(2**22, 70)
    limit = run.results["ceilings"]["copy_bytes_per_s"]
    rows = []
    for k, d in ((16, 3), (16, 128), (64, 16), (64, 64), (128, 32), (256, 32), (256, 128)):
        x_BD, c_KD = run.normal(n_rows, d), run.normal(k, d)
        norms_B = x_BD.square().sum(dim=1)
        sums_KD = x_BD.new_zeros((k + 1, d))
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
        # Labels and distances are written too: 12 bytes of every row.
        moved_share = (x_BD.nbytes + 12 * n_rows) / step_s / limit
        rows.append(
            {
                "rows": n_rows, "k": k, "d": d, "one_read": fits_one_read(k, d, torch.float32),
                "step_s": step_s, "assign_then_add_s": run.seconds(in_two),
                "rechecked_share": (int(kernel.n_rechecked) - before) / n_rows,
                "share_of_copy_rate": share, "with_results": moved_share,
                "target": {"share": 0.7, "reached": share >= 0.7},
            }
        )  # fmt: skip
    return rows


def iteration(run: Run) -> dict[str, Any]:
    """A whole iteration of Lloyd's algorithm in memory, as peers time theirs."""
    n_rows, k, d = run.size(2**20, 64), run.size(1024, 8), 128
    x_BD = run.normal(n_rows, d)
    c_KD, norms_B = x_BD[:k].clone(), x_BD.square().sum(dim=1)
    kernel = TritonKernel(n_rows, k, torch.float32, run.device)

    def ours() -> None:
        labels_B, _ = kernel.assign(x_BD, norms_B, c_KD)
        sums_KD, counts_K = torch.zeros_like(c_KD), torch.zeros_like(c_KD[:, 0], dtype=torch.int64)
        kernel.accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K)
        sums_KD / counts_K[:, None]

    return {
        "rows": n_rows, "k": k, "d": d, "streamkm_exact_s": run.seconds(ours),
        "peers": iteration_peers(x_BD, k),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/gpu", description=__doc__)
    parser.add_argument(
        "--out", type=Path, help="results (bench/results/gpu-<name of the GPU>.json)"
    )
    parser.add_argument("--data", type=Path, default=ROOT / "bench" / ".data", help="for arrays")
    parser.add_argument("--minutes", type=float, default=7, help="begin nothing later (7)")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes on the CPU")
    arguments = parser.parse_args()
    if not arguments.rehearse and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no CUDA GPU; --rehearse needs none")
    device = torch.device("cpu" if arguments.rehearse else "cuda")
    name = "rehearsal" if arguments.rehearse else torch.cuda.get_device_name()
    run = Run(device, time.monotonic() + 60 * arguments.minutes)
    run.results |= {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "gpu": name,
        "measured_on_a_gpu": not arguments.rehearse, "python": platform.python_version(),
        "torch": torch.__version__, "triton": triton.__version__,
        "peers_installed": [
            peer for peer in ("flash_kmeans", "flashlib", "fastkmeans")
            if importlib.util.find_spec(peer)
        ],
    }  # fmt: skip
    out = arguments.out or ROOT / "bench" / "results" / f"gpu-{name.replace(' ', '-')}.json"
    sections: dict[str, Callable[[Run], object]] = {
        "checks": check, "ceilings": ceilings, "assign": assign, "assign_float32": assign_float32,
        "update": update, "small": small, "iteration": iteration,
        "fit": lambda run: measure_fits(run.device, arguments.data, toy=run.is_rehearsal),
    }  # fmt: skip
    for title, measure in sections.items():
        run.section(title, measure)
        # After every section: what was measured stays, whatever comes next.
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(run.results, indent=1) + "\n")
    print(f"written: {out}")
    failed = [title for title in sections if "failed" in json.dumps(run.results[title])[:12]]
    return 1 if failed or not run.results["checks"].get("passed") else 0


if __name__ == "__main__":
    sys.exit(main())
