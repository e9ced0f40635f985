"""The page in a browser: its server, and tabs that show it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from adapterkit.web.model import Model
from adapterkit.web.server import Service, serving
from tests.web.browsing import BRIGHT, HEIGHT, RNG, SPACING, WIDTH, is_idle, until, write_pictures
from tests.web.served import free_port, make_model


@pytest.fixture(scope="session")
def page_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Two adapters: "named" knows an atrium and a wall, "clicked" has to be clicked."""
    return make_model(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image for each test, one of them with spacing, and a sequence."""
    names = ("accept", "box", "brush", "keys", "next", "phone", "switch", "tabs")
    folder = write_pictures(tmp_path_factory.mktemp("work") / "hearts", *names)
    pixels = RNG.integers(0, 60, (HEIGHT, WIDTH), dtype=np.uint8)
    pixels[BRIGHT[1], BRIGHT[0]] = 255
    stack = RNG.integers(0, 256, (4, HEIGHT, WIDTH), dtype=np.uint8)
    affine = np.diag([SPACING[1], SPACING[0], 1, 1])
    nibabel.save(nibabel.Nifti1Image(pixels.T, affine), folder / "images/bright.nii.gz")
    nibabel.save(nibabel.Nifti1Image(stack.T, affine), folder / "images/beat.nii.gz")
    return folder


@pytest.fixture(scope="module")
def address(browser: Any, page_model: Model, pictures: Path) -> Iterator[str]:
    """Of the server of that folder; while it runs, temporary files of this process are its."""
    service = Service(page_model, "A tiny model.", pictures, annotator="Anna", port=free_port())
    with serving(service) as address:
        yield address


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens a page that shows an image; what goes wrong in its scripts fails the test."""
    contexts, wrong = [], []

    def visit(image: str = "", at: str = address, **how: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **how})
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(20_000)  # ms, for machines that are busy
        tab.on("pageerror", lambda error: wrong.append(error))
        tab.on("console", lambda told: _is_refused(told.text) and wrong.append(told.text))
        tab.goto(f"{at}#{image}")
        tab.wait_for_selector("body.ready")
        until(lambda: is_idle(tab), "the image is not shown")
        return tab

    yield visit
    for each in contexts:
        each.close()
    assert wrong == []


def _is_refused(told: str) -> bool:
    """Whether the browser says that the page's security policy forbade something."""
    return "Content Security Policy" in told
