"""What the tests of the page ask its server, and do in a tab."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from scipy import ndimage

from adapterkit.web import rle

RNG = np.random.default_rng(0)
WIDTH, HEIGHT = 96, 64
BRIGHT = 61, 23
"""The pixel of the image `bright` that no other is like."""
SPACING = 0.5, 0.25
"""Of its rows and columns, in mm."""


def write_pictures(folder: Path, *names: str) -> Path:
    """A folder of pictures."""
    images = folder / "images"
    images.mkdir(parents=True)
    for name in names:
        pixels = RNG.integers(0, 200, (HEIGHT, WIDTH), dtype=np.uint8)
        Image.fromarray(ndimage.uniform_filter(pixels, 5)).save(images / f"{name}.png")
    return folder


def until(true: Callable[[], Any], what: str) -> Any:
    """Waits, since a page does what it is told when it can."""
    deadline = time.monotonic() + 40
    while not (found := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


def answer(address: str, image: str, frame: int = 0) -> dict[str, Any]:
    return httpx.get(f"{address}api/images/{image}/frames/{frame}").raise_for_status().json()


def points(address: str, image: str, structure: int = 1, frame: int = 0) -> list[Any]:
    """The clicks that the server knows, as (x, y, inside)."""
    for each in answer(address, image, frame)["prompts"]:
        if each["structure"] == structure:
            return [(p["x"], p["y"], p["inside"]) for p in each["points"]]
    return []


def mask(address: str, image: str, structure: int = 1, frame: int = 0) -> np.ndarray:
    for each in answer(address, image, frame)["masks"]:
        if each["structure"] == structure:
            return rle.decode(each["rle"], (HEIGHT, WIDTH))
    return np.zeros((HEIGHT, WIDTH), bool)


def place(tab: Any, x: float, y: float) -> tuple[float, float]:
    """Where a point of a picture with square pixels is, if the whole picture is shown."""
    box = tab.locator("#image").bounding_box()
    scale = min(box["width"] / WIDTH, box["height"] / HEIGHT)
    left = box["x"] + (box["width"] - scale * WIDTH) / 2
    top = box["y"] + (box["height"] - scale * HEIGHT) / 2
    return left + scale * x, top + scale * y


def click(tab: Any, x: int, y: int, **how: Any) -> None:
    tab.mouse.click(*place(tab, x + 0.5, y + 0.5), **how)


def drag(tab: Any, *corners: tuple[float, float], button: str = "left") -> None:
    tab.mouse.move(*place(tab, *corners[0]))
    tab.mouse.down(button=button)
    for corner in corners[1:]:
        tab.mouse.move(*place(tab, *corner), steps=4)
    tab.mouse.up(button=button)


def is_idle(tab: Any) -> bool:
    return not tab.evaluate("document.body.classList.contains('working')")


def seen(tab: Any) -> np.ndarray:
    """The pixels of the canvas on the screen."""
    shot = tab.locator("#image").screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("L")).astype(int)


def click_of_ratio(tab: Any, x: int, y: int) -> None:
    """On a picture whose pixels are half as wide as high."""
    ratio = SPACING[1] / SPACING[0]
    box = tab.locator("#image").bounding_box()
    scale = min(box["width"] / (WIDTH * ratio), box["height"] / HEIGHT)
    left = box["x"] + (box["width"] - scale * WIDTH * ratio) / 2
    top = box["y"] + (box["height"] - scale * HEIGHT) / 2
    tab.mouse.click(left + scale * ratio * (x + 0.5), top + scale * (y + 0.5))
