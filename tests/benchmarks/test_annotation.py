"""The scripted annotator, on a model that paints a disc around each click."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from adapterkit.data.dataset import LabelledImage
from adapterkit.web import rle
from adapterkit.web.model import Ask, Found
from benchmarks.annotation import Options, annotate, next_click, shown_masks

NAMES = {1: "cavity", 2: "wall"}


class Discs:
    """Finds a disc of 3 pixels around each click inside of a structure, and knows "cavity" by name:
    there it has a square of its own too."""

    def __init__(self, knows: Sequence[str] = ()):
        self.knows = tuple(knows)

    def classes(self, adapter: str | None) -> tuple[str, ...]:
        return self.knows

    def ask(self, key: object, read: Any, adapter: str | None, asks: Sequence[Ask]) -> list[Found]:
        rows, columns = np.indices((16, 16))
        found = []
        for each in asks:
            mask = np.zeros((16, 16), bool)
            if each.name is not None:
                mask[2:8, 2:8] = True
            for point in each.points:
                disc = np.hypot(rows - point.y, columns - point.x) <= 3
                mask = mask | disc if point.inside else mask & ~disc
            found.append(Found(rle.encode(mask), 1.0, None, 0.0))
        return found


@pytest.fixture
def native() -> LabelledImage:
    labels = np.zeros((16, 16), np.uint8)
    labels[2:8, 2:8] = 1
    labels[10:15, 10:15] = 2
    return LabelledImage(np.zeros((16, 16), np.uint8), labels, None)


def test_what_is_good_enough_takes_no_click_and_the_rest_some(native: LabelledImage):
    options = Options(targets=(0.5, 0.7), most=4)
    model: Any = Discs(["Cavity"])
    done = annotate(model, "mine", native, NAMES, options)
    assert done.points[1] == ()
    assert [counts[1] for counts, _ in done.counts] == [0, 0]
    first, second = (counts[2] for counts, _ in done.counts)
    assert 1 <= first <= second
    base = annotate(Discs(), None, native, NAMES, options)  # pyright: ignore[reportArgumentType]
    assert base.points[1]


def test_a_structure_is_given_up_and_counts_all_its_clicks(native: LabelledImage):
    options = Options(targets=(0.5, 1.0), most=3)
    done = annotate(Discs(), None, native, NAMES, options)  # pyright: ignore[reportArgumentType]
    counts, missed = done.counts[-1]
    assert counts == {1: 3, 2: 3}
    assert missed == 2


def test_masks_are_those_of_the_page_without_overlaps(native: LabelledImage):
    from adapterkit.web.drafts import Point

    points = {1: (Point(5, 5, True),), 2: (Point(6, 6, True), Point(12, 12, True))}
    model: Any = Discs()
    masks = shown_masks(model, None, native, NAMES, points)
    assert not (masks[1] & masks[2]).any()
    assert masks[2][12, 12]


def test_what_is_anothers_is_clicked_on_as_the_others(native: LabelledImage):
    known = np.array([1, 2])
    too_much = (native.labels == 1) | (native.labels == 2)
    label, point = next_click(1, too_much, native.labels, known)
    assert (label, point.inside) == (2, True)
    assert native.labels[int(point.y), int(point.x)] == 2
    label, point = next_click(1, too_much, native.labels, np.array([1]))
    assert (label, point.inside) == (1, False)
    label, point = next_click(1, np.zeros((16, 16), bool), native.labels, known)
    assert (label, point.inside) == (1, True)
