"""The folder of a sweep, and its record.

::

    DIR/
      sweep.json        settings, data, runs; at the end figures and recommendation
      k-0016/           a run folder for each K (see runs.storage.run_folder)
      k-0016-seed-1/    and for each further seed
      k-0016-zscore/    of several scales or metrics, for each of them
      lock              held by the process that sweeps
"""

from __future__ import annotations

from typing import Any

from streamkm.errors import Option, ResumeError
from streamkm.runs.storage.record_folder import RecordFolder
from streamkm.runs.storage.run_folder import SWEEP, setting_differences

__all__ = ["SWEEP", "SweepFolder"]


class SweepFolder(RecordFolder):
    """The folder of a sweep; see `RecordFolder`."""

    file, noun, option, anew = SWEEP, "sweep", "run_dir", "sweep anew into"

    @staticmethod
    def _look_for_keys(record: dict[str, Any]) -> None:
        record["fit"], record["data"]["shape"], record["first_seed"]
        [(run["name"], run["k"], run["seed"]) for run in record["runs"]]

    def _check(self, before: dict[str, Any]) -> None:
        for key, value in self.record["data"].items():
            if before["data"].get(key) != value:
                raise ResumeError(
                    f"{self.path}: holds a sweep of other data: {before['source']} "
                    f"({key}: {before['data'].get(key)} -> {value}); give that, or choose "
                    "another ",
                    Option("run_dir"),
                )
        if changed := setting_differences(before["fit"], self.record["fit"]):
            raise ResumeError(
                f"{self.path}: holds a sweep with other settings ({'; '.join(changed)}); resume "
                "with the original ones, or choose another ",
                Option("run_dir"),
            )

    def _extends(self, before: dict[str, Any]) -> bool:
        return bool(before["runs"] != self.record["runs"])
