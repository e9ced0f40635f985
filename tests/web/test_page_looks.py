"""Tests of the page in a browser: what is in sight, themes, and a phone."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.web.browsing import HEIGHT, WIDTH, is_idle, place, points, until


@pytest.mark.parametrize("size", [(1440, 900), (1280, 900)])
def test_what_one_works_with_is_in_sight_and_stays(visit: Callable[..., Any], size: tuple):
    tab = visit("next", viewport={"width": size[0], "height": size[1]})
    parts = "#image", "#accept", "#adapter", "#undo", "#structures", "#training", "#brightness"
    before = {each: tab.locator(each).bounding_box() for each in parts}
    for name, box in before.items():
        assert box["y"] + box["height"] <= size[1], f"{name} is below the fold"
    assert before["#image"]["width"] * before["#image"]["height"] > 0.6 * size[0] * size[1]
    tab.keyboard.press("p")
    tab.keyboard.press("c")
    tab.hover("#undo")
    tab.locator("#tip").wait_for()
    assert "Ctrl+Z" in tab.locator("#tip").inner_text()
    assert {each: tab.locator(each).bounding_box() for each in parts} == before


def test_the_theme_is_chosen_and_kept(visit: Callable[..., Any]):
    tab = visit("next", color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = tab.evaluate(ground)
    tab.click("#theme")
    assert tab.evaluate("document.documentElement.dataset.theme") == "light"
    light = tab.evaluate(ground)
    assert light != dark
    tab.reload()
    assert tab.evaluate(ground) == light


def test_on_a_phone(visit: Callable[..., Any], address: str):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    tab = visit("phone", **phone)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    # The picture fills its place, without bars; list and tools are beside it without scrolling.
    box = until(lambda: shape_of(tab), "the picture has bars")
    assert tab.locator("#current").bounding_box()["y"] < box["y"]
    for part in ("#tools", "#accept", "#structures"):
        bounds = tab.locator(part).bounding_box()
        assert bounds["y"] + bounds["height"] <= 844, part
    assert "Shift" not in tab.locator("body").inner_text()
    tab.tap("#current")
    tab.locator("[data-id=box] .open").tap()
    until(lambda: "box" in tab.locator("#current").inner_text(), "the list does not open an image")
    tab.goto(f"{address}#phone")
    until(lambda: "phone" in tab.locator("#current").inner_text(), "the address is not followed")
    until(lambda: shape_of(tab) and is_idle(tab), "the page waits")
    tab.touchscreen.tap(*place(tab, 30.5, 20.5))
    until(lambda: points(address, "phone") == [(30, 20, True)], f"{points(address, 'phone')}")
    tab.get_by_text("− outside").tap()
    tab.touchscreen.tap(*place(tab, 70.5, 40.5))
    tapped = [(30, 20, True), (70, 40, False)]
    until(lambda: points(address, "phone") == tapped, f"{points(address, 'phone')}")
    pinch(tab)
    until(lambda: tab.evaluate("document.documentElement.scrollWidth") == 390, "the page zoomed")
    assert points(address, "phone") == tapped


def shape_of(tab: Any) -> Any:
    """The canvas, if it has the picture's shape."""
    box = tab.locator("#image").bounding_box()
    return box if abs(box["width"] / box["height"] - WIDTH / HEIGHT) < 0.02 else None


def pinch(tab: Any) -> None:
    """With two fingers on the picture."""
    box = tab.locator("#image").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = tab.context.new_cdp_session(tab)
    for kind, apart in (("touchStart", 20), ("touchMove", 40), ("touchMove", 80), ("touchEnd", 0)):
        fingers = [{"x": x - apart, "y": y}, {"x": x + apart, "y": y}] if apart else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})
