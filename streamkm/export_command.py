"""The command `export`: its options, and what it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkm.files import expanded
from streamkm.runs.exporting.targets import TARGETS

if TYPE_CHECKING:
    import argparse

__all__ = ["EXPORT_SUMMARY", "add_export_options", "run_export"]

EXPORT_SUMMARY = "Write the centroids of a run, and its rows, as another program takes them."


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    add = parser.add_argument
    add("run", metavar="RUN", type=expanded, help="folder of a finished run")
    add(
        "--to",
        choices=list(TARGETS),
        required=True,
        help="; ".join(f"{name} writes {target.summary}" for name, target in TARGETS.items()),
    )
    add(
        "--out",
        metavar="FILE",
        type=expanded,
        required=True,
        help="file to write; it must not exist",
    )
    add(
        "--partition",
        metavar="DIR",
        type=expanded,
        help="a partition by this run, written with --rows npy or --rows zarr: its rows fill the "
        "lists of the index (default: the lists are empty)",
    )
    add(
        "--on-disk",
        action="store_true",
        help="put the lists into FILE.lists, which faiss maps, and hold a piece of them in memory "
        "(default: the lists are in FILE, and in memory while it is written)",
    )


def run_export(arguments: argparse.Namespace) -> None:
    """Export a run as its arguments say."""
    from streamkm.runs.exporting.export import export

    names = ("partition", "on_disk")
    options = {name: getattr(arguments, name) for name in names}
    export(arguments.run, arguments.to, arguments.out, **options)
