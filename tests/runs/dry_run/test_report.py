"""The report of a dry run."""

from __future__ import annotations

import pytest

from streamkm.runs.dry_run.report import format_duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.25, "1.2 s"), (59.6, "60 s"), (3600.0, "60 min"), (9000.0, "2.5 h")]
)
def test_durations_for_people(seconds, text):
    assert format_duration(seconds) == text
