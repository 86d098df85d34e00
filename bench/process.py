"""Peak resident memory of a command, as the kernel counts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["IMPORTED", "import_rss", "peak_rss"]

MIB = 1 << 20
ROOT = Path(__file__).parents[1]
#: What a run has imported by the time that it reads its first row.
IMPORTED = (
    "streamkm.cli", "streamkm.runs.fit", "streamkm.runs.predict", "streamkm.sources.zarr.source",
    "streamkm.sinks.registry", "torch", "zarr", "numcodecs.blosc", "safetensors.numpy", "tqdm",
)  # fmt: skip

#: A process's peak is never less than that of the process that starts it, so a small
#: one starts it. Linux gives the figure in KiB, macOS in bytes.
_LAUNCHER = """
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
print(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak_rss(*arguments: str) -> float:
    """Largest resident memory, in MiB, of this Python run with `arguments`.

    Raises
    ------
    RuntimeError
        If the command fails; the message ends with what it wrote to stderr.
    """
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER]
    done = subprocess.run(
        [*launcher, sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} failed: {done.stderr[-2000:]}")
    return int(done.stdout.split()[-1]) / MIB


def import_rss() -> float:
    """Largest resident memory, in MiB, of a process that only imports what a run imports."""
    return peak_rss("-c", "import " + ", ".join(IMPORTED))
