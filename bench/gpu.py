"""Check and measure the Triton kernels on a CUDA GPU: scripts/gpu

Correctness is checked first. Times are medians by device events. Every rate stands
beside a ceiling of the card that is measured in the same run: a bfloat16 matrix product
or a copy. Peers that are installed are timed too; one that fails is reported with its
error. Every part runs in a process of its own, within a time limit. A part that crashes
the driver, hangs or is killed loses its own results only. ``--rehearse`` goes through
everything at toy sizes on the CPU, with interpreted kernels: it shows that the script
works, and measures nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
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

from bench.gpu_checks import CHECKS_S, run_checks
from bench.gpu_fit import measure_fits
from bench.gpu_peers import assign_peers, iteration_peers
from streamkm.kernels import Rows
from streamkm.kernels.triton.kernel import TritonKernel
from streamkm.kernels.triton.tiles import Tile, fits_one_read, tiles

ROOT = Path(__file__).parents[1]
#: Shares of the bfloat16 matrix rate that assign has to reach, by the number of features.
ASSIGN_TARGETS = {64: 0.45, 128: 0.60, 256: 0.75}
LEFT_OUT = {"passed": True, "output": "left out: a rehearsal has no GPU"}


@dataclass
class Run:
    """One part, where it runs, and the results so far."""

    part: str
    device: torch.device
    results: dict[str, Any]
    out: Path

    @property
    def is_rehearsal(self) -> bool:
        return self.device.type == "cpu"

    @property
    def major(self) -> int:
        """First number of the compute capability; Hopper's in a rehearsal."""
        return 9 if self.is_rehearsal else torch.cuda.get_device_capability()[0]

    def add(self, row: dict[str, Any]) -> None:
        """Write one of the part's results at once: the part may be killed before its end."""
        self.results.setdefault(self.part, []).append(row)
        write_results(self.out, self.results)

    def size(self, full: int, toy: int) -> int:
        return toy if self.is_rehearsal else full

    def seconds(self, action: Callable[[], object]) -> float:
        """Median seconds of `action` on the device."""
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


def assign(run: Run) -> None:
    """Assign bfloat16 rows of unit length at k = 20,000: exact, fast, other tiles, peers."""
    n_rows, k = run.size(2**18, 64), run.size(20_000, 100)
    limit = run.results["ceilings"]["bf16_matrix_flops"]
    for d, target in ASSIGN_TARGETS.items():
        x_BD, c_KD = run.unit(n_rows, d, dtype=torch.bfloat16), run.unit(k, d)
        norms_B = x_BD.float().square().sum(dim=1)
        # Tuned, as a run tunes them on its first batch.
        exact = TritonKernel(n_rows, k, torch.float32, run.device, tune=True)
        fast = TritonKernel(n_rows, k, torch.float32, run.device, "fast", tune=True)
        times: dict[str, float | str] = {
            "exact": run.seconds(lambda: exact.assign(x_BD, norms_B, c_KD)),  # noqa: B023
            "fast": run.seconds(lambda: fast.assign(x_BD, norms_B, c_KD)),  # noqa: B023
        }
        before = int(exact.n_rechecked)
        exact.assign(x_BD, norms_B, c_KD)
        rechecked = (int(exact.n_rechecked) - before) / n_rows
        for tile in tiles(d, torch.float32, run.major)[: run.size(16, 2)]:
            times[str(tile)] = tile_seconds(run, tile, x_BD, norms_B, c_KD)
        peers = assign_peers(run.seconds, x_BD, c_KD.bfloat16())
        rate = 2 * n_rows * k * d / limit
        share, fast_share = (rate / float(times[name]) for name in ("exact", "fast"))
        run.add(
            {
                "rows": n_rows, "k": k, "d": d, "seconds": times, "peers": peers,
                "share_of_matrix_rate": {"exact": share, "fast": fast_share},
                "target": {"share": target, "reached": share >= target},
                "exact_costs": fast_share / share - 1, "rechecked_share": rechecked,
            }
        )  # fmt: skip


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
    ratio = theirs / ours
    return {
        "rows": n_rows, "k": k, "d": d, "exact_s": ours, "torch_mm_argmin_s": theirs,
        "ratio": ratio, "target": {"ratio": 2.0, "reached": ratio >= 2.0},
    }  # fmt: skip


def update(run: Run) -> None:
    """Add rows to sums and counts, beside a copy of their bytes."""
    n_rows, d = run.size(2**21, 70), 128
    x_BD = run.normal(n_rows, d)
    limit = run.results["ceilings"]["copy_bytes_per_s"]
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
                "share_of_copy_rate": share, "target": {"share": 0.6, "reached": share >= 0.6},
            }
        )  # fmt: skip


def small(run: Run) -> None:
    """Assign and add up rows of few features and centroids, beside a copy of their bytes."""
    n_rows = run.size(2**22, 70)
    limit = run.results["ceilings"]["copy_bytes_per_s"]
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
                "target": {"share": 0.7, "reached": share >= 0.7},
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


