"""What a centroid is like: a heat map of its features, or the image that it is."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from streamkm.errors import ConfigError, Option
from streamkm.reports.measures import moments
from streamkm.reports.theme import DIVERGING, clean, new_figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

__all__ = [
    "FEW_FEATURES",
    "MOST_SIDE",
    "ImageShape",
    "Profiles",
    "as_data_address",
    "draw_profiles",
    "profiles",
]

#: Features that are few enough to be shown without names.
FEW_FEATURES = 40
#: Clusters and features of the heat map, at most.
MOST_CLUSTERS, MOST_FEATURES = 40, 36
#: Side of an embedded picture in pixels, at most; a larger one is made smaller.
MOST_SIDE = 96


@dataclass(frozen=True)
class Profiles:
    """How far features of clusters lie from the mean of all, in standard deviations."""

    clusters: np.ndarray
    """Numbers of the clusters that are shown, largest first."""
    features: np.ndarray
    """Numbers of the features that are shown, most telling first if some are left out."""
    z_CF: np.ndarray
    """Deviations of the clusters and features shown, in standard deviations between clusters."""
    tells: dict[int, list[tuple[int, float]]]
    """Of each cluster shown, the features that set it apart most: number and deviation."""


def profiles(
    points_KD: np.ndarray, masses_K: np.ndarray, sizes_K: np.ndarray, n_tells: int = 5
) -> Profiles:
    """Profiles of the clusters that are largest by `sizes_K`; mean and deviation are by mass."""
    mean_D, deviation_D = moments(points_KD, masses_K)
    order = np.argsort(-sizes_K, kind="stable")[:MOST_CLUSTERS]
    z_CD = np.divide(
        points_KD[order] - mean_D, deviation_D, out=np.zeros((len(order), len(mean_D))),
        where=deviation_D > 0,
    )  # fmt: skip
    shown = np.arange(len(mean_D))
    if len(mean_D) > MOST_FEATURES:
        # Those that tell the clusters shown apart, whatever the unit of a feature.
        shown = np.argsort(-np.abs(z_CD).max(axis=0), kind="stable")[:MOST_FEATURES]
    tells = {}
    for cluster, z_D in zip(order.tolist(), z_CD, strict=True):
        best = np.argsort(-np.abs(z_D), kind="stable")[:n_tells]
        tells[cluster] = [(int(d), float(z_D[d])) for d in best if z_D[d]]
    return Profiles(order, shown, z_CD[:, shown], tells)


def draw_profiles(found: Profiles, names: Sequence[str]) -> Figure:
    """The heat map of `found`; `names` are of all features."""
    n_clusters, n_features = found.z_CF.shape
    with new_figure(height=2.1 + 0.16 * max(n_clusters, 5)) as figure:
        axes = figure.add_subplot()
        limit = max(float(np.abs(found.z_CF).max(initial=0)), 1.0)
        limit = min(limit, 3.0)
        picture = axes.imshow(
            found.z_CF, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        labels = [clean(names[feature], 22) for feature in found.features]
        size = 8 if n_features <= 24 else 6.5
        axes.set_xticks(range(n_features), labels, rotation=60, ha="right", fontsize=size)
        axes.xaxis.set_tick_params(rotation_mode="anchor")
        axes.set_yticks(range(n_clusters), list(map(str, found.clusters)), fontsize=8)
        axes.set_ylabel("cluster, largest first" if n_clusters > 8 else "cluster")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        bar = figure.colorbar(
            picture, ax=axes, location="top", shrink=0.42, pad=0.03, aspect=25, extend="both",
            anchor=(1.0, 0.0),
        )  # fmt: skip
        bar.set_label("standard deviations from the mean", fontsize=8.5)
        bar.outline.set_visible(False)
    return figure


# ---- images ------------------------------------------------------------------


@dataclass(frozen=True)
class ImageShape:
    """How a row is an image: its values line by line, channels last."""

    height: int
    width: int
    channels: int

    @classmethod
    def parse(cls, text: str) -> ImageShape:
        """The shape in ``28x28`` or ``8x8x3``."""
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)(?:x([13]))?", text.strip().lower())
        if match is None:
            raise ConfigError(
                Option("image"),
                " must be HEIGHTxWIDTH or HEIGHTxWIDTHxCHANNELS with 1 or 3 channels, such as "
                f"28x28 or 8x8x3, not {text!r}",
            )
        return cls(int(match[1]), int(match[2]), int(match[3] or 1))

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.channels}"

    def check(self, n_features: int) -> None:
        """Refuse rows that are no images of this shape."""
        n_values = self.height * self.width * self.channels
        if n_values != n_features:
            raise ConfigError(
                Option("image", str(self)),
                f" has {n_values:,} values, a row has {n_features:,} features; give the shape that "
                "rows have, HEIGHTxWIDTHxCHANNELS",
            )

    def address(self, row_D: np.ndarray, low: float, high: float) -> str:
        """`row_D` as a picture, as the address of its bytes; `low` is black and `high` white."""
        values = (row_D.astype(np.float64) - low) / ((high - low) or 1.0)
        bytes_D = np.nan_to_num(np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)
        shape = (self.height, self.width, self.channels)
        pixels = bytes_D.reshape(shape if self.channels == 3 else shape[:2])
        picture = Image.fromarray(pixels)
        if max(picture.size) > MOST_SIDE:
            picture.thumbnail((MOST_SIDE, MOST_SIDE))
        return as_data_address(picture, "PNG")


def as_data_address(picture: Image.Image, kind: str) -> str:
    """A picture as a ``data:`` address, stored as `kind`."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, optimize=True)
    content = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{content}"
