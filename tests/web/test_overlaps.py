"""Tests of run lengths, and of which structure wins where masks overlap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from adapterkit.web import rle
from adapterkit.web.overlaps import Claim, resolve

NAMES = {1: "ventricle", 2: "wall", 3: "atrium"}
SIZES = st.tuples(st.integers(1, 7), st.integers(1, 7))


@given(arrays(bool, SIZES))
def test_run_lengths_are_the_mask(mask: np.ndarray):
    runs = rle.encode(mask)
    assert sum(runs["counts"]) == mask.size
    assert all(n > 0 for n in runs["counts"][1:])
    np.testing.assert_array_equal(rle.decode(runs, mask.shape), mask)


@pytest.mark.parametrize("runs", [
    {"size": [2, 3], "counts": [5]},
    {"size": [2, 3], "counts": [4, 4, -2]},
    {"size": [2, 3], "counts": [5.0, 1.0]},
    {"size": [2, 3], "counts": [True, 5]},
    {"size": [2, 3]},
    {"size": [3, 2], "counts": [6]},
    {"counts": [6]},
])  # fmt: skip
def test_other_runs_are_refused(runs: dict):
    with pytest.raises(ValueError, match=r"expected|another size"):
        rle.decode(runs, (2, 3))


def square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((20, 20), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_a_wall_that_fills_the_cavity_takes_nothing_from_it():
    cavity, heart = square(5, 5, 6), square(2, 2, 14)
    masks, notes = resolve({1: Claim(cavity), 2: Claim(heart)}, NAMES)
    np.testing.assert_array_equal(masks[1], cavity)
    np.testing.assert_array_equal(masks[2], heart & ~cavity)
    assert notes == [
        "wall and ventricle overlap: 36 px count as ventricle; wall keeps 160 of 196 px."
    ]


def test_a_click_inside_a_piece_wins_it_and_paint_wins_all():
    cavity, heart = square(5, 5, 6), square(2, 2, 14)
    clicked = {1: Claim(cavity), 2: Claim(heart, inside=[(9, 9)])}
    masks, _ = resolve(clicked, NAMES)
    assert not masks[1].any()
    painted = {1: Claim(cavity, painted=square(5, 5, 2)), 2: clicked[2]}
    masks, _ = resolve(painted, NAMES)
    np.testing.assert_array_equal(masks[1], square(5, 5, 2))
    # A click of both decides nothing.
    both = {1: Claim(cavity, inside=[(7, 7)]), 2: clicked[2]}
    masks, _ = resolve(both, NAMES)
    np.testing.assert_array_equal(masks[1], cavity)


@given(st.lists(arrays(bool, (6, 6)), min_size=1, max_size=3), st.randoms())
def test_nothing_is_lost_and_nothing_overlaps_in_any_order(given_masks: list, random):
    claims = {k + 1: Claim(mask) for k, mask in enumerate(given_masks)}
    masks, notes = resolve(claims, NAMES)
    assert np.sum(list(masks.values()), axis=0).max() <= 1
    np.testing.assert_array_equal(np.any(list(masks.values()), axis=0), np.any(given_masks, axis=0))
    for label, mask in masks.items():
        assert not (mask & ~claims[label].mask).any()
        lost = int(claims[label].mask.sum() - mask.sum())
        assert bool(lost) == any(note.startswith(f"{NAMES[label]} and ") for note in notes)
