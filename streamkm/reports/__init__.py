"""Reports of runs: what was found, as one HTML page and as matplotlib's figures."""

from streamkm.reports.extra import need_packages

# Before anything that imports them.
need_packages()

from streamkm.reports.front import any_report, report  # noqa: E402
from streamkm.reports.run_report import Look, Report, check_is_free  # noqa: E402
from streamkm.reports.sweep_report import SweepReport  # noqa: E402

__all__ = ["Look", "Report", "SweepReport", "any_report", "check_is_free", "report"]
