"""Check and measure the Triton kernels on a CUDA GPU: scripts/gpu

Correctness is checked first. Times are medians by device events. Every rate stands
beside a ceiling of the card that is measured in the same run: a bfloat16 matrix product
or a copy. Peers that are installed are timed too; one that fails is reported with its
error. Every part runs in a process of its own, within a time limit. A part that crashes
the driver, hangs or is killed loses its own results only. ``--rehearse`` goes through
everything at toy sizes on the CPU, with interpreted kernels and in one process: it shows
that the script works, and measures nothing. At the end a table says which target was reached.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

if __name__ == "__main__":
    from bench.gpu_needs import check_needs

    check_needs()
if "--rehearse" in sys.argv:
    # Read when triton is imported.
    os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton

from bench import gpu_kernels
from bench.gpu_checks import CHECKS_S, run_checks
from bench.gpu_fit import checkpoints, measure_fits, measure_predict
from bench.gpu_run import ROOT, Run, write_results
from bench.gpu_smoke import same_bits, smoke
from bench.gpu_targets import as_table, compare_targets

LEFT_OUT = {"passed": True, "output": "left out: a rehearsal has no GPU"}


class Part(NamedTuple):
    """What is measured, the seconds that it may take, and those that parts before leave to it."""

    measure: Callable[[Run], object]
    limit_s: float
    reserved_s: float = 0.0


PARTS: dict[str, Part] = {
    "smoke": Part(smoke, 60),
    "ceilings": Part(gpu_kernels.ceilings, 40),
    "assign": Part(gpu_kernels.assign, 100),
    "fits": Part(measure_fits, 150, reserved_s=130),
    "checks": Part(lambda run: LEFT_OUT if run.is_rehearsal else run_checks(), CHECKS_S + 20, 60),
    "update": Part(gpu_kernels.update, 25, 10),
    "small": Part(gpu_kernels.small, 30, 10),
    "iteration": Part(gpu_kernels.iteration, 30, 10),
    "assign_float32": Part(gpu_kernels.assign_float32, 20, 5),
    "same_bits": Part(same_bits, 15, 5),
    "predict": Part(measure_predict, 25, 10),
    "checkpoints": Part(checkpoints, 30, 10),
}
"""The parts in their order."""


def measure_part(name: str, device: torch.device, out: Path, data: Path) -> int:
    """Add one part to the results in `out`; a failure is a result too."""
    results = json.loads(out.read_text())
    try:
        found = PARTS[name].measure(Run(name, device, results, out, data))
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
    names = list(PARTS)
    for at, name in enumerate(names):
        later_s = sum(PARTS[other].reserved_s for other in names[at + 1 :])
        left = min(PARTS[name].limit_s, ends_at - later_s - time.monotonic())
        started = time.monotonic()
        why: str | None = "left out: the time was up"
        if arguments.rehearse and at > 0:
            # One part in a process shows that processes work.
            measure_part(name, torch.device("cpu"), out, arguments.data)
            why = None
        elif left >= 5:
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
    targets = compare_targets(results)
    results["targets"] = [{**row._asdict(), "verdict": row.verdict} for row in targets]
    write_results(out, results)
    print(as_table(targets))
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
    parser.add_argument("--minutes", type=float, default=7.0, help="end after (7)")
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
