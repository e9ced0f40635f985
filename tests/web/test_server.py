"""Tests of the page's requests, and of the command that serves them."""

import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from adapterkit.commands import serve
from adapterkit.data.files.images import read_image
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.system.extras import MissingExtraError
from adapterkit.system.lock import FolderLockedError
from adapterkit.web import rle
from adapterkit.web.model import Ask, Model
from adapterkit.web.server import Service, serving
from tests.data.dicom_files import write_dicom
from tests.web.served import HERE, PIXELS, STACK, client, free_port, make_model, write_images


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "scans")


@pytest.fixture
def page(folder: Path, model: Model, tmp_path: Path) -> Iterator[TestClient]:
    """Of a server on a folder."""
    with client(Service(model, "A tiny model.", folder), tmp_path) as found:
        yield found


@pytest.fixture
def uploads(model: Model, tmp_path: Path) -> Iterator[TestClient]:
    """Of a server without one."""
    with client(Service(model, "A tiny model."), tmp_path) as found:
        yield found


def picture(tmp_path: Path) -> bytes:
    Image.fromarray(PIXELS).save(tmp_path / "picture.png")
    return (tmp_path / "picture.png").read_bytes()


def test_a_closed_model_completes_an_answer_and_refuses_those_who_wait(tmp_path: Path):
    model, begun, go_on = make_model(tmp_path), threading.Event(), threading.Event()
    image = read_image(write_images(tmp_path / "scans", 1) / "images" / "scan0.png")

    def slow_to_read():
        begun.set()
        go_on.wait(30)
        return image, 0

    def ask(key: str, urgent: bool):
        return model.ask(key, slow_to_read, "named", [Ask("atrium")], urgent)

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, "first", True)
        assert begun.wait(30)
        waiting = [pool.submit(ask, "other", urgent) for urgent in (True, False)]
        closing = pool.submit(model.close)
        assert not wait([closing], timeout=0.1).done
        go_on.set()
        assert len(first.result(30)) == 1
        closing.result(30)
        for each in waiting:
            with pytest.raises(ValueError, match="the server is ending"):
                each.result(30)


def test_a_frame_that_was_not_prepared_for_a_click_is_there_all_the_same(
    page: TestClient, model: Model, monkeypatch: pytest.MonkeyPatch
):
    called = []

    def prepare(*given: object) -> None:
        called.append(given)
        raise ValueError("the server is ending")

    monkeypatch.setattr(model, "prepare", prepare)
    assert page.get("/api/images/scan0/frames/0").status_code == 200
    assert called


