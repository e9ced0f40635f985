"""Tests of masks that follow each click."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import adapterkit as ak
from adapterkit.inference.obeying import obeying

SIZE = (24, 32)
PIXELS = st.tuples(st.integers(0, SIZE[1] - 1), st.integers(0, SIZE[0] - 1))
CLICKS = st.lists(st.tuples(PIXELS, st.booleans()), max_size=6, unique_by=lambda each: each[0])
LOGITS = arrays(np.float32, SIZE, elements=st.floats(-30, 30, width=32))


def disc(radius: float, middle: tuple[float, float] = (16, 12)) -> np.ndarray:
    """Logits of a disc: the distance to its outline, positive inside, in pixels."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return (radius - np.hypot(columns - middle[0], rows - middle[1])).astype(np.float32)


@given(LOGITS, CLICKS)
def test_every_click_is_on_its_side(logits: np.ndarray, clicks: list) -> None:
    points = np.array([point for point, _ in clicks]).reshape(-1, 2)
    found = obeying(logits, points, np.array([inside for _, inside in clicks], float))
    for (x, y), inside in clicks:
        assert (found[y, x] > 0) == inside
    assert found.dtype == logits.dtype


def test_a_mask_that_follows_its_clicks_stays_as_it_is() -> None:
    logits = disc(8)
    found = obeying(logits, np.array([[16, 12], [1, 1]]), np.array([1, 0]))
    assert found is logits


def test_a_click_fills_what_is_missing_up_to_the_outline_and_little_beyond() -> None:
    logits = disc(8)
    found = obeying(logits, np.array([[26, 12]]), np.array([1])) > 0
    before = logits > 0
    assert found[12, 16:27].all()
    assert (before & ~found).sum() == 0
    assert not found[12, 31]
    assert (found & ~before)[:, :12].sum() <= 2


def test_a_click_outside_takes_away() -> None:
    logits = disc(8)
    found = obeying(logits, np.array([[22, 12]]), np.array([0])) > 0
    assert not found[12, 22:].any()
    assert (found[:, :14] == (logits > 0)[:, :14]).all()


def test_a_click_where_there_is_nothing_makes_a_small_mask() -> None:
    found = obeying(np.full(SIZE, -5, np.float32), np.array([[10, 10]]), np.array([1])) > 0
    assert found[10, 10]
    assert 0 < found.mean() < 0.1


def test_a_later_click_in_the_same_pixel_wins() -> None:
    found = obeying(disc(8), np.array([[16, 12], [16, 12]]), np.array([1, 0]))
    assert found[12, 16] < 0


def test_predictions_of_several_structures_and_of_none() -> None:
    logits = np.stack([disc(8), disc(4)])
    found = ak.Prediction(logits, np.array([0.5, 0.6], np.float32), logits, (1, 1))
    obeyed = found.obeying([None, [(24, 12)]], [None, [1]])
    assert np.array_equal(obeyed.logits[0], logits[0])
    assert obeyed.masks[1, 12, 24]
    assert obeyed.low_res_logits is found.low_res_logits
    none = ak.Prediction(logits[:0], found.scores[:0], logits[:0], None)
    assert len(none.obeying([], []).logits) == 0
    with pytest.raises(ValueError, match="expected one of each for each structure"):
        found.obeying([None], [None])
