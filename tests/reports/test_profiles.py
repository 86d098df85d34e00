"""Profiles of centroids, and rows as images."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from streamkm.errors import ConfigError
from streamkm.reports.profiles import MOST_CLUSTERS, MOST_FEATURES, ImageShape, profiles


def test_profiles_are_deviations_between_clusters() -> None:
    points_KD = np.array([[0.0, 5, 1], [2, 5, 1], [4, 5, 7]])
    found = profiles(points_KD, np.array([1.0, 2, 1]), np.array([1, 2, 1]))
    assert found.clusters.tolist() == [1, 0, 2]
    # Weighted mean 2 and deviation sqrt(2); the second feature is constant.
    np.testing.assert_allclose(found.z_CF[:, 0], [0, -(2**0.5), 2**0.5])
    np.testing.assert_array_equal(found.z_CF[:, 1], 0)
    assert [d for d, _ in found.tells[2]] == [2, 0]


def test_of_many_clusters_and_features_the_telling_ones_are_shown(rng) -> None:
    points_KD = rng.normal(size=(90, 200))
    points_KD[3, 150] = 40
    sizes = np.arange(90.0, 0, -1)
    found = profiles(points_KD, sizes, sizes)
    assert found.clusters.tolist() == list(range(MOST_CLUSTERS))
    assert len(found.features) == MOST_FEATURES
    assert found.features[0] == 150
    assert found.tells[3][0][0] == 150


@pytest.mark.parametrize("text", ["", "8", "8x", "0x8", "8x8x2", "8x8x4", "-1x3", "8x8x3x1", "axb"])
def test_other_shapes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="image must be HEIGHTxWIDTH"):
        ImageShape.parse(text)


@pytest.mark.parametrize("text", ["2x3", "2X3x1", " 2x3x3 "])
def test_a_row_is_drawn_line_by_line(text: str) -> None:
    shape = ImageShape.parse(text)
    n_values = 6 * shape.channels
    shape.check(n_values)
    with pytest.raises(ConfigError, match=f"has {n_values} values, a row has 7 features"):
        shape.check(7)
    row = np.linspace(-1, 2, n_values)  # Beyond both limits.
    address = shape.address(row, 0.0, 1.0)
    head, content = address.split(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == ((2, 3, 3) if shape.channels == 3 else (2, 3))
    expected = np.clip(row, 0, 1) * 255
    np.testing.assert_allclose(pixels.ravel(), expected, atol=0.51)


def test_what_is_no_number_is_black() -> None:
    address = ImageShape.parse("1x2").address(np.array([np.nan, 5.0]), 5.0, 5.0)
    with Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))) as picture:
        assert np.asarray(picture).tolist() == [[0, 0]]
