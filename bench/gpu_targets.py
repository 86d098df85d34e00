"""The targets of a GPU, each beside what a run of scripts/gpu measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["ASSIGN_TARGETS", "TargetRow", "as_table", "compare_targets"]


#: Shares of the bfloat16 matrix rate that assign has to reach at k = 20,000, by the number of
#: features.
ASSIGN_TARGETS = {64: 0.45, 128: 0.60, 256: 0.72}


class TargetRow(NamedTuple):
    """One target: what is asked, the figure asked, and the figure found, None if there is none."""

    what: str
    asked: float
    found: float | None
    at_most: bool = False

    @property
    def verdict(self) -> str:
        if self.found is None:
            return "not measured"
        reached = self.found <= self.asked if self.at_most else self.found >= self.asked
        return "reached" if reached else "NOT reached"


def compare_targets(results: Mapping[str, Any]) -> list[TargetRow]:
    """All targets, in the order of the parts."""
    assigned = [row for row in rows_of(results, "assign") if "share_of_matrix_rate" in row]
    at_20k = {row["d"]: row for row in assigned if row["k"] == 20_000}
    targets = [
        TargetRow(
            f"assign, d={d}, k=20,000: share of the matrix rate", asked,
            at_20k[d]["share_of_matrix_rate"]["exact"] if d in at_20k else None,
        )
        for d, asked in ASSIGN_TARGETS.items()
    ]  # fmt: skip
    peers = [
        row["seconds"]["exact"] / seconds
        for row in assigned
        for name, seconds in row["peers"].items()
        if name != "torch, chunks" and isinstance(seconds, float)
    ]
    crowds = (row["crowd_costs"] for row in rows_of(results, "assign") if "crowd_costs" in row)
    fits = list(rows_of(results, "fits"))
    of_stage = (row["share_of_probe"] for row in fits if "share_of_probe" in row)
    bits, saved = results.get("same_bits"), results.get("checkpoints")
    return [
        *targets,
        TargetRow("assign: exact labels cost over fast ones, most",
                  0.10, most(row["exact_costs"] for row in assigned), at_most=True),
        TargetRow("assign: time over that of a peer, most", 1.0, most(peers), at_most=True),
        TargetRow("assign: 1 % of crowded rows cost", 0.20, most(crowds), at_most=True),
        TargetRow("update: share of the copy rate, least", 0.6,
                  least(row["share_of_copy_rate"] for row in rows_of(results, "update"))),
        TargetRow("fit: share of the slowest stage alone, least", 0.92, least(of_stage)),
        TargetRow("fit: resident passes, share of rows that are there, least", 0.95,
                  least(resident_shares(fits))),
        TargetRow("checkpoints every 10 s: share of the time", 0.01,
                  saved.get("share_of_10_s") if isinstance(saved, dict) else None, at_most=True),
        TargetRow("repetitions with other bits, of 100", 0,
                  bits.get("with_other_bits") if isinstance(bits, dict) else None, at_most=True),
    ]  # fmt: skip


def resident_shares(fits: list[dict[str, Any]]) -> Iterable[float]:
    """Rates of resident fits over the rates of arithmetic on rows that lie on the device."""
    alone = {
        (row["d"], row["k"]): row["arithmetic_alone_rows_per_s"]
        for row in fits if "arithmetic_alone_rows_per_s" in row
    }  # fmt: skip
    # Without a setting for it nothing is resident, and no fit says that it is not.
    is_known = any(row.get("resident") is False for row in fits)
    for row in fits:
        where = row["d"], row.get("k")
        if is_known and row.get("resident") and "rows_per_s" in row and where in alone:
            yield row["rows_per_s"] / alone[where]


def rows_of(results: Mapping[str, Any], part: str) -> Iterable[dict[str, Any]]:
    """The rows of a part, also of one that failed after a few of them."""
    found = results.get(part)
    if isinstance(found, dict):
        found = found.get("before")
    return found if isinstance(found, list) else []


def most(figures: Iterable[float]) -> float | None:
    return max(figures, default=None)


def least(figures: Iterable[float]) -> float | None:
    return min(figures, default=None)


def as_table(targets: list[TargetRow]) -> str:
    lines = []
    for row in targets:
        found = "-" if row.found is None else f"{row.found:.3g}"
        sign = "<=" if row.at_most else ">="
        lines.append(f"{row.what:<60} {sign} {row.asked:<5g} {found:>8}  {row.verdict}")
    return "\n".join(lines)
