"""Answers signals while an estimator fits."""

from __future__ import annotations

import logging
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from streamkm.errors import Interrupted
from streamkm.runs.reporting.signals import StopRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["stoppable"]

logger = logging.getLogger("streamkm")


@contextmanager
def stoppable(*, is_saved: bool) -> Iterator[StopRequest]:
    """Answer a signal between two batches; if nothing was saved, pass it on.

    A KeyboardInterrupt at any other time could leave a lock locked, and reader threads would wait
    for it forever.
    """
    # Without a checkpoint a warning of the batch system does what it would do without streamkm.
    stop_request = StopRequest(with_warnings=is_saved)
    try:
        with stop_request:
            yield stop_request
    except Interrupted as interrupted:
        if not is_saved and stop_request.signal_name == "SIGINT":
            # Raised, not signalled, because a process in the background may ignore SIGINT.
            raise KeyboardInterrupt from None
        if not is_saved and stop_request.signal_name is not None:
            signal.raise_signal(signal.Signals[stop_request.signal_name])
        # If nobody catches it, Python ends with its status and prints nothing.
        logger.warning("%s", interrupted)
        raise
