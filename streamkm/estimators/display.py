"""The base of all estimators: scikit-learn's mixins, and what a notebook shows of a fitted one.

A notebook shows scikit-learn's own picture of the parameters, and below it what was found.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)

from streamkm.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Clusterer"]


class Clusterer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A clusterer of scikit-learn that shows in notebooks what it has found."""

    # Names of IPython's protocol; scikit-learn has both, the first as a property that is there
    # only while its option "display" asks for pictures.
    @property
    def _repr_html_(self) -> Callable[[], str]:
        picture = super()._repr_html_
        return lambda: picture() + _summary(self)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        bundle: dict[str, str] = super()._repr_mimebundle_(**options)
        if "text/html" in bundle:
            bundle["text/html"] += _summary(self)
        return bundle


def _summary(estimator: Any) -> str:
    """What a fitted estimator has found, as an HTML table; empty for one that is not fitted."""
    centers = getattr(estimator, "cluster_centers_", None)
    if centers is None:
        return ""
    rows = [("clusters", f"{len(centers):,} of {counted(np.shape(centers)[1], 'feature')}")]
    sizes = getattr(estimator, "counts_", None)
    if sizes is not None and len(sizes) and np.sum(sizes):
        said = f"{np.min(sizes):,} least, {np.median(sizes):,.6g} median, {np.max(sizes):,} most"
        rows.append(("rows in a cluster", said))
    if hasattr(estimator, "inertia_"):
        rows.append(("inertia", f"{estimator.inertia_:.9g}"))
    if hasattr(estimator, "n_iter_"):
        rows.append(("passes", f"{estimator.n_iter_:,}"))
    if hasattr(estimator, "stop_reason_"):
        rows.append(("stopped", str(estimator.stop_reason_)))
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        f"<td style='text-align:left'>{escape(said)}</td></tr>"
        for name, said in rows
    )
    return f"<table>{cells}</table>"
