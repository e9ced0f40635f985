"""Tests of the outlines of masks."""

import re

import numpy as np
import pytest
from matplotlib.path import Path as Polygon

from adapterkit.evaluation.outlines import outline

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("inside", [
    np.ones((5, 7), bool),
    RNG.random((20, 30)) < 0.5,
    np.pad(np.pad(np.zeros((3, 3), bool), 3, constant_values=True), 2),
])  # fmt: skip
def test_an_outline_encloses_the_pixels_of_the_mask(inside: np.ndarray):
    heights = np.where(inside, 1, -1) * RNG.random(inside.shape, dtype=np.float32)
    drawn = outline(heights, inside)
    rows, columns = np.indices(inside.shape) + 0.5
    crossings = np.zeros(inside.shape, int)
    for line in re.findall(r"M([^Z]*)Z", drawn):
        corners = np.array([point.split(",") for point in line.split()], float)
        assert (corners >= 0).all()
        assert (corners <= inside.shape[::-1]).all()
        points = np.stack([columns.ravel(), rows.ravel()], axis=1)
        crossings += Polygon(corners).contains_points(points).reshape(inside.shape)
    # By the rule that browsers fill by, even-odd. Heights so near 0 that rounding to hundredths of
    # a pixel decides are left out.
    sure = abs(heights) > 0.1
    np.testing.assert_array_equal(crossings[sure] % 2 == 1, inside[sure])
