"""Shows the progress of a run: a bar or lines on stderr, and records in metrics.jsonl.

A terminal gets a bar. Anything else gets a line after 5 seconds and then one every 30 seconds:
a bar would flood a log file, and silence looks like a hang. Callers ask the device for figures
only when a report is due, because each question holds it up.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from streamkm.files import LineFile
from streamkm.text import counted, format_bytes, now, plural

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from streamkm.sources import Source
    from streamkm.stream.stages import StageTimes

__all__ = ["Progress"]

logger = logging.getLogger("streamkm")

#: Seconds between records in metrics.jsonl, and between updates of the bar's figures.
REPORT_EVERY_S = 2.0
#: Seconds between lines where there is no terminal.
LINE_EVERY_S = 30.0
#: Seconds of a phase before which its rate means nothing.
RATED_AFTER_S = 0.1
#: Seconds until the first such line, which shows that the run works.
FIRST_LINE_S = 5.0


def _has_width(stream: TextIO) -> bool:
    """Whether `stream` is a terminal on which a bar can be drawn."""
    return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0


class Progress:
    """Progress of one command; use as a context manager."""

    def __init__(self, metrics: Path | None = None, *, quiet: bool = False) -> None:
        """Append records to the file `metrics`, if given; with `quiet` write nothing on stderr."""
        self._metrics = LineFile(metrics) if metrics else None
        self._is_refused = False
        self._quiet = quiet
        self._on_terminal = not quiet and _has_width(sys.stderr)
        self._bar: tqdm[Any] | None = None
        self._phase = ""
        self._last_report = time.monotonic()
        self._line_due = self._last_report + FIRST_LINE_S

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close_bar()
        if self._metrics:
            self._metrics.close()
            self._metrics = None

    @property
    def is_silent(self) -> bool:
        """Whether nothing that is said or recorded reaches anybody."""
        return self._quiet and self._metrics is None

    def say(self, message: str) -> None:
        """Write one line on stderr: above a terminal's bar, or after the time in a log.

        An empty one is not written.
        """
        if self._quiet or not message:
            return
        if self._bar is not None:
            self._bar.clear()
        # A log is read later, and beside those of other machines; a terminal is watched.
        stamp = "" if self._on_terminal else f"{now()} "
        with suppress(OSError):  # A log on a full disk is no reason to stop.
            sys.stderr.write(f"{stamp}{message}\n")
            sys.stderr.flush()
        if self._bar is not None:
            self._bar.refresh()

    def introduce(self, source: Source, notes: Sequence[str] = ()) -> None:
        """Say the shape and layout of `source`, then its own notes and `notes`."""
        spec = source.spec
        shape = f"{counted(spec.n_rows, 'row')} x {counted(spec.n_features, 'feature')}"
        size = format_bytes(spec.nbytes)
        self.say(f"{source.name}: {shape}, {spec.dtype}, {size} ({spec.layout})")
        for note in (*source.notes(), *notes):
            self.say(f"note: {note}")

    def begin(
        self, phase: str, total: int, times: StageTimes, *, done: int = 0, unit: str = "row"
    ) -> None:
        """Start a phase of `total` units; an earlier attempt did `done` of them."""
        self._close_bar()
        self._phase, self._total, self._times = phase, total, times
        self._done = self._before = done
        self._began, self._bytes_before = time.monotonic(), times.bytes_read
        self._unit = unit
        if self._on_terminal:
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=phase,
                unit=unit,
                unit_scale=True,
                dynamic_ncols=True,
                leave=False,
            )

    def advance(self, n_rows: int) -> None:
        """Count `n_rows` more units as done."""
        self._done += n_rows
        if self._bar is not None:
            self._bar.update(n_rows)

    def is_due(self) -> bool:
        """Whether it is time to call `report`, whose figures hold the device up."""
        return time.monotonic() - self._last_report >= REPORT_EVERY_S

    def report(self, figures: Mapping[str, float | int | str | None]) -> None:
        """Write a record with `figures` and refresh what is shown."""
        at = self._last_report = time.monotonic()
        elapsed = max(at - self._began, 1e-9)
        rate = (self._done - self._before) / elapsed
        bytes_per_s = (self._times.bytes_read - self._bytes_before) / elapsed
        self.record(
            {
                "phase": self._phase,
                **figures,
                "rows": self._done,
                "elapsed_s": round(elapsed, 3),
                "rows_per_s": round(rate, 1),
                "bytes_per_s": round(bytes_per_s, 1),
                "stages": self._times.as_dict(),
            }
        )
        inertia = figures.get("inertia_per_row")
        text = f"inertia/row {inertia:.6g}" if isinstance(inertia, float) else ""
        if self._bar is not None and text:
            self._bar.set_postfix_str(text)
        if not self._on_terminal and at >= self._line_due and elapsed >= RATED_AFTER_S:
            self._line_due = at + LINE_EVERY_S
            left = (self._total - self._done) / rate if rate else float("inf")
            # The last line of a phase comes before its end: "0 s left" would be untrue.
            left = max(left, 1.0)
            read = f"{format_bytes(bytes_per_s)}/s, " if bytes_per_s else ""
            self.say(
                f"{self._phase}: {self._done:,} of {self._total:,} {plural(self._unit)} "
                f"({self._done / max(self._total, 1):.0%}), {rate:,.0f} {plural(self._unit)}/s, "
                f"{read}about {left:,.0f} s left" + (f", {text}" if text else "")
            )

    def record(self, figures: Mapping[str, object]) -> None:
        """Append a record to metrics.jsonl; if the disk refuses it, warn and go on."""
        if self._metrics:
            try:
                self._metrics.append(json.dumps({"time": round(time.time(), 3), **figures}))
                self._is_refused = False
            except OSError as error:
                if not self._is_refused:  # Warn once, not every two seconds.
                    logger.warning("records of progress are lost: %s", error)
                self._is_refused = True

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
