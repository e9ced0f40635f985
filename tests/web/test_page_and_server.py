"""Tests of the page in a browser: tabs, servers that go, uploads and training."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import adapterkit as ak
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.inference.predictor import Predictor
from adapterkit.web.model import Model
from adapterkit.web.server import Service, serving
from tests.web.browsing import click, is_idle, points, until, write_pictures
from tests.web.served import HERE, free_port

# Two tabs, and a server that goes


def test_nothing_is_overwritten_without_a_question(visit: Callable[..., Any], address: str):
    mine, theirs = visit("tabs"), visit("tabs")
    click(theirs, 30, 20)
    until(lambda: points(address, "tabs") == [(30, 20, True)], "the click did not arrive")
    click(mine, 50, 40)
    mine.locator("#question").wait_for()
    assert points(address, "tabs") == [(30, 20, True)]
    mine.get_by_role("button", name="Show theirs").click()
    until(lambda: is_idle(mine), "the page waits")
    click(mine, 60, 40)
    both = [(30, 20, True), (60, 40, True)]
    until(lambda: points(address, "tabs") == both, "theirs is not shown")
    click(theirs, 10, 10)
    theirs.locator("#question").wait_for()
    assert points(address, "tabs") == both
    theirs.get_by_role("button", name="Overwrite with mine").click()
    mine_alone = [(30, 20, True), (10, 10, True)]
    until(lambda: points(address, "tabs") == mine_alone, "it was not overwritten")
    # A tab that one comes back to shows what was done in the other.
    until(lambda: is_idle(theirs), "the page waits")
    mine.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    mine.wait_for_timeout(300)
    until(lambda: is_idle(mine), "the page waits")
    click(mine, 40, 30)
    until(lambda: points(address, "tabs") == [*mine_alone, (40, 30, True)], "it did not follow")
    assert mine.locator("#question").is_hidden()


def test_a_server_that_goes_and_comes_back_loses_nothing(
    visit: Callable[..., Any], page_model: Model, tmp_path: Path
):
    service = Service(
        page_model, folder=write_pictures(tmp_path / "few", "a", "b"), port=free_port()
    )
    with serving(service) as address:
        tab = visit("a", address)
        click(tab, 30, 20)
        until(lambda: points(address, "a") == [(30, 20, True)], "the click did not arrive")
    click(tab, 60, 40)
    tab.locator("#absent").wait_for()
    click(tab, 50, 40)
    with serving(service) as address:
        expected = [(30, 20, True), (60, 40, True), (50, 40, True)]
        until(lambda: points(address, "a") == expected, "what was clicked meanwhile is lost")
        tab.locator("#absent").wait_for(state="hidden")
        assert tab.locator("#question").is_hidden()


# Without a folder


_DROP = """() => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File(["\\x89PNG and no more"], "broken.png"));
  const drop = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
  document.querySelector("#image").dispatchEvent(drop);
}"""
"""A damaged file, dropped on the picture."""


def test_uploads(visit: Callable[..., Any], page_model: Model, tmp_path: Path):
    write_pictures(tmp_path, "scan")
    with serving(Service(page_model, port=free_port())) as address:
        tab = visit("", address)
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.set_input_files("#files", tmp_path / "images/scan.png")
        until(lambda: "scan" in tab.locator("#current").inner_text(), "it is not shown")
        until(lambda: is_idle(tab), "the page waits")
        click(tab, 30, 20)
        until(lambda: tab.locator("#undo").is_enabled() and is_idle(tab), "the page waits")
        tab.evaluate(_DROP)
        tab.get_by_text("broken.png cannot be read as a picture").wait_for()
        tab.select_option("#ending", ".png")
        with tab.expect_download() as started:
            tab.keyboard.press("d")
        assert started.value.suggested_filename == "scan_mask.png"
        started.value.save_as(tmp_path / "scan_mask.png")
        area = int((read_label_map(tmp_path / "scan_mask.png").frames[0] == 1).sum())
        assert tab.locator("#structures .told").first.inner_text() == f"{area:,} px"
        # It is this browser's alone, and nothing came from elsewhere.
        tab.reload()
        tab.wait_for_selector("body.ready")
        assert tab.locator("#images .name").all_inner_texts() == ["scan"]
        assert visit("", address).locator("#images .name").count() == 0
        assert asked
        assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


# Training, and a server that is killed


STEPS = {
    "running": {"status": "running", "epoch": 2, "offer": False, "message": ""},
    "done": {"status": "done", "epoch": 4, "offer": True, "message": "Dice 0.912, before 0.700."},
}


def test_a_training_is_followed_and_its_adapter_taken(visit: Callable[..., Any], address: str):
    """With a server that tells of a training which does not run."""
    tab = visit("next")
    stage, asked = {"at": "running"}, []

    def training(route: Any) -> None:
        asked.append(f"{route.request.method} {route.request.url.removeprefix(address)}")
        told = STEPS[stage["at"]]
        curve = [
            {"epoch": e, "loss": 1 / e, "dice": 1 - 1 / e} for e in range(1, told["epoch"] + 1)
        ]
        shared = {"epochs": 4, "images": 5, "dice": 0.912, "dice_before": 0.7, "log_tail": "a line"}
        route.fulfill(json={**told, **shared, "curve": curve})

    def state(route: Any) -> None:
        told = route.fetch().json()
        for each in told["images"]:
            each["status"] = "accepted"
        begun = "POST api/training" in asked
        it = {**STEPS[stage["at"]], "epochs": 4, "images": 5, "curve": [], "log_tail": ""}
        route.fulfill(json={**told, "training": it if begun else None})

    tab.route("**/api/state", state)
    tab.route("**/api/training", training)
    tab.route("**/api/training/use", training)
    tab.reload()
    tab.wait_for_selector("body.ready")
    tab.click("#training .start")
    told = tab.locator("#training .told")
    until(lambda: told.inner_text().startswith("Epoch 2 of 4 on 5 images"), "it is not followed")
    until(lambda: tab.locator("#training .curve path").count() == 2, "there is no curve")
    assert tab.locator("#training .stop").is_visible()
    stage["at"] = "done"
    until(lambda: told.inner_text() == "Dice 0.912, before 0.700.", "its end is not told")
    tab.click("#training .use")
    until(lambda: "POST api/training/use" in asked, "it is not taken")


@pytest.mark.slow
def test_train(visit: Callable[..., Any], tmp_path: Path):
    """In a process of its own, for one epoch on three images."""
    folder = write_pictures(tmp_path / "few", "a", "b", "c")
    model = Model(Predictor(ak.mini_sam()))
    with serving(Service(model, folder=folder, port=free_port())) as address:
        tab = visit("a", address)
        for number in (1, 2, 3):
            until(lambda: is_idle(tab), "the page waits")
            click(tab, 30, 20)
            until(lambda: tab.locator("#undo").is_enabled() and is_idle(tab), "not clicked")
            tab.keyboard.press("a")
            tab.get_by_text(f"{number} of 3 accepted").wait_for()
        wish = '{"epochs": 1, "image_size": 64, "batch_size": 1}'

        def briefly(route: Any) -> None:
            route.continue_(post_data=wish if route.request.method == "POST" else None)

        tab.route("**/api/training", briefly)
        tab.click("#training .start")
        tab.locator("#training .stop").wait_for()
        tab.locator("#training .start").wait_for(timeout=300_000)
        assert tab.locator("#training .told").inner_text().startswith("Dice on 1 held-out image")
        # The page stays usable meanwhile, and the adapter before stays.
        assert httpx.get(f"{address}api/state").json()["adapter"] is None


@pytest.mark.slow
def test_a_server_that_is_killed_while_it_saves(visit: Callable[..., Any], tmp_path: Path):
    folder, port = write_pictures(tmp_path / "few", "a", "b"), free_port()
    command = [sys.executable, "-m", "adapterkit", "serve", str(folder), "--port", str(port)]
    address = f"http://{HERE}:{port}/"

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until(lambda: answers(address), "the server does not come up")
        return process

    process = start()
    try:
        tab = visit("a", address)
        tab.click("#add")
        for k in range(6):
            click(tab, 30 + k, 20)
        until(lambda: len(points(address, "a")) > 1, "no click arrived")
        process.kill()
        process.wait()
        process = start()
        expected = [(30 + k, 20, True) for k in range(6)]
        until(lambda: is_idle(tab) and points(address, "a") == expected, "clicks are lost")
        # Also of a click that was saved, but not answered, nobody asks whose it was.
        assert tab.locator("#question").is_hidden()
        tab.keyboard.press("a")
        until(lambda: (folder / "masks/a.png").exists(), "it is not accepted")
    finally:
        process.kill()
        process.wait()


def answers(address: str) -> bool:
    try:
        return httpx.get(address).is_success
    except httpx.TransportError:
        return False
