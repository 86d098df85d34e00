"""How a run went, by the records of metrics.jsonl: inertia, shift, rates, where the time went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from streamkm.reports.theme import (
    ACCENT,
    INK,
    MUTED,
    OTHER,
    THIRD,
    WARN,
    make_logarithmic,
    new_figure,
)
from streamkm.runs.storage.metrics_file import inertia_course

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.figure import Figure

__all__ = ["STAGES", "Interval", "draw_course", "draw_stages", "intervals", "last_attempt"]

STAGES = {"reading": ACCENT, "copying": OTHER, "arithmetic": WARN}
#: Records up to which each is marked.
MARKED = 60
#: The inertia's axis covers at least this share of it: what falls by less is drawn flat.
FLAT = 1e-3


@dataclass(frozen=True)
class Interval:
    """What happened between two records of one attempt."""

    start_s: float
    """Seconds since the first record's phase began; time between attempts is left out."""
    end_s: float
    phase: str
    rows_per_s: float
    busy: dict[str, float]
    """Share of the interval in which each stage worked."""
    waited: dict[str, float]
    """Share of it in which each stage waited for another."""


def intervals(records: Iterable[dict[str, Any]]) -> list[Interval]:
    """Rates between consecutive records; each record counts from when its phase began."""
    found: list[Interval] = []
    before: dict[str, Any] | None = None
    clock = 0.0
    for record in records:
        if not _is_timed(record):
            continue
        stages, elapsed_s, rows = record["stages"], record["elapsed_s"], record["rows"]
        goes_on = (
            before is not None
            and before["phase"] == record["phase"]
            and before["elapsed_s"] <= elapsed_s
            and before["rows"] <= rows
        )
        earlier = before if goes_on and before is not None else None
        spent = elapsed_s - (earlier["elapsed_s"] if earlier else 0.0)
        # A resumed phase begins where the last attempt ended: its rate says how many rows it did.
        done = rows - earlier["rows"] if earlier else record["rows_per_s"] * elapsed_s
        if spent > 0:
            # Closing adds to the stages of training.
            base = before["stages"] if before is not None and _adds_to(before, record) else None
            shares = [
                {name: _share(stages, base, name, kind, spent) for name in STAGES if name in stages}
                for kind in ("busy_s", "wait_s")
            ]
            found.append(
                Interval(clock, clock + spent, record["phase"], max(done, 0) / spent, *shares)
            )
            clock += spent
        before = record
    return found


def _is_timed(record: dict[str, Any]) -> bool:
    numbers = [record.get(key) for key in ("elapsed_s", "rows", "rows_per_s")]
    return (
        isinstance(record.get("stages"), dict)
        and all(isinstance(value, int | float) for value in numbers)
        and all(
            isinstance(value, dict)
            and all(isinstance(value.get(kind), int | float) for kind in ("busy_s", "wait_s"))
            for value in record["stages"].values()
        )
    )


def _adds_to(before: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether the seconds of stages in `record` include those in `before`."""
    then, now = before["stages"], record["stages"]
    return all(
        name in now and now[name][kind] >= then[name][kind]
        for name in then
        for kind in ("busy_s", "wait_s")
    )


def _share(
    now: dict[str, Any], then: dict[str, Any] | None, name: str, kind: str, spent: float
) -> float:
    seconds: float = now[name][kind] - (
        then[name][kind] if then is not None and name in then else 0.0
    )
    return min(max(seconds / spent, 0.0), 1.0)


def last_attempt(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The last record of how an attempt ended; empty if none has ended."""
    return next((r for r in reversed(list(records)) if r["phase"] == "end"), {})


def draw_course(records: list[dict[str, Any]]) -> Figure | None:
    """Inertia and shift over rows; None without a record of them."""
    course = inertia_course(records)
    if not course:
        return None
    rows = [record["total_rows"] for record in course]
    with new_figure(height=4.2) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        marker = {"marker": "o", "ms": 3.5} if len(course) <= MARKED else {}
        inertias = [r["inertia_per_row"] for r in course]
        above.plot(rows, inertias, color=ACCENT, lw=1.6, **marker)
        above.ticklabel_format(axis="y", useOffset=False)
        least = FLAT * abs(max(inertias))
        if least > 0 and max(inertias) - min(inertias) < least:
            above.set_ylim(min(inertias) - least / 2, max(inertias) + least / 2)
        above.set_ylabel("inertia per row")
        moved = [(r, c.get("shift")) for r, c in zip(rows, course, strict=True)]
        shifts = [(r, s) for r, s in moved if isinstance(s, int | float) and s > 0]
        if shifts:
            below.plot(*zip(*shifts, strict=True), color=THIRD, lw=1.6, **marker)
            below.set_yscale("log")
            make_logarithmic(below.yaxis)
        below.set_ylabel("squared shift")
        below.set_xlabel("rows read in training and closing")
        below.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        below.xaxis.set_major_locator(MaxNLocator(nbins=5))
        below.set_xlim(left=0)
        closing = [r["total_rows"] for r in course if r["phase"] == "close"]
        trained = [r["total_rows"] for r in course if r["phase"] == "train"]
        if closing and trained:
            for axes in (above, below):
                axes.axvline(max(trained), color=MUTED, lw=1, ls=(0, (2, 3)))
            above.annotate(
                "closing", (max(trained), 1), xycoords=("data", "axes fraction"),
                xytext=(3, -9), textcoords="offset points", fontsize=8, color=MUTED,
            )  # fmt: skip
    return figure


def draw_stages(found: list[Interval]) -> Figure | None:
    """Rows a second, and how busy each stage was, over time; None without records."""
    if not found:
        return None
    edges = [0.0, *(each.end_s for each in found)]
    with new_figure(height=4.2) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
        above.stairs([each.rows_per_s for each in found], edges, color=INK, lw=1.4)
        above.set_ylabel("rows per second")
        above.set_ylim(bottom=0)
        above.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        styles = dict(zip(STAGES, ("-", (0, (1, 1.2)), (0, (5, 2))), strict=True))
        for stage, colour in STAGES.items():
            shares = [each.busy.get(stage, 0.0) for each in found]
            if any(shares):
                below.stairs(
                    shares, edges, baseline=None, color=colour, lw=1.8, ls=styles[stage],
                    label=stage,
                )  # fmt: skip
        below.set_ylabel("share of the time at work")
        below.set_ylim(0, 1.04)
        below.yaxis.set_major_formatter(StrMethodFormatter("{x:.0%}"))
        below.set_xlabel("seconds of streaming")
        below.set_xlim(0, edges[-1])
        below.legend(loc="lower right", ncols=3)
    return figure
