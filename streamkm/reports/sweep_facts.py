"""Reads sweep.json, the record of a sweep: which fits it has, their figures, what stands out."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from streamkm.errors import RunError
from streamkm.runs.sweeping.record import SWEEP
from streamkm.runs.sweeping.record import read_sweep as read_record
from streamkm.sealed import DAMAGE, in_words

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SweepFacts", "is_sweep", "read_sweep"]


@dataclass(frozen=True)
class SweepFacts:
    """What a sweep has found."""

    path: Path
    record: dict[str, Any]
    runs: list[dict[str, Any]]
    """``name``, ``k`` and ``seed`` of each fit."""
    figures: list[dict[str, Any]]
    """Figures of each fit, K ascending; empty while the sweep is not finished."""
    stability: dict[int, dict[str, float]]
    """``mean`` and ``least`` adjusted Rand index of the seeds of each K; empty with one seed."""
    recommendation: dict[str, Any]
    """``k``, ``verdict`` and ``reasons``; empty while the sweep is not finished."""

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
    record = read_record(path)
    try:
        runs = [{key: run[key] for key in ("name", "k", "seed")} for run in record["runs"]]
        rows, features = record["data"]["shape"]
        if not runs or not all(isinstance(n, int) for n in (rows, features)):
            raise ValueError("it names no runs, or no shape")
        figures = sorted(record.get("figures") or [], key=lambda row: (row["k"], row["seed"]))
        for row in figures:
            row["inertia_per_row"] + 0.0, row["silhouette"], row["simplified_silhouette"]
        stability = {
            each["k"]: {"mean": float(each["mean"]), "least": float(each["least"])}
            for each in record.get("stability") or []
        }
        recommendation = record.get("recommendation") or {}
        if recommendation:
            recommendation["k"], recommendation["verdict"], recommendation["reasons"]
    except DAMAGE as error:
        raise RunError(
            f"{path / SWEEP} is damaged: {in_words(error)}; restore it from a copy, or sweep anew"
        ) from error
    return SweepFacts(path, record, runs, figures, stability, recommendation)
