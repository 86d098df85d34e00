"""The tests that need a GPU, as one part of scripts/gpu."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["CHECKS_S", "run_checks"]

ROOT = Path(__file__).parents[1]
#: Seconds that they may take.
CHECKS_S = 200
#: What is kept of what they print: its end, where the failures are.
MOST_OUTPUT = 20_000
TESTS = ("tests/kernels/triton/test_kernel.py", "tests/runs/test_on_gpu.py")


def run_checks(seconds: float = CHECKS_S) -> dict[str, Any]:
    """Whether they pass, and what they print until the time is up."""
    # Compiling takes most of the time: as many at once as the processor has cores for.
    workers = str(min(12, os.cpu_count() or 1))
    parallel = ["-n", workers] if importlib.util.find_spec("xdist") else []
    command = [
        sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *parallel,
        "-o", "addopts=", "-o", "filterwarnings=default", "--import-mode=importlib", "-rfE",
        "--no-header", "--tb=short", *TESTS,
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    status: int | str
    with tempfile.TemporaryFile() as output:
        try:
            status = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
                check=False, timeout=seconds,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            status = f"not done after {seconds:.0f} s"
        output.seek(0)
        said = output.read().decode(errors="replace")[-MOST_OUTPUT:]
    # All of them skipped is status 0 too.
    passed = status == 0 and re.search(r"\b\d+ passed", said) is not None
    return {"passed": passed, "status": status, "output": said}
