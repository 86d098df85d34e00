"""The program: the command ``streamkm``, and ``python -m streamkm``."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line and end the process with its exit status."""
    status = _run()
    # os._exit, because sys.exit joins reader threads, and one may hang on its disk or server.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # The command line has reported it, if it could.
            stream.flush()
    os._exit(status)


def _run() -> int:
    status = 1
    # An interrupt may come during the imports, or just after an earlier one was answered.
    with suppress(KeyboardInterrupt):
        try:
            from streamkm.cli import main as run_command

            status = run_command()
        finally:
            # All is said and saved, so that another Ctrl-C must not print a traceback.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    return status


if __name__ == "__main__":
    main()