def test_a_folder_from_the_list_to_the_mask(page: TestClient, folder: Path):
    state = page.get("/api/state").json()
    assert (state["title"], state["annotator"], state["demo_note"]) == (
        "scans", "anna", "A tiny model.",
    )  # fmt: skip
    assert [each["id"] for each in state["images"]] == ["scan0", "scan1", "scan2", "tape"]
    assert [each["name"] for each in state["structures"]] == ["atrium", "wall"]
    assert [each["colour"] for each in state["structures"]] == ["#e69f00", "#56b4e9"]
    assert state["adapters"][1] == {
        "name": "clicked",
        "structures": ["atrium", "wall"],
        "note": "needs a click for each structure",
    }
    tape = page.get("/api/images/tape").json()
    assert (tape["frames"], tape["width"], tape["height"]) == (3, 90, 60)
    assert (tape["spacing"], tape["pixel_ratio"]) == ([0.25, 0.5], 2.0)
    shown = page.get("/api/images/scan0/frames/0/picture")
    assert shown.headers["content-type"] == "image/png"
    unchanged = {"If-None-Match": shown.headers["etag"]}
    assert page.get("/api/images/scan0/frames/0/picture", headers=unchanged).status_code == 304
    clicked = page.post(
        "/api/images/scan0/frames/0/prompts",
        json={"revision": 0, "structure": 1, "points": [{"x": 30, "y": 20, "inside": True}]},
    ).json()
    stale = page.post("/api/images/scan0/undo", json={"revision": 0, "frame": 0})
    assert (stale.status_code, stale.json()["revision"]) == (409, 1)
    forced = page.post(
        "/api/images/scan0/undo", json={"revision": 0, "frame": 0, "force": True}
    ).json()
    assert forced["prompts"] == []
    redone = page.post("/api/images/scan0/redo", json={"revision": 2, "frame": 0}).json()
    assert redone["masks"] == clicked["masks"]
    painted = page.post(
        "/api/images/scan0/frames/0/mask",
        json={"revision": 3, "structure": 2, "rle": rle.encode(PIXELS > 99)},
    ).json()
    assert painted["masks"][1]["area"] == (PIXELS > 99).sum()
    done = page.post("/api/images/scan0/accept", json={"revision": 4}).json()
    assert done == {
        "status": "accepted", "revision": 5, "next": "scan1", "path": "masks/scan0.png",
    }  # fmt: skip
    labels = read_label_map(folder / "masks/scan0.png").frames[0]
    np.testing.assert_array_equal(labels == 2, PIXELS > 99)
    reopened = page.post("/api/images/scan0/reopen", json={"revision": 5}).json()
    assert reopened["status"] == "draft"
    cleared = page.post("/api/images/scan0/clear", json={"revision": 6, "frame": 0}).json()
    assert (cleared["undo"], cleared["status"]) == (True, "draft")


def test_carrying_measures_and_downloads_of_a_sequence(page: TestClient, tmp_path: Path):
    page.post(
        "/api/images/tape/frames/0/mask",
        json={"revision": 0, "structure": 1, "rle": rle.encode(PIXELS > 99)},
    )
    carried = page.post("/api/images/tape/carry", json={"revision": 1, "frame": 0, "to": 2})
    assert carried.json() == {"revision": 2}
    measures = page.get("/api/images/tape/measures").json()
    assert measures["mm2_per_pixel"] == 0.125
    areas = {each["name"]: each["pixels"] for each in measures["areas"]}
    assert areas["atrium"][0] == (PIXELS > 99).sum()
    assert len(areas["atrium"]) == 3
    answer = page.get("/api/images/tape/masks")
    (tmp_path / "masks.nii.gz").write_bytes(answer.content)
    labels = read_image(tmp_path / "masks.nii.gz").frames
    assert [int((each == 1).sum()) for each in labels] == areas["atrium"]
    assert "tape_mask.nii.gz" in answer.headers["content-disposition"]
    refused = page.get("/api/images/tape/masks", params={"ending": ".png"})
    assert (refused.status_code, refused.json()["detail"]) == (
        400, "ending is '.png': expected .nii.gz",
    )  # fmt: skip


def test_structures_adapters_and_order(page: TestClient):
    added = page.post("/api/structures", json={"name": "left ventricle"}).json()
    assert added["structures"][2] == {"label": 3, "name": "left ventricle", "colour": "#cc79a7"}
    named = page.patch("/api/structures/3", json={"name": "LV", "colour": "#AABBCC"}).json()
    assert named["structures"][2] == {"label": 3, "name": "LV", "colour": "#aabbcc"}
    assert len(page.delete("/api/structures/3").json()["structures"]) == 2
    assert page.patch("/api/structures/3", json={"name": "a"}).status_code == 400
    assert page.post("/api/adapter", json={"name": "clicked"}).json() == {"adapter": "clicked"}
    assert page.get("/api/images/scan0/frames/0").json()["masks"] == []
    assert page.post("/api/adapter", json={"name": None}).json() == {"adapter": None}
    assert "no adapter is named" in page.post("/api/adapter", json={"name": "x"}).json()["detail"]
    assert page.post("/api/order", json={"order": "uncertainty"}).status_code == 200
    assert page.get("/api/state").json()["order"] == "uncertainty"
    # Names stay those of the folder, whatever the adapter.
    assert [e["name"] for e in page.get("/api/state").json()["structures"]] == ["atrium", "wall"]


