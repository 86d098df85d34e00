"""``python -m streamkm``."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress


def _run() -> int:
    try:
        from streamkm.cli import main

        return main()
    except KeyboardInterrupt:  # During the imports, or while the last one was being answered.
        return 1


if __name__ == "__main__":
    status = _run()
    # All is said and saved. Whoever presses Ctrl-C again wants out, not a traceback, and must
    # not wait for a reader thread that is still waiting for its disk or server.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # Said already, if it could be.
            stream.flush()
    os._exit(status)
