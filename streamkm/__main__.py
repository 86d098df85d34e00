"""The program: the command ``streamkm``, and ``python -m streamkm``."""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import suppress
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line and end the process with its exit status."""
    _make_streams_usable()
    status = _run()
    # os._exit, because sys.exit joins reader threads, and one may hang on its disk or server.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # The command line has reported it, if it could.
            stream.flush()
    os._exit(status)


#: What the loader of libraries says where memory is refused.
_REFUSED = re.compile("failed to map segment|annot allocate memory")


def _make_streams_usable() -> None:
    """Open closed streams on the null device, and escape what a stream cannot encode.

    Where a descriptor is closed Python has None for its stream, and the next file that is opened
    gets its number. What a C library says on stderr would be written into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115  open to the end
        elif stream.errors == "strict":  # A path may be no text in the locale's encoding.
            stream.reconfigure(errors="backslashreplace")


def _run() -> int:
    status = 1
    # An interrupt may come during the imports, or just after an earlier one was answered.
    with suppress(KeyboardInterrupt):
        try:
            from streamkm.cli import main as run_command

            status = run_command()
        except (ImportError, MemoryError) as error:
            # Of libraries that are mapped when they are imported; the command knows its own.
            if isinstance(error, ImportError) and not _REFUSED.search(str(error)):
                raise
            sys.stderr.write(
                f"streamkm: no memory to load the libraries ({str(error) or 'MemoryError'}): "
                "raise the limit of address space (ulimit -v, or of the batch system)\n"
            )
        finally:
            # All is said and saved: another Ctrl-C must not print a traceback, and another
            # warning of a batch system must not change the status.
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                signal.signal(number, signal.SIG_IGN)
    return status


if __name__ == "__main__":
    main()
