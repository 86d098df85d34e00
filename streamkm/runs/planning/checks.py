"""Refuses a fit or an output before anything is read or written; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkm.errors import ConfigError, Option
from streamkm.sources.within import would_take

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.config import FitConfig
    from streamkm.sources.base import ArraySpec, Source

__all__ = ["check_fit", "check_outside"]


def check_fit(spec: ArraySpec, config: FitConfig, name: str) -> None:
    """Refuse a fit that the array's shape rules out; `name` is the source's."""
    # Few new rows may come after many.
    if config.k > spec.n_rows and config.from_run is None:
        raise ConfigError(
            f"k must be at most the number of rows: {name} has {spec.n_rows:,}, k is {config.k:,}"
        )


def check_outside(source: Source, **outputs: Path | None) -> None:
    """Refuse an output that would become part of `source`; each keyword names a setting."""
    for name, path in outputs.items():
        if path is not None and would_take(source, path):
            raise ConfigError(
                Option(name, str(path)),
                f" would become part of the source {source.name}, whose data would then count as "
                "changed; choose a place outside of it",
            )
