"""Tests of the interface for other programs, by a client in another process."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from adapterkit.data.files.images import read_image
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.web import rle
from adapterkit.web.model import Model
from adapterkit.web.server import Service, serving
from tests.web.served import PIXELS, STACK, free_port, make_model, write_images

TOKEN = "a long secret of adapterkit"
CLIENT = """
import json, sys, httpx
address, token, image, prompts = sys.argv[1:]
client = httpx.Client(base_url=address, headers={"Authorization": "Bearer " + token}, timeout=60)
assert httpx.get(address + "api/v1/adapters").status_code == 401
answers = {}
for name, data in {
    "unasked": {},
    "asked": {"prompts": prompts, "adapter": "clicked"},
    "base": {"prompts": prompts, "adapter": "none"},
}.items():
    with open(image, "rb") as file:
        answer = client.post("api/v1/segment", files={"image": file}, data=data)
    answers[name] = answer.json()
answers["adapters"] = client.get("api/v1/adapters").json()
answers["paths"] = [*client.get("openapi.json").json()["paths"]]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "scans")


@pytest.fixture(scope="module")
def address(model: Model) -> Iterator[str]:
    service = Service(model, port=free_port(), token=TOKEN, max_upload=200_000)
    with serving(service) as address:
        yield address


@pytest.fixture
def http(address: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
        yield client


def test_a_client_in_another_process_gets_what_the_predictor_gives(
    address: str, model: Model, folder: Path
):
    prompts = [
        {"name": "atrium", "points": [{"x": 30, "y": 20}, {"x": 70, "y": 40, "inside": False}]}
    ]
    image = folder / "images/scan0.png"
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, address, TOKEN, str(image), json.dumps(prompts)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    read = read_image(image)
    asked = {"points": [[(30, 20), (70, 40)]], "labels": [[1, 0]]}
    for name, adapter, given in (
        ("unasked", "named", {}), ("asked", "clicked", asked), ("base", None, asked),
    ):  # fmt: skip
        expected = model.predict(read, 0, adapter, **given)
        assert answers[name]["adapter"] == adapter
        masks = [rle.decode(each["rle"], PIXELS.shape) for each in answers[name]["masks"]]
        np.testing.assert_array_equal(masks, expected.masks)
        if given:  # The page's promise, whatever the model says.
            assert masks[0][20, 30]
            assert not masks[0][40, 70]
        assert [e["predicted_iou"] for e in answers[name]["masks"]] == pytest.approx(
            [*np.clip(expected.scores, 0, 1)]
        )
    assert [each["name"] for each in answers["unasked"]["masks"]] == ["atrium", "wall"]
    assert answers["adapters"] == [
        {"name": "named", "structures": ["atrium", "wall"], "without_click": ["atrium", "wall"]},
        {"name": "clicked", "structures": ["atrium", "wall"], "without_click": []},
    ]
    # The page's own requests are no interface.
    assert answers["paths"] == ["/api/v1/adapters", "/api/v1/segment"]


@pytest.mark.parametrize(("format", "ending"), [("png", ".png"), ("nifti", ".nii.gz")])
def test_masks_as_files(
    http: httpx.Client, model: Model, folder: Path, tmp_path: Path, format: str, ending: str
):
    image = folder / "images" / ("scan0.png" if format == "png" else "tape.nii.gz")
    with image.open("rb") as file:
        answer = http.post("api/v1/segment", files={"image": file}, data={"format": format})
    (tmp_path / f"mask{ending}").write_bytes(answer.content)
    labels = read_label_map(tmp_path / f"mask{ending}")
    read = read_image(image)
    expected = [model.predict(read, k, "named").label_map() for k in range(len(read.frames))]
    np.testing.assert_array_equal(labels.frames, expected)
    assert json.loads(answer.headers["x-structures"]) == {"1": "atrium", "2": "wall"}
    if format == "nifti":
        np.testing.assert_allclose(labels.affine, read.affine)


def test_refusals_are_a_sentence(http: httpx.Client, folder: Path, monkeypatch: pytest.MonkeyPatch):
    scan, tape = (folder / "images" / name for name in ("scan0.png", "tape.nii.gz"))

    def refused(image: Path, status: int = 400, **data: str) -> str:
        files = {"image": (image.name, image.read_bytes())}
        answer = http.post("api/v1/segment", files=files, data=data)
        assert answer.status_code == status
        return answer.json()["detail"]

    click = json.dumps([{"points": [{"x": 1, "y": 1}]}])
    assert "knows no structure by name" in refused(scan, adapter="clicked")
    assert "no adapter is named 'x'; loaded are: named, clicked" in refused(scan, adapter="x")
    assert "prompts are not as expected" in refused(scan, prompts="[{")
    assert "not permitted" in refused(scan, prompts='[{"file": "/etc/passwd"}]')
    assert "has no prompt" in refused(scan, adapter="clicked", prompts="[{}]")
    assert "outside of the image" in refused(scan, prompts=click.replace("1", "-9"))
    assert "say with frame which one" in refused(tape, prompts=click)
    assert "frame is 3: expected 0 to 2" in refused(tape, frame="3")
    assert "a PNG holds one label map, and there are 3" in refused(tape, format="png")
    assert "format" in refused(scan, 422, format="pickle")
    assert refused(Path(__file__)).startswith("test_interface.py is no image")
    monkeypatch.setattr("adapterkit.web.interface.MAX_VALUES", 1000)
    assert "expected at most 1,000 values" in refused(scan)


def test_too_long_an_upload_is_refused_and_nothing_stays(http: httpx.Client):
    answer = http.post("api/v1/segment", files={"image": ("a.png", bytes(2_000_000))})
    assert answer.status_code == 413


def test_the_schema_is_a_page_that_loads_nothing(http: httpx.Client):
    page = http.get("docs").text
    assert "/api/v1/segment" in page
    assert "StructurePrompts" in page
    assert "<script" not in page
    assert "http://" not in page.replace(str(http.base_url), "")
    assert "https://" not in page


def test_colours_and_floats_are_taken(http: httpx.Client, tmp_path: Path):
    Image.fromarray(np.stack([PIXELS] * 3, axis=-1)).save(tmp_path / "colour.png")
    with (tmp_path / "colour.png").open("rb") as file:
        assert len(http.post("api/v1/segment", files={"image": file}).json()["masks"]) == 2
    assert STACK.shape == (3, 60, 90)
