"""Tests of the page in a browser: what an annotator does, by mouse and by keys."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from adapterkit.data.files.label_maps import read_label_map
from adapterkit.web import rle
from adapterkit.web.model import Model
from adapterkit.web.server import Service, serving
from tests.web.browsing import (
    BRIGHT,
    HEIGHT,
    WIDTH,
    answer,
    click,
    click_of_ratio,
    drag,
    is_idle,
    mask,
    points,
    seen,
    until,
    write_pictures,
)
from tests.web.served import free_port

# A folder


def test_open_correct_reload_accept(visit: Callable[..., Any], address: str, pictures: Path):
    tab = visit("accept")
    rows = tab.locator("#images .name")
    until(lambda: rows.count() == 10, "the list is not there")
    assert tab.locator("#structures .name").all_inner_texts() == ["atrium", "wall"]
    # Masks without a click.
    unasked = mask(address, "accept")
    assert unasked.any()
    told = tab.locator("#structures .told").first
    until(lambda: told.inner_text() == f"{unasked.sum():,} px", "the area is not shown")
    click(tab, 30, 20)
    click(tab, 70, 40, button="right")
    click(tab, 71, 41)
    clicked = [(30, 20, True), (70, 40, False), (71, 41, True)]
    until(lambda: points(address, "accept") == clicked, "the clicks did not arrive")
    until(lambda: is_idle(tab), "the page waits")
    area = told.inner_text()

    tab.reload()
    tab.wait_for_selector("body.ready")
    until(lambda: told.inner_text() == area, "the mask is not there after a reload")
    assert points(address, "accept") == clicked
    tab.keyboard.press("Control+z")
    until(lambda: points(address, "accept") == clicked[:2], "undo after a reload")
    tab.keyboard.press("Control+Shift+z")
    until(lambda: points(address, "accept") == clicked, "redo")
    until(lambda: is_idle(tab), "the page waits")
    expected = mask(address, "accept") + 2 * mask(address, "accept", 2)

    tab.keyboard.press("a")
    tab.get_by_text("Saved as masks/accept.png").wait_for()
    saved = read_label_map(pictures / "masks/accept.png").frames[0]
    np.testing.assert_array_equal(saved, expected)
    until(lambda: "beat" in tab.locator("#current").inner_text(), "the next image is not shown")
    row = tab.locator("#images li[data-id=accept]")
    assert row.get_attribute("data-status") == "accepted"
    assert "1 of 10 accepted" in tab.locator("#progress").inner_text()


def test_another_adapter_answers_and_names_stay(visit: Callable[..., Any], address: str):
    tab = visit("switch")
    click(tab, 30, 20)
    until(lambda: points(address, "switch") == [(30, 20, True)], "the click did not arrive")
    before = mask(address, "switch")
    try:
        tab.select_option("#adapter", "")
        until(lambda: not np.array_equal(mask(address, "switch"), before), "the mask is the same")
        until(lambda: tab.locator("#structures .name").count() == 2, "structures are gone")
        assert tab.locator("#structures .name").all_inner_texts() == ["atrium", "wall"]
        area = f"{mask(address, 'switch').sum():,} px"
        until(lambda: tab.locator("#structures .told").first.inner_text() == area, "not shown")
    finally:
        httpx.post(f"{address}api/adapter", json={"name": "named"}).raise_for_status()


# Where a click is


@pytest.mark.parametrize("zooms", [0, 3, 9])
def test_a_click_is_on_the_pixel_that_is_seen(visit: Callable[..., Any], address: str, zooms: int):
    tab = visit("bright")
    tab.keyboard.press("m")
    box = tab.locator("#image").bounding_box()
    middle = np.array([box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])

    def find() -> np.ndarray:
        """The middle of the bright pixel on the screen."""
        shown = seen(tab)
        # Without the buttons that lie on the picture.
        shown[:, -60:] = 0
        y, x = np.argwhere(shown > 200).mean(axis=0)
        return np.array([box["x"] + x + 0.5, box["y"] + y + 0.5])

    until(lambda: (seen(tab)[:, :-60] > 200).any(), "the picture is not shown")
    for _ in range(zooms):
        x, y = find()
        tab.mouse.move(x + 17, y - 11)
        tab.mouse.wheel(0, -120)
        tab.wait_for_timeout(60)
    if zooms:  # To the middle of the screen, by the middle button.
        tab.mouse.move(*find())
        tab.mouse.down(button="middle")
        tab.mouse.move(*middle, steps=3)
        tab.mouse.up(button="middle")
        tab.wait_for_timeout(60)
    there = find()
    if zooms:
        np.testing.assert_allclose(there, middle, atol=1.5)
    tab.mouse.click(*there)
    until(lambda: points(address, "bright") == [(*BRIGHT, True)], f"{points(address, 'bright')}")
    until(lambda: is_idle(tab), "the page waits")
    tab.keyboard.press("Control+z")
    until(lambda: points(address, "bright") == [], "undo")


def test_contrast_changes_what_is_seen_alone(visit: Callable[..., Any], address: str):
    tab = visit("bright")
    tab.keyboard.press("m")
    until(lambda: seen(tab).max() > 200, "the picture is not shown")
    before, masks = seen(tab), answer(address, "bright")["masks"]
    tab.keyboard.press("w")
    drag(tab, (48, 50), (48, 20))
    until(lambda: seen(tab).mean() > before.mean() + 10, "it is not brighter")
    assert tab.locator("#brightness").input_value() != "0"
    tab.reload()
    tab.wait_for_selector("body.ready")
    assert tab.locator("#brightness").input_value() != "0"
    tab.keyboard.press("Shift+w")
    assert tab.locator("#brightness").input_value() == "0"
    assert answer(address, "bright")["masks"] == masks


# Tools


def test_brush_and_eraser(visit: Callable[..., Any], address: str):
    tab = visit("brush")
    tab.keyboard.press("2")
    tab.keyboard.press("p")
    before = mask(address, "brush", 2)
    drag(tab, (20.5, 50.5), (60.5, 50.5))
    until(lambda: mask(address, "brush", 2)[50, 20:61].all(), "the stroke is not in the mask")
    painted = mask(address, "brush", 2)
    # Nothing but the stroke, which is as wide as the brush.
    rows = np.flatnonzero((painted & ~before).any(axis=1))
    assert rows.min() >= 50 - 8
    assert rows.max() <= 50 + 8
    assert not (painted & mask(address, "brush", 1)).any()
    until(lambda: is_idle(tab), "the page waits")
    tab.keyboard.press("e")
    for _ in range(4):
        tab.keyboard.press("[")
    drag(tab, (40.5, 45.5), (40.5, 55.5))
    until(lambda: not mask(address, "brush", 2)[50, 40], "the eraser erased nothing")
    assert mask(address, "brush", 2)[50, [22, 58]].all()
    until(lambda: is_idle(tab), "the page waits")
    tab.click("#undo")
    until(lambda: np.array_equal(mask(address, "brush", 2), painted), "undo of the eraser")
    until(lambda: is_idle(tab), "the page waits")
    tab.click("#undo")
    until(lambda: np.array_equal(mask(address, "brush", 2), before), "undo of the brush")
    until(lambda: is_idle(tab), "the page waits")
    tab.click("#redo")
    until(lambda: np.array_equal(mask(address, "brush", 2), painted), "redo of the brush")


def test_a_box_is_where_it_is_drawn(visit: Callable[..., Any], address: str):
    tab = visit("box")
    tab.keyboard.press("b")
    drag(tab, (70.5, 50.25), (20, 10))
    found = until(lambda: answer(address, "box")["prompts"], "the box did not arrive")
    np.testing.assert_allclose(found[0]["box"], [20, 10, 70.5, 50.25], atol=0.15)
    until(lambda: is_idle(tab), "the page waits")
    tab.keyboard.press("Delete")
    until(lambda: not answer(address, "box")["prompts"], "it was not taken back")


def test_structures_are_added_named_coloured_and_deleted(
    visit: Callable[..., Any], page_model: Model, tmp_path: Path
):
    service = Service(
        page_model, folder=write_pictures(tmp_path / "few", "a", "b"), port=free_port()
    )
    with serving(service) as address:
        tab = visit("a", address)
        names = tab.locator("#structures .name")
        tab.click("#add")
        until(lambda: names.all_inner_texts() == ["atrium", "wall", "structure 3"], "not added")
        tab.keyboard.press("F2")
        tab.keyboard.type("left valve")
        tab.locator("#structure .palette input").nth(4).check(force=True)
        tab.keyboard.press("Enter")
        until(lambda: names.nth(2).inner_text() == "left valve", "not renamed")
        structures = httpx.get(f"{address}api/state").json()["structures"]
        assert structures[2] == {"label": 3, "name": "left valve", "colour": "#009e73"}
        tab.keyboard.press("F2")
        tab.keyboard.type("<b>")
        tab.keyboard.press("Enter")
        tab.get_by_text("cannot be called '<b>'").wait_for()
        tab.keyboard.press("F2")
        tab.click("#structure [value=delete]")
        tab.click("#question [value=yes]")
        until(lambda: names.all_inner_texts() == ["atrium", "wall"], "not deleted")


# By keys alone


def test_by_keys_alone(visit: Callable[..., Any], address: str, pictures: Path):
    tab = visit("keys")
    reached: set[str] = set()
    for _ in range(60):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"image", "adapter", "accept", "add", "brightness", "following"} <= reached
    tab.locator("#image").focus()
    tab.keyboard.press("ArrowRight")  # The cross begins in the middle.
    tab.keyboard.press("ArrowRight")
    for _ in range(2):
        tab.keyboard.press("Shift+ArrowDown")
    tab.keyboard.press("Enter")
    first = (WIDTH // 2 + 1, HEIGHT // 2 + 20, True)
    until(lambda: points(address, "keys") == [first], f"{points(address, 'keys')}")
    tab.keyboard.press("ArrowUp")
    tab.keyboard.press("Shift+Enter")
    second = (first[0], first[1] - 1, False)
    until(lambda: points(address, "keys") == [first, second], f"{points(address, 'keys')}")
    tab.keyboard.press("ArrowUp")
    tab.keyboard.press("Space")
    third = (first[0], first[1] - 2, True)
    until(lambda: points(address, "keys") == [first, second, third], "the space bar")
    tab.keyboard.press("2")
    tab.keyboard.press("b")
    tab.keyboard.press("Enter")
    for _ in range(2):
        tab.keyboard.press("Shift+ArrowLeft")
        tab.keyboard.press("Shift+ArrowUp")
    tab.keyboard.press("Enter")
    x, y = third[:2]
    box = [x - 20, y - 20, x + 1, y + 1]
    until(lambda: answer(address, "keys")["prompts"][-1]["box"] == box, "the box by keys")
    tab.keyboard.press("p")
    tab.keyboard.press("Enter")
    until(lambda: mask(address, "keys", 2)[y - 20, x - 20], "the brush by keys")
    until(lambda: is_idle(tab), "the page waits")
    tab.keyboard.press("?")
    assert tab.locator("#keys").is_visible()
    tab.keyboard.press("Escape")
    tab.keyboard.press("a")
    until(lambda: (pictures / "masks/keys.png").exists(), "it is not accepted")


# Sequences


def test_a_sequence(visit: Callable[..., Any], address: str):
    tab = visit("beat")
    until(lambda: tab.locator("#frame-told").inner_text() == "1 / 4", "there is no slider")
    # Of all frames the areas are drawn, once they are there.
    line = tab.locator("#areas path")
    until(lambda: (line.get_attribute("d") or "").count("L") == 3, "the curve is not whole")
    assert {"ED", "ES"} >= set(tab.locator("#areas text").all_text_contents())
    for _ in range(2):
        tab.keyboard.press(".")
    until(lambda: tab.locator("#frame-told").inner_text() == "3 / 4", "the frame is not shown")
    click_of_ratio(tab, 30, 20)
    until(lambda: points(address, "beat", frame=2) == [(30, 20, True)], "the click's frame")
    assert points(address, "beat", frame=0) == []
    until(lambda: is_idle(tab), "the page waits")
    before = mask(address, "beat", frame=3)
    tab.keyboard.press(">")
    until(lambda: not np.array_equal(mask(address, "beat", frame=3), before), "nothing is carried")
    tab.reload()
    tab.wait_for_selector("body.ready")
    assert tab.locator("#frame-told").inner_text() == "3 / 4"
    until(lambda: (line.get_attribute("d") or "").count("L") == 3, "the curve is not whole")
    tab.keyboard.press("l")
    passed = set()
    until(
        lambda: passed.add(tab.locator("#frame-told").inner_text()) or len(passed) > 2,
        "it does not play",
    )
    tab.keyboard.press("l")


# Masks in the browser

_TRACE = """async ([pixels, width, height]) => {
  const masks = await import(new URL("static/masks.js", location.href));
  const mask = Uint8Array.from(pixels);
  const path = masks.exactPath(masks.rings(mask, width, height));
  const context = document.createElement("canvas").getContext("2d");
  const inside = pixels.map((_, at) => context.isPointInPath(
    path, (at % width) + 0.5, Math.floor(at / width) + 0.5, "evenodd"));
  const { size, counts } = masks.encode(mask, width, height);
  return { inside, size, counts, back: [...masks.decode({ size, counts })] };
}"""


@pytest.mark.parametrize("inside", [
    np.zeros((4, 5), bool),
    np.ones((5, 7), bool),
    np.random.default_rng(1).random((20, 30)) < 0.5,
    np.pad(np.pad(np.zeros((3, 3), bool), 3, constant_values=True), 2),
])  # fmt: skip
def test_outlines_and_run_lengths_are_those_of_the_mask(
    visit: Callable[..., Any], inside: np.ndarray
):
    tab = visit("next")
    height, width = inside.shape
    found = tab.evaluate(_TRACE, [inside.astype(int).ravel().tolist(), width, height])
    assert found["inside"] == inside.ravel().tolist()
    assert found["back"] == inside.astype(int).ravel().tolist()
    assert found["size"] == [height, width]
    np.testing.assert_array_equal(rle.decode(found, inside.shape), inside)
