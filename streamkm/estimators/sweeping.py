"""`sweep`: many K fitted with one read of the rows, compared, as fitted estimators."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkm.clustering.choosing import space_of
from streamkm.config import FitConfig
from streamkm.errors import ConfigError, Option
from streamkm.estimators.kmeans import KMeans
from streamkm.estimators.parameters import execution_config
from streamkm.estimators.sharing import open_shared_rows
from streamkm.estimators.stopping import stoppable
from streamkm.kernels import torch_alone_after_fork
from streamkm.runs.sweeping import sweep as verb
from streamkm.runs.sweeping.table import (
    about,
    recommendation_lines,
    table_columns,
    table_lines,
)
from streamkm.settings import settings_of
from streamkm.sources.options import SourceOptions
from streamkm.tables import ALGORITHMS, load_class

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from streamkm.estimators.minibatch import MiniBatchKMeans

__all__ = ["SweepResult", "sweep"]

#: What parameters of estimators are called here.
_MEANT = {"max_iter": "epochs", "random_state": "seeds", "batch_size": "batch_rows"}
#: Parameters of `sweep` that are no settings of a fit and may be mistyped.
_OWN = ("n_clusters", "seeds", "all_rows", "sample_weight", "verbose", "max_host_memory")


@dataclass(frozen=True, repr=False)
class SweepResult:
    """What `sweep` has found; as a string its table and its recommendation."""

    estimators: list[KMeans | MiniBatchKMeans]
    """Fitted estimators, one for each K and seed, K ascending; with several scales or metrics
    those of one after those of the other."""
    table: list[dict[str, Any]]
    """Figures of each of them, in the same order: a dict that ``pandas.DataFrame(table)`` makes a
    row of. ``silhouette`` is the exact one, by squared Euclidean distances, of ``silhouette_rows``
    rows; ``stability`` the mean adjusted Rand index of the seeds of this K, None with one seed.
    With several, there are ``scale`` and ``metric``. Where figures are those of a sample there is
    ``sampled_rows``."""
    recommendation: dict[str, Any]
    """``k``, which is None where none stands out; ``verdict`` and ``reasons`` in words. With
    several scales or metrics ``spaces`` has these of each, and ``k`` is None unless all agree."""

    @property
    def recommended_k(self) -> int | None:
        """The K that stands out; None if none does."""
        k: int | None = self.recommendation["k"]
        return k

    def __str__(self) -> str:
        lines = [*table_lines(self.table, self._stability), ""]
        return "\n".join([*lines, *recommendation_lines(self.recommendation)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The table and the recommendation, for notebooks."""
        columns = table_columns(self.table, self._stability)
        head = "".join(f"<th>{escape(name)}</th>" for name in columns)
        body = ""
        for cells, row in zip(zip(*columns.values(), strict=True), self.table, strict=True):
            shown = "".join(f"<td style='text-align:right'>{escape(cell)}</td>" for cell in cells)
            weight = "bold" if row["k"] == self.recommended_k else "normal"
            body += f"<tr style='font-weight:{weight}'>{shown}</tr>"
        verdict, *reasons = recommendation_lines(self.recommendation)
        items = "".join(f"<li>{escape(reason.strip())}</li>" for reason in reasons)
        notes = "<br>".join(map(escape, about(self.table)))
        return (
            f"<p><strong>{escape(verdict)}</strong></p><ul>{items}</ul>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{notes}</p>"
        )

    @property
    def _stability(self) -> list[dict[str, Any]]:
        return [{**row, "mean": row["stability"]} for row in self.table]


