"""The way in: a report of whatever a folder holds, a run or a sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from streamkm.config import ExecutionConfig
from streamkm.files import expanded
from streamkm.reports.run_report import Look, make_report
from streamkm.reports.sweep_facts import is_sweep
from streamkm.reports.sweep_report import make_sweep_report

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from streamkm.reports.run_report import Report
    from streamkm.reports.sweep_report import SweepReport
    from streamkm.sources import SourceOptions

__all__ = ["any_report", "report"]


def report(
    run: str | os.PathLike[str],
    source: Any = None,
    *,
    rows: bool = True,
    image: str | None = None,
    features_from: Any = None,
    ids: Any = None,
    texts: Any = None,
    image_files: Any = None,
    sample_weight: Any = None,
    verbose: bool = False,
    **options: Unpack[SourceOptions],
) -> Report | SweepReport:
    """Make the report of a run, finished or under way, or of a sweep.

    Parameters
    ----------
    run : path
        The folder of a run or of a sweep.
    source : path, array or Source, default=None
        The rows to read once, for spread and examples: anything that `streamkm.open_source` takes.
        None is what the run was made of, if it is still there. Of a sweep rows are read only if
        they are named, once for each fit.
    rows : bool, default=True
        Whether to read rows at all.
    image : str, default=None
        The shape of a row that is an image, ``"HEIGHTxWIDTH"`` or ``"HEIGHTxWIDTHx3"``.
    features_from : path or sequence of str, default=None
        Names of the features: a text file with one a line, or the names. By default those that the
        data had.
    ids, texts, image_files : path or sequence, default=None
        How to show rows: a text file with a line for each row, a ``.npy`` array, ``"column:NAME"``
        for a column of the source, or the values.
    sample_weight : array-like of shape (n_rows,) or path, default=None
        How much each row counts, as in `KMeans.fit`. A run that was fitted with weights has the
        figures of its fit with the same ones.
    verbose : bool, default=False
        Say on stderr how far it is.
    **options : SourceOptions
        What `source` does not say of itself, as for `streamkm.open_source`.

    Returns
    -------
    Report or SweepReport
        Its ``figures`` are matplotlib's, ``save(path)`` writes the page.

    Raises
    ------
    streamkm.errors.InputError
        If matplotlib, jinja2 or pillow is missing, the run is none or is damaged, the source cannot
        be read, or a list has another length than the rows.
    """
    look = Look(rows, image, features_from, ids, texts, image_files, sample_weight)
    where = (expanded(run), source, options)
    return any_report(*where, look, ExecutionConfig(), quiet=not verbose)


def any_report(
    path: Path,
    location: Any,
    options: Any,
    look: Look,
    execution: ExecutionConfig,
    *,
    quiet: bool = False,
) -> Report | SweepReport:
    """The report of the run or the sweep in the folder `path`; see `report`."""
    make = make_sweep_report if is_sweep(path) else make_report
    return make(path, location, options, look, execution, quiet=quiet)
