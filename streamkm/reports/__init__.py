"""Reports of runs: what was found, as one HTML page and as matplotlib's figures."""

from streamkm.reports.extra import need_packages

# Before anything that imports them.
need_packages()

from streamkm.reports.run_report import (  # noqa: E402
    Look,
    Report,
    check_is_free,
    make_report,
    report,
)

__all__ = ["Look", "Report", "check_is_free", "make_report", "report"]