PARTS: dict[str, tuple[Callable[[Run, Path], object], float]] = {
    "checks": (lambda run, _: LEFT_OUT if run.is_rehearsal else run_checks(), CHECKS_S + 20),
    "ceilings": (lambda run, _: ceilings(run), 40),
    "assign": (lambda run, _: assign(run), 100),
    "assign_float32": (lambda run, _: assign_float32(run), 40),
    "update": (lambda run, _: update(run), 40),
    "small": (lambda run, _: small(run), 60),
    "iteration": (lambda run, _: iteration(run), 60),
    "fit": (lambda run, data: measure_fits(run.device, data, toy=run.is_rehearsal), 120),
}
"""The parts in their order, each with the seconds that it may take."""


def measure_part(name: str, device: torch.device, out: Path, data: Path) -> int:
    """Add one part to the results in `out`; a failure is a result too."""
    results = json.loads(out.read_text())
    try:
        found = PARTS[name][0](Run(name, device, results, out), data)
        results[name] = results[name] if found is None else found
    except Exception as error:  # noqa: BLE001  # whatever it is, it goes into the results
        traceback.print_exc()
        why = f"{type(error).__name__}: {error}"[:2000]
        results[name] = {"failed": why, "before": results.get(name)}
    write_results(out, results)
    return 1 if has_failed(results[name]) else 0


def measure_parts(arguments: argparse.Namespace, out: Path) -> int:
    """Run all parts, each in a process of its own, until the time is up."""
    ends_at = time.monotonic() + 60 * arguments.minutes
    for name, (_, limit) in PARTS.items():
        left = min(limit, ends_at - time.monotonic())
        started = time.monotonic()
        why: str | None = "left out: the time was up"
        if left >= 5:
            options = ["--rehearse"] if arguments.rehearse else []
            command = [sys.executable, "-u", "-m", "bench.gpu", "--part", name, *options,
                       "--out", str(out), "--data", str(arguments.data)]  # fmt: skip
            why = run_limited(command, left)
        results = json.loads(out.read_text())
        if why is not None and not has_failed(results.get(name)):
            results[name] = {"failed": why, "before": results.get(name)}
            write_results(out, results)
        print(f"{name} ({time.monotonic() - started:.0f} s):", flush=True)
        print(json.dumps(results[name], indent=1), flush=True)
    results = json.loads(out.read_text())
    print(f"written: {out}")
    failed = [name for name in PARTS if has_failed(results[name])]
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def run_limited(command: list[str], seconds: float) -> str | None:
    """Run a command, end it and all that it started in time, and return why it failed, or None."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"not done after {seconds:.0f} s"
    finally:
        # What it started must not run beside the next part.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return None if status == 0 else f"ended with status {status}"


def has_failed(result: object) -> bool:
    return isinstance(result, dict) and ("failed" in result or result.get("passed") is False)


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Write the file whole or not at all: a part may be killed while it writes."""
    temporary = out.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(out)


def about(name: str, *, rehearsal: bool) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "gpu": name,
        "measured_on_a_gpu": not rehearsal, "python": platform.python_version(),
        "torch": torch.__version__, "cuda": torch.version.cuda, "triton": triton.__version__,
        # Without a compiler, Triton cannot build what launches a kernel.
        "compiler": next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None),
        "peers_installed": [
            peer for peer in ("flash_kmeans", "flashlib", "fastkmeans")
            if importlib.util.find_spec(peer)
        ],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/gpu", description=__doc__)
    parser.add_argument(
        "--out", type=Path, help="results (bench/results/gpu-<name of the GPU>.json)"
    )
    parser.add_argument("--data", type=Path, default=ROOT / "bench" / ".data", help="for arrays")
    parser.add_argument("--minutes", type=float, default=8.5, help="end after (8.5)")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--part", choices=PARTS, help="only this one, into the results in --out")
    arguments = parser.parse_args()
    if not arguments.rehearse and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no CUDA GPU; --rehearse needs none")
    device = torch.device("cpu" if arguments.rehearse else "cuda")
    name = "rehearsal" if arguments.rehearse else torch.cuda.get_device_name()
    out = arguments.out or ROOT / "bench" / "results" / f"gpu-{name.replace(' ', '-')}.json"
    out, arguments.data = out.absolute(), arguments.data.absolute()
    if arguments.part:
        return measure_part(arguments.part, device, out, arguments.data)
    out.parent.mkdir(parents=True, exist_ok=True)
    arguments.data.mkdir(parents=True, exist_ok=True)
    # Some machines have no home that can be written to, and earlier tunings must not count.
    os.environ["TRITON_CACHE_DIR"] = str(arguments.data / "triton")
    os.environ["XDG_CACHE_HOME"] = str(arguments.data / "cache")
    write_results(out, about(name, rehearsal=arguments.rehearse))
    return measure_parts(arguments, out)


if __name__ == "__main__":
    sys.exit(main())