@pytest.mark.parametrize(("method", "path", "body", "status", "told"), [
    ("GET", "images/nobody/frames/0", None, 404, "there is no image 'nobody'"),
    ("GET", "images/..%2f..%2fetc%2fpasswd", None, 404, "there is no image"),
    ("GET", "images/scan0/frames/9", None, 400, "frame is 9: expected 0 to 0"),
    ("GET", "images/scan0/frames/9/picture", None, 400, "frame is 9: expected 0 to 0"),
    ("POST", "images/scan0/frames/0/prompts", {"structure": 1}, 422, "revision: Field required"),
    ("POST", "images/scan0/frames/0/prompts",
     {"revision": 0, "structure": 1, "points": [{"x": 90, "y": 0}]}, 400, "outside of the image"),
    ("POST", "images/scan0/frames/0/prompts",
     {"revision": 0, "structure": 1, "points": [{"x": 1, "y": 1}] * 1001}, 422, "at most 1000"),
    ("POST", "images/scan0/frames/0/prompts",
     {"revision": 0, "structure": 1, "box": [9, 9, 3, 3]}, 400, "x0 < x1"),
    ("POST", "images/scan0/frames/0/mask",
     {"revision": 0, "structure": 1, "rle": {"size": [1, 1], "counts": [1]}}, 400, "another size"),
    ("POST", "images/scan0/undo", {"revision": 0, "frame": 0, "more": 1}, 422, "not permitted"),
    ("POST", "images/scan0/carry", {"revision": 0, "frame": 0, "to": 1}, 400, "to is 1"),
    ("POST", "images", None, 422, "file"),
    ("POST", "example", None, 400, "put files into the folder instead"),
    ("DELETE", "images/scan0", None, 400, "put files into the folder instead"),
    ("POST", "structures", {"name": "<script>"}, 400, "cannot be called"),
    ("POST", "training/use", None, 400, "no adapter is offered"),
    ("DELETE", "training", None, 400, "no training runs"),
    ("POST", "training", {"resume": True}, 400, "no training was stopped"),
    ("POST", "training", {"method": "x.py:run"}, 422, "method"),
    ("POST", "training", None, 400, "0 images are accepted"),
])  # fmt: skip
def test_refusals_are_a_sentence(
    page: TestClient, method: str, path: str, body: dict | None, status: int, told: str
):
    answer = page.request(method, f"/api/{path}", json=body)
    assert answer.status_code == status
    assert told in answer.json()["detail"]


# Without a folder


def test_each_browser_has_its_own_uploads(uploads: TestClient, tmp_path: Path):
    content = picture(tmp_path)
    opened = uploads.post("/api/images", files={"file": ("heart.png", content)}).json()
    assert (opened["id"], opened["status"], opened["frames"]) == ("heart", "new", 1)
    again = uploads.post("/api/images", files={"file": ("../../heart.png", content)}).json()
    assert again["id"] == "2_heart"
    assert len(uploads.get("/api/state").json()["images"]) == 2
    other = TestClient(uploads.app, base_url=f"http://{HERE}")
    assert other.get("/api/state").json()["images"] == []
    assert other.get("/api/images/heart").status_code == 404
    other.cookies.set("adapterkit_session", "guessed")
    assert other.get("/api/state").json()["images"] == []
    assert uploads.delete("/api/images/heart").json() == {}
    assert [e["id"] for e in uploads.get("/api/state").json()["images"]] == ["2_heart"]
    accepted = uploads.post("/api/images/2_heart/accept", json={"revision": 0})
    assert accepted.json()["status"] == "accepted"
    assert uploads.post("/api/training").json()["detail"].endswith("adapterkit serve FOLDER")
    assert uploads.get("/api/training").json() is None


