"""The table of what a run can be exported to; imports no torch.

A line names the function that writes, as text: ``--help`` must not wait for torch, and the library
that a target needs is imported when it is written.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """One line of `TARGETS`."""

    home: str
    """``module:function`` of what writes it; takes an `streamkm.runs.exporting.export.Export`."""
    summary: str
    """What is written, for the help."""
    package: str
    """The package that it needs."""
    install: str
    """What pip is asked for, if it is missing."""


#: The targets by the name that ``--to`` takes.
TARGETS = {
    "faiss": Target(
        "streamkm.runs.exporting.faiss_index:write_faiss",
        "an IndexIVFFlat, whose coarse quantizer is the centroids",
        package="faiss",
        install="faiss-cpu",
    ),
}
