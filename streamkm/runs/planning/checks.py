"""Refuses a fit or an output before anything is read or written; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkm.bounds import Bounds
from streamkm.errors import ConfigError, Option
from streamkm.sources.within import would_take

if TYPE_CHECKING:
    from pathlib import Path

    from streamkm.config import FitConfig
    from streamkm.sources.base import ArraySpec, Source

__all__ = ["check_fit", "check_outside"]

#: The algorithm by which a fit goes on from an earlier run.
GROWING = "minibatch"


def check_fit(spec: ArraySpec, config: FitConfig, name: str) -> None:
    """Refuse a fit that the array's shape or its settings rule out; `name` is the source's."""
    _check_growing(config)
    # Few new rows may come after many.
    if config.k > spec.n_rows and config.from_run is None:
        raise ConfigError(
            f"k must be at most the number of rows: {name} has {spec.n_rows:,}, k is {config.k:,}"
        )
    Bounds.of(config, spec.n_rows).check(config, spec.n_rows, name)


def _check_growing(config: FitConfig) -> None:
    """Refuse settings that a fit has no use for which goes on from an earlier run, or does not."""
    if config.from_run is None and config.half_life is not None:
        raise ConfigError(
            Option("half_life", config.half_life),
            " ages the rows of an earlier run: name it with ",
            Option("from_run"),
        )
    fixed = {"algorithm": GROWING, "init": "auto", "n_init": 1, "rate": "mean"}
    for name, needed in fixed.items() if config.from_run is not None else ():
        value = getattr(config, name)
        if value not in (None, needed):
            raise ConfigError(
                Option("from_run"),
                " goes on from centroids that are there, by mini-batches that count every row: "
                "leave ",
                Option(name, value),
                " out",
            )
    if config.from_run is not None and config.closing_pass:
        raise ConfigError(
            Option("from_run"),
            " goes on from the counts of an earlier run, and a closing pass would forget its rows: "
            "leave ",
            Option("closing_pass", value=True),
            " out",
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