def test_the_example_needs_no_file(uploads: TestClient):
    opened = uploads.post("/api/example").json()
    assert (opened["name"], opened["width"]) == ("synthetic_heart.nii.gz", 256)


def test_what_is_no_image_is_refused_and_not_kept(
    uploads: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_dicom(tmp_path / "loop.dcm", STACK, "THW", PixelSpacing=[0.5, 0.5])
    dicom = (tmp_path / "loop.dcm").read_bytes()
    whole = uploads.post("/api/images", files={"file": ("a.dcm", dicom)})
    assert whole.json()["endings"] == [".dcm", ".nii.gz"]
    masks = uploads.get("/api/images/a/masks", params={"ending": ".dcm"}).content
    assert masks[128:132] == b"DICM"
    Image.fromarray(PIXELS[:4]).save(tmp_path / "low.png")
    for content, told in (
        (b"\x89PNG and no more", "b.png cannot be read as a picture"),
        (b"\x80\x04\x95 a pickle", "b.png cannot be read as a picture"),
        ((tmp_path / "low.png").read_bytes(), "expected at least 8 x 8"),
        (masks, "is a DICOM segmentation"),
    ):
        answer = uploads.post("/api/images", files={"file": ("b.png", content)})
        assert answer.status_code == 400
        assert told in answer.json()["detail"]
        assert str(tmp_path) not in answer.json()["detail"]
    # A few kilobytes that would unpack to gigabytes.
    monkeypatch.setattr("adapterkit.web.sessions.MAX_VALUES", 1000)
    answer = uploads.post("/api/images", files={"file": ("b.png", picture(tmp_path))})
    assert "expected at most 1,000 values" in answer.json()["detail"]
    assert [e["id"] for e in uploads.get("/api/state").json()["images"]] == ["a"]
    assert [path.name for path in tmp_path.glob("session-*/images/*")] == ["a.dcm"]


def test_the_least_used_uploads_make_way(model: Model, tmp_path: Path):
    content = picture(tmp_path)
    with client(Service(model, max_kept=3 * len(content) // 2), tmp_path) as first:
        upload = {"file": ("a.png", content)}
        assert first.post("/api/images", files=upload).status_code == 200
        refused = first.post("/api/images", files=upload)
        assert refused.status_code == 507
        assert "of uploads would lie on the server" in refused.json()["detail"]
        second = TestClient(first.app, base_url=f"http://{HERE}")
        assert second.post("/api/images", files=upload).status_code == 200
        assert first.get("/api/state").json()["images"] == []


# The command


def test_two_servers_on_one_folder_are_refused(folder: Path, model: Model):
    with (
        serving(Service(model, folder=folder, port=free_port())),
        pytest.raises(FolderLockedError, match="is in use by process"),
        serving(Service(model, folder=folder, port=free_port())),
    ):
        pass
    assert json.loads((folder / "structures.json").read_text())["structures"][0]["label"] == 1


def test_what_cannot_be_served_is_one_line(tmp_path: Path, model: Model):
    port = free_port()
    in_use = pytest.raises(OSError, match=f"port {port} of {HERE} is in use; choose another")
    with serving(Service(model, port=port)), in_use:
        serve.serve(port=port)
    with pytest.raises(ValueError, match="--port 0: expected"):
        serve.serve(port=0)
    with pytest.raises(OSError, match=r"cannot listen at 192\.0\.2\.1"):
        serve.serve(host="192.0.2.1", token="a long secret of adapterkit")
    with pytest.raises(ValueError, match="expected --token"):
        serve.serve(host="0.0.0.0")
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        serve.serve(Path("nowhere"))


def test_without_fastapi_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.startswith("adapterkit.web")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(MissingExtraError, match=r"fastapi.*: pip install \"adapterkit\[web\]\""):
        serve.serve(port=free_port())


def test_the_model_is_described():
    assert "has seen procedural" in serve.describe(None, ())
    assert serve.describe(Path("a/sam.pth"), ()) == "sam.pth, without adapters."
