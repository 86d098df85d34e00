"""The table that people read, and the JSON file that keeps every sample."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.measure import Comparison, Session

__all__ = ["environment", "table", "write_json"]

ROOT = Path(__file__).parents[1]
_ROW = "{:<35} {:<16} {:>10} {:>19} {:<7} {:>8}"
_WIDTH = 100


def environment() -> dict[str, Any]:
    """Machine, versions and date."""
    packages = ("torch", "numpy", "zarr", "numcodecs", "scikit-learn")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "memory_gib": round(
                os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
            ),
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
            "streamkm": _commit(),
        },
    }


def table(session: Session, described: dict[str, Any]) -> str:
    """All comparisons, one line a contender, at most 100 columns wide."""
    machine, versions = described["machine"], described["versions"]
    lines = [
        "{cpu}, {cores} cores, {memory_gib} GiB; ".format_map(machine)
        + f"streamkm {versions['streamkm']}, {described['date']}",
        ", ".join(f"{name} {value}" for name, value in versions.items() if name != "streamkm"),
        "",
        _ROW.format("what", "who", "median", "min .. max", "unit", "ratio"),
        "-" * _WIDTH,
    ]
    for group in dict.fromkeys(comparison.group for comparison in session.comparisons):
        lines.append(f"[{group}]")
        for comparison in session.comparisons:
            if comparison.group == group:
                lines.extend(_lines(comparison))
    lines += [
        "-" * _WIDTH,
        "ratio: median of the first contender over this one's, all timed in turn.",
    ]
    return "\n".join(line[:_WIDTH].rstrip() for line in lines)


def _lines(comparison: Comparison) -> list[str]:
    lines = []
    for i, contender in enumerate(comparison.samples):
        values = comparison.statistics(contender)
        lines.append(
            _ROW.format(
                "" if i else comparison.name,
                contender,
                _number(values["median"]),
                f"{_number(values['min'])} .. {_number(values['max'])}",
                comparison.unit,
                f"{comparison.ratio(contender):.2f} x" if i else "",
            )
        )
    if comparison.target is not None:
        verdict = "reached" if comparison.target.reached else "NOT reached"
        lines.append(f"    target {comparison.target.text}: {verdict}")
    if comparison.remark:
        lines.append(f"    {comparison.remark}")
    return lines


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def write_json(path: Path, session: Session, described: dict[str, Any]) -> None:
    """Write all comparisons to a file, sample by sample."""
    content = {
        **described,
        "quick": session.quick,
        "rounds": session.rounds,
        "comparisons": [comparison.as_dict() for comparison in session.comparisons],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def _cpu_model() -> str:
    """The processor's name, with its family and model: many are called "AMD EPYC" alone."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        found = {name.strip(): value.strip() for name, _, value in reversed(list(lines))}
        if "model name" in found:
            numbers = [f"{name} {found[name]}" for name in ("cpu family", "model") if name in found]
            return (
                f"{found['model name']} ({', '.join(numbers)})" if numbers else found["model name"]
            )
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit that was measured, marked if files differed from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    return described.stdout.strip() or "uncommitted"
