"""Reads sweep.json, the record of a sweep: which fits it has, their figures, what stands out."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from streamkm.clustering.choosing import space_of
from streamkm.errors import RunError
from streamkm.runs.sweeping.record import SWEEP, SweepFolder
from streamkm.sealed import DAMAGE, in_words

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["SweepFacts", "is_sweep", "read_sweep"]


@dataclass(frozen=True)
class SweepFacts:
    """What a sweep has found."""

    path: Path
    record: dict[str, Any]
    runs: list[dict[str, Any]]
    """``name``, ``k`` and ``seed`` of each fit; of several scales or metrics these too."""
    figures: list[dict[str, Any]]
    """Figures of each fit, K ascending; empty while the sweep is not finished."""
    stability: dict[int, dict[str, float]]
    """``mean`` and ``least`` adjusted Rand index of the seeds of each K; empty with one seed."""
    recommendation: dict[str, Any]
    """``k``, ``verdict`` and ``reasons``; empty while the sweep is not finished."""
    space: str = ""
    """The scale and the metric in words, of one `part` of several."""

    @property
    def parts(self) -> list[SweepFacts]:
        """The facts of each scale and metric: figures can be compared within one."""
        spaces = list(dict.fromkeys(map(space_of, self.runs)))
        if len(spaces) == 1:
            return [self]
        return [self._within(space) for space in spaces]

    def _within(self, space: tuple[str, str]) -> SweepFacts:
        def own(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
            return [row for row in rows if space_of(row) == space]

        said = own(self.recommendation.get("spaces", []))
        return SweepFacts(
            self.path, self.record, own(self.runs), own(self.figures),
            _stability(own(self.record.get("stability") or [])), said[0] if said else {},
            ", ".join(space),
        )  # fmt: skip

    @property
    def ks(self) -> list[int]:
        """The numbers of clusters, ascending."""
        return sorted({run["k"] for run in self.runs})

    @property
    def n_seeds(self) -> int:
        """Seeds of each K, at most."""
        return len({run["seed"] for run in self.runs})

    @property
    def is_exact(self) -> bool:
        """Whether the silhouette is the exact one, not the simplified."""
        return any(row.get("silhouette") is not None for row in self.figures)

    def silhouette_of(self, row: dict[str, Any]) -> float | None:
        """The silhouette of one fit: the exact one where there is any."""
        found: float | None = row["silhouette" if self.is_exact else "simplified_silhouette"]
        return found

    def mean_silhouette(self, k: int) -> float | None:
        """The mean silhouette of the seeds of `k` that have one."""
        known = [value for row in self.by_k(k) if (value := self.silhouette_of(row)) is not None]
        return fmean(known) if known else None

    def by_k(self, k: int) -> list[dict[str, Any]]:
        """The figures of all seeds of `k`."""
        return [row for row in self.figures if row["k"] == k]


def is_sweep(path: Path) -> bool:
    """Whether the folder `path` is one that a sweep has written."""
    return (path / SWEEP).is_file()


def read_sweep(path: Path) -> SweepFacts:
    """The facts of the sweep in the folder `path`; `RunError` if they cannot be used."""
    record = SweepFolder.read(path)
    try:
        needed, known = {"name", "k", "seed"}, ("name", "k", "seed", "scale", "metric")
        runs = [
            {key: run[key] for key in known if key in needed | run.keys()} for run in record["runs"]
        ]
        rows, features = record["data"]["shape"]
        if not runs or not all(isinstance(n, int) for n in (rows, features)):
            raise ValueError("it names no runs, or no shape")
        figures = sorted(record.get("figures") or [], key=lambda row: (row["k"], row["seed"]))
        for row in figures:
            row["inertia_per_row"] + 0.0, row["silhouette"], row["simplified_silhouette"]
        stability = _stability(record.get("stability") or [])
        recommendation = record.get("recommendation") or {}
        if recommendation:
            recommendation["k"], recommendation["verdict"], recommendation["reasons"]
    except DAMAGE as error:
        raise RunError(
            f"{path / SWEEP} is damaged: {in_words(error)}; restore it from a copy, or sweep anew"
        ) from error
    return SweepFacts(path, record, runs, figures, stability, recommendation)


def _stability(rows: Iterable[dict[str, Any]]) -> dict[int, dict[str, float]]:
    return {
        each["k"]: {"mean": float(each["mean"]), "least": float(each["least"])} for each in rows
    }
