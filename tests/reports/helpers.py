"""Reports of runs, by the public function."""

from __future__ import annotations

from typing import Any

import streamkm
from streamkm.reports import Report


def report(run: Any, source: Any = None, **options: Any) -> Report:
    """`streamkm.report` of a run, which gives no report of a sweep."""
    made = streamkm.report(run, source, **options)
    assert isinstance(made, Report)
    return made
