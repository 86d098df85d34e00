"""Records of progress, read back."""

from __future__ import annotations

from pathlib import Path

from streamkm.runs.storage.metrics_file import inertia_course, read_metrics


def test_lines_that_are_no_records_are_passed_over(tmp_path: Path) -> None:
    lines = ['{"phase": "train", "rows": 3}', "[1]", '{"rows": 1}', '{"phase": "x", "a": NaN}', ""]
    lines += ["[" * 100_000, "\udcff", '{"phase": "end"']
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    assert read_metrics(tmp_path) == [{"phase": "train", "rows": 3}]


def test_a_missing_file_has_no_records(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    assert read_metrics(tmp_path / "none") == []


def record(phase: str, rows: int, inertia: float | None = 1.0) -> dict[str, object]:
    return {"phase": phase, "rows": rows, "inertia_per_row": inertia}


def test_closing_follows_training() -> None:
    records = [record("seeded", 5), record("train", 10), record("train", 20), record("close", 10)]
    assert [r["total_rows"] for r in inertia_course(records)] == [10, 20, 30]


# A killed attempt has recorded more than its checkpoint holds.
def test_what_was_done_again_counts_once() -> None:
    records = [record("train", 10, 5.0), record("train", 20, 4.0), record("train", 30, 3.0)]
    records += [record("train", 20, 4.5), record("train", 25, 3.5)]
    course = inertia_course(records)
    assert [(r["total_rows"], r["inertia_per_row"]) for r in course] == [
        (10, 5.0), (20, 4.5), (25, 3.5),
    ]  # fmt: skip


def test_records_without_an_inertia_are_left_out() -> None:
    assert not inertia_course([record("train", 10, None), {"phase": "train", "rows": 3.5}])
