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

from streamkm.machine import n_cores

__all__ = ["CHECKS_S", "run_checks"]

ROOT = Path(__file__).parents[1]
#: Seconds that the tests may take.
CHECKS_S = 150
#: Characters that are kept of what they print: its end, where the failures are.
MOST_OUTPUT = 20_000
#: Every file with tests that need a GPU.
TESTS = (
    "tests/kernels/triton/test_kernel.py",
    "tests/kernels/test_reference.py",
    "tests/runs/test_on_gpu.py",
    "tests/estimators/test_inputs.py",
)


def run_checks(seconds: float = CHECKS_S) -> dict[str, Any]:
    """Whether the tests pass within `seconds`, and what they print."""
    # Compiling takes most of the time, so there is a process a core, up to 12.
    workers = str(min(12, n_cores()))
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
    # The status is 0 even if all tests are skipped.
    passed = status == 0 and re.search(r"\b\d+ passed", said) is not None
    return {"passed": passed, "status": status, "output": said}