@torch_alone_after_fork()
def sweep(
    X: Any,
    n_clusters: Sequence[int],
    *,
    seeds: Sequence[int] = (0,),
    scale: str | Sequence[str] = "none",
    metric: str | Sequence[str] = "euclidean",
    all_rows: bool = False,
    sample_weight: Any = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    verbose: bool = False,
    device: str = "auto",
    max_host_memory: int | str | None = None,
    **settings: Any,
) -> SweepResult:
    """Fit several K with one read of `X`, measure the fits, and say which K stands out.

    Every window of rows is read, decoded and copied once, and updates all models. Each is what
    ``streamkm fit`` finds for its K alone, to the bit. If torch.distributed is initialised, its
    processes share the fits; all must call it with the same arguments.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features), sparse matrix, path, Zarr array or Source
        As in `KMeans.fit`.
    n_clusters : sequence of int
        The K to fit.
    seeds : sequence of int, default=(0,)
        Every K is fitted with each of them. With several, the table says how well they agree.
    scale, metric : str or sequence of str
        As ``streamkm fit`` takes them. Of several, every K and seed is fitted with each pair that
        does not contradict itself; each pair has a recommendation of its own.
    all_rows : bool, default=False
        Take every figure of all rows, with one more read. By default, where the rows do not fit in
        memory, those that need each row once more are taken of a sample.
    sample_weight : array-like of shape (n_samples,), float or path, default=None
        As in `KMeans.fit`. The figures count a row of weight w as w rows.
    out : path, default=None
        Folder to write, with a run folder for each fit, as ``streamkm sweep`` does.
    resume : bool, default=False
        Go on with the sweep in `out`, or start. K and seeds may be added.
    verbose : bool, default=False
        Say on stderr how far it is.
    device, max_host_memory
        As in `KMeans`. The memory is that of all fits together; fits that it does not hold take
        turns, in groups of one read.
    **settings
        Settings of ``streamkm fit`` that decide the result, by their names with underscores:
        ``algorithm``, ``epochs``, ``batch_rows``, ``init``, ``n_init``, ``tol``, ``nan`` and so on.

    Returns
    -------
    SweepResult

    Raises
    ------
    ValueError
        If a parameter or the data cannot be used; the message names a remedy.
    streamkm.errors.Interrupted
        If there is a folder `out` and a signal stops the sweep, after checkpoints are saved.

    Examples
    --------
    >>> import numpy as np
    >>> import streamkm
    >>> rng = np.random.default_rng(0)
    >>> x = np.concatenate([rng.normal(20 * i, 1, size=(50, 2)) for i in range(4)])
    >>> found = streamkm.sweep(x, range(2, 9), seeds=range(3))
    >>> found.recommended_k
    4
    """
    for mistaken, meant in (("k", "n_clusters"), ("seed", "seeds")):
        if mistaken in settings:
            raise ConfigError(
                f"a sweep takes a list, {meant}=[{settings[mistaken]!r}], not ", Option(mistaken)
            )
    _refuse_unknown(settings)
    base = FitConfig(k=1, **settings)
    with open_shared_rows(KMeans(), X, reset=True) as rows:
        weights = rows.weights(sample_weight)
        at = rows.device if device == "auto" else device
        execution = execution_config(at, max_host_memory, is_small=False)
        with stoppable(is_saved=out is not None) as stop_request:
            found = verb.sweep(
                rows.source,
                base,
                _whole("n_clusters", n_clusters),
                _whole("seeds", seeds),
                execution,
                None if out is None else Path(out),
                resume=resume,
                stop_request=stop_request,
                scales=_names(scale),
                metrics=_names(metric),
                all_rows=all_rows,
                weights=weights,
                quiet=not verbose,
                world=rows.world,
            )
    kind = load_class(ALGORITHMS[base.algorithm].estimator)
    agreed = {(space_of(each), each["k"]): each["mean"] for each in found.stability}
    return SweepResult(
        [kind.from_model(model.on_host()) for model in found.models.values()],
        [{**row, "stability": agreed.get((space_of(row), row["k"]))} for row in found.figures],
        found.recommendation,
    )


def _refuse_unknown(settings: dict[str, Any]) -> None:
    """Raise `TypeError` for a keyword that is no setting, and name what was probably meant."""
    known = {each.name for each in settings_of(FitConfig)}
    for name in [name for name in settings if name not in known]:
        advice = ""
        if name in SourceOptions.__annotations__:
            advice = ", open_source has"
        elif near := _MEANT.get(name) or next(iter(get_close_matches(name, [*known, *_OWN])), ""):
            advice = f"; did you mean {near}?"
        raise TypeError(f"sweep has no parameter {name}{advice}")


def _names(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _whole(name: str, values: Any) -> list[int]:
    """The whole numbers `values`, or the one; refuses what a cast would cut off."""
    array = np.atleast_1d(np.asarray(values))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ConfigError(
            Option(name), f" must be whole numbers, such as [2, 4, 8], not {values!r}"
        )
    found: list[int] = array.tolist()
    return found
