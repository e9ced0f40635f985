"""Procedural scenes: what their masks promise, and that a generator's state decides them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterkit.data.synthetic.canvas import MIN_AREA
from adapterkit.data.synthetic.recorded_scenes import draw_recorded_scene
from adapterkit.data.synthetic.scenes import draw_scene


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([64, 128, 250, 512]))
@settings(max_examples=30, deadline=None)
def test_masks_are_distinct_and_large_enough(seed, size):
    scene = draw_scene(np.random.default_rng(seed), size)
    assert scene.image.shape == (size, size, 3)
    assert scene.image.dtype == np.uint8
    assert scene.masks.shape[1:] == (size, size)
    assert (scene.masks.mean((1, 2)) >= MIN_AREA).all()
    assert len({mask.tobytes() for mask in scene.masks}) == len(scene.masks)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_masks_are_disjoint_or_nested(seed):
    """Visible regions partition the image; a whole is a union of some of them."""
    masks = draw_scene(np.random.default_rng(seed), 128).masks
    for a in masks:
        for b in masks:
            overlap = (a & b).sum()
            assert overlap in (0, a.sum(), b.sum())


def test_a_mask_shows_in_the_image():
    """Inside and outside of a mask differ in their mean colour more than two random halves do."""
    differences = []
    for seed in range(20):
        scene = draw_scene(np.random.default_rng(seed), 128)
        mask = min(scene.masks, key=lambda mask: abs(mask.mean() - 0.1))
        image = scene.image.astype(float)
        differences.append(np.abs(image[mask].mean(0) - image[~mask].mean(0)).max())
    assert np.median(differences) > 20


def test_the_same_generator_state_draws_the_same_scene():
    first, second, other = (draw_scene(np.random.default_rng(seed), 96) for seed in (3, 3, 4))
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.masks, second.masks)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("size", [31, 513])
@pytest.mark.parametrize("draw", [draw_scene, draw_recorded_scene])
def test_a_size_out_of_range_is_refused(draw, size):
    with pytest.raises(ValueError, match=f"size is {size} pixels: expected between 32 and 512"):
        draw(np.random.default_rng(0), size)


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([64, 250]))
@settings(max_examples=20, deadline=None)
def test_masks_of_recorded_scenes_are_distinct_and_large_enough(seed, size):
    scene = draw_recorded_scene(np.random.default_rng(seed), size)
    again = draw_recorded_scene(np.random.default_rng(seed), size)
    assert np.array_equal(scene.image, again.image)
    assert np.array_equal(scene.masks, again.masks)
    assert scene.image.shape == (size, size, 3)
    assert scene.image.dtype == np.uint8
    assert scene.masks.shape[1:] == (size, size)
    assert (scene.masks.mean((1, 2)) >= MIN_AREA).all()
    assert len({mask.tobytes() for mask in scene.masks}) == len(scene.masks)
