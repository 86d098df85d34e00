"""The report of a dry run: facts, notes against the run, and errors that forbid it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streamkm.errors import RunError
from streamkm.text import format_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.errors import InputError

__all__ = ["DryRun", "format_duration"]


@dataclass
class DryRun:
    """What a command would do, for people."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    """(name, value) of each line."""
    notes: list[str] = field(default_factory=list)
    """What speaks against the run without forbidding it."""
    errors: list[InputError] = field(default_factory=list)
    """What forbids it."""

    def add_space(self, out: Path, most: int, what: str, *, least: int) -> None:
        """Compare the bytes of `what` with the free space where `out` will be.

        The run is forbidden if less than `least` bytes are free. It gets a note if less than
        `most` are: it may get through.
        """
        whole = out.absolute()
        there = next(path for path in (whole, *whole.parents) if path.exists())
        free = shutil.disk_usage(there).free
        self.facts.append(
            (
                "disk",
                f"{what}: {format_bytes(most)} at most, {format_bytes(free)} free at {there}",
            )
        )
        if not os.access(there, os.W_OK):
            self.errors.append(RunError(f"{out}: {there} may not be written to; choose another"))
        elif least > free:
            self.errors.append(
                RunError(
                    f"{out}: {what} take at least {format_bytes(least)}, {format_bytes(free)} are "
                    "free there; free space, or choose another place"
                )
            )
        elif most > free:
            self.notes.append(
                f"{what} take up to {format_bytes(most)} at {out}, {format_bytes(free)} are free "
                "there: free space, or what does not fit will not be written"
            )

    def __str__(self) -> str:
        lines = [f"{name:<12} {value}" for name, value in self.facts]
        lines += [f"note         {note}" for note in self.notes]
        # The command ends with the first error, which need not be read twice.
        lines += ["forbids      the error that follows on stderr"] if self.errors else []
        lines += [f"forbids too  {error.for_command_line}" for error in self.errors[1:]]
        if not self.notes and not self.errors:
            lines.append("note         nothing that was looked at speaks against this run")
        return "\n".join(lines)


def format_duration(seconds: float) -> str:
    """``42 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
