"""Tests of the page: what a user does, without a browser and in one."""

import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from matplotlib.path import Path as Polygon
from PIL import Image
from segment_anything.modeling import Sam

import adapterkit as ak
from adapterkit.commands import serve
from adapterkit.data.files.dicom_seg import read_labels
from adapterkit.data.files.images import read_image
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.data.image_file import DataError, ImageFile
from adapterkit.inference.predictor import Predictor
from adapterkit.system.extras import MissingExtraError
from adapterkit.web import drawing
from adapterkit.web.events import example
from adapterkit.web.page import serving
from adapterkit.web.session import Answer, Session
from tests.data.dicom_files import write_dicom
from tests.models import ECHO

HERE = "127.0.0.1"
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (60, 90), dtype=np.uint8)
STACK = RNG.integers(0, 256, (3, 60, 90), dtype=np.uint8)
AFFINE = np.diag([0.5, 0.25, 1, 1.0])


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A small Sam with two adapters, which differ in their input size and structures."""
    folder = tmp_path_factory.mktemp("adapters")
    sam = ak.build_sam(ECHO, seed=0)
    with torch.no_grad():  # Surer of its masks than random weights are.
        for name, weight in sam.mask_decoder.named_parameters():
            if "hypernetworks" in name and "layers.2.weight" in name:
                weight *= 100
    for seed, (name, size) in enumerate({"echo": 128, "thyroid": 64}.items()):
        torch.manual_seed(seed)
        ak.inject_samus(sam, size)
        ak.save_adapter(sam, folder / f"{name}.safetensors", classes=[name, "wall"][: 2 - seed])
        ak.eject(sam)
    predictor = Predictor(sam)
    for file in sorted(folder.iterdir()):
        predictor.load(file)
    return predictor


@pytest.fixture
def image() -> ImageFile:
    return ImageFile(Path("image.png"), PIXELS[None], None, np.eye(4))


@pytest.fixture
def session(predictor: Predictor, image: ImageFile) -> Session:
    session = Session(predictor, threading.Lock())
    session.open(image)
    return session


@pytest.fixture
def sequence(tmp_path: Path) -> ImageFile:
    nibabel.save(nibabel.Nifti1Image(STACK.T, AFFINE), tmp_path / "heart.nii.gz")
    return read_image(tmp_path / "heart.nii.gz")


def found_of(session: Session) -> Answer:
    assert session.answer is not None
    return session.answer


def expected(predictor: Predictor, pixels: np.ndarray, adapter: str | None, **prompts):
    fresh = predictor.sharing()
    fresh.use(adapter)
    fresh.set_image(pixels)
    return fresh.predict(**prompts)


# Structures known by name


def test_structures_known_by_name_need_no_click(image: ImageFile, sequence: ImageFile):
    torch.manual_seed(0)
    sam = ak.inject(
        ak.build_sam(ECHO, seed=0), "samus_plus", image_size=128, structures=("atrium", "wall")
    )
    predictor = Predictor(sam)
    session = Session(predictor, threading.Lock())
    assert session.structures == ("atrium", "wall")
    assert session.answer is None
    session.open(image)
    answer = found_of(session)
    assert answer.structures == (0, 1)
    unasked = expected(predictor, PIXELS, "default")
    np.testing.assert_array_equal(answer.prediction.logits, unasked.logits)
    # A click corrects one of them, and asks for a further one; without, they are as before.
    session.choose(1)
    session.click(30, 20)
    session.add_structure()
    session.click(50, 50)
    assert found_of(session).structures == (0, 1, 2)
    corrected = expected(
        predictor,
        PIXELS,
        "default",
        points=[None, [(30, 20)], [(50, 50)]],
        labels=[None, [1], [1]],
        classes=["atrium", "wall", None],
    )
    np.testing.assert_array_equal(found_of(session).prediction.logits, corrected.logits)
    session.clear()
    np.testing.assert_array_equal(found_of(session).prediction.logits, unasked.logits)
    # Every frame of a sequence has its masks, whether it was shown or not.
    session.open(sequence)
    every = [expected(predictor, frame, "default").label_map() for frame in STACK]
    np.testing.assert_array_equal(session.label_maps(), every)


# Clicks


def test_clicks_are_answered_as_the_predictor_answers_them(predictor: Predictor, session: Session):
    session.click(30, 20)
    session.click(70, 40, inside=False)
    session.add_structure()
    session.add_structure()
    session.click(50, 50)
    answer = expected(
        predictor, PIXELS, "echo", points=[[(30, 20), (70, 40)], [(50, 50)]], labels=[[1, 0], [1]]
    )
    found = found_of(session)
    np.testing.assert_array_equal(found.prediction.logits, answer.logits)
    assert 0.01 < answer.masks.mean() < 0.99
    assert found.structures == (0, 3)
    np.testing.assert_array_equal(found.label_map(), np.array([0, 1, 4])[answer.label_map()])
    np.testing.assert_array_equal(session.label_maps(), found.label_map()[None])


def test_a_click_costs_the_decoder_alone(predictor: Predictor, session: Session):
    base = predictor.promptable.model
    assert isinstance(base, Sam)
    neck = base.image_encoder.neck
    calls: list[int] = []
    hook = neck.register_forward_hook(lambda *_: calls.append(1))
    session.click(30, 20)
    session.click(31, 20)
    session.undo()
    assert calls == []
    session.use("thyroid")
    session.use("echo")
    hook.remove()
    assert calls == [1]


def test_undo_and_clear(session: Session):
    session.click(30, 20)
    first = found_of(session).prediction.logits
    session.click(70, 40)
    session.undo()
    np.testing.assert_array_equal(found_of(session).prediction.logits, first)
    session.click(70, 40)
    session.clear()
    session.undo()
    assert (session.answer, session.clicks) == (None, ())
    with pytest.raises(ValueError, match="no mask yet: click"):
        session.label_maps()


def test_a_click_that_is_refused_changes_nothing(session: Session):
    session.click(30, 20)
    before = session.answer
    with pytest.raises(ValueError, match="outside of the image"):
        session.click(90, 20)
    assert session.answer is before
    assert len(session.clicks) == 1


def test_without_an_image_there_is_a_message(predictor: Predictor):
    session = Session(predictor, threading.Lock())
    for action in (lambda: session.click(1, 1), lambda: session.show(0)):
        with pytest.raises(ValueError, match="no image yet: open one"):
            action()
    session.undo()
    session.use(None)


# Structures and adapters


def test_structures_are_named_by_the_adapter(session: Session):
    assert session.structures == ("echo", "wall")
    session.add_structure()
    assert (session.structure, session.structures[2]) == (2, "structure 3")
    session.use("thyroid")
    assert session.structures == ("thyroid", "structure 2", "structure 3")
    session.use(None)
    assert session.structures == ("structure 1", "structure 2", "structure 3")
    with pytest.raises(ValueError, match="expected 0 to 2"):
        session.choose(3)
    for _ in range(252):
        session.add_structure()
    with pytest.raises(ValueError, match="255 structures"):
        session.add_structure()


def test_another_adapter_answers_the_same_clicks(predictor: Predictor, session: Session):
    session.click(30, 20)
    session.use("thyroid")
    prompts = {"points": [[(30, 20)]], "labels": [[1]]}
    for adapter in ("thyroid", None, "echo"):
        session.use(adapter)
        found = found_of(session).prediction.logits
        np.testing.assert_array_equal(found, expected(predictor, PIXELS, adapter, **prompts).logits)


def test_an_image_that_is_refused_leaves_the_one_before(session: Session, image: ImageFile):
    session.click(30, 20)
    with pytest.raises(DataError, match="at least 8 x 8"):
        session.open(replace(image, frames=PIXELS[None, :4]))
    assert session.image is image
    assert len(session.clicks) == 1
    session.click(31, 20)
    session.open(image)
    assert (session.clicks, session.answer) == ((), None)


def test_sessions_do_not_mix(predictor: Predictor, image: ImageFile):
    """Of the CNN branch's maps the model has one set, so without the lock they would."""
    lock = threading.Lock()
    adapters = {"echo": PIXELS, "thyroid": PIXELS.T.copy()}
    sessions = {name: Session(predictor, lock) for name in adapters}
    failures: list[str] = []

    def work(name: str) -> None:
        session = sessions[name]
        session.use(name)
        for _ in range(3):
            session.open(replace(image, frames=adapters[name][None]))
            session.click(20, 30)
            if not np.array_equal(found_of(session).prediction.logits, answers[name]):
                failures.append(name)

    prompts = {"points": [[(20, 30)]], "labels": [[1]]}
    answers = {
        name: expected(predictor, pixels, name, **prompts).logits
        for name, pixels in adapters.items()
    }
    threads = [threading.Thread(target=work, args=[name]) for name in adapters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert all(len(session.clicks) == 1 for session in sessions.values())


# Frames and files


def test_each_frame_has_its_own_clicks(predictor: Predictor, sequence: ImageFile, tmp_path: Path):
    session = Session(predictor, threading.Lock())
    session.open(sequence)
    session.click(30, 20)
    session.show(2)
    assert session.answer is None
    session.click(50, 40)
    session.show(0)
    assert [click.x for click in session.clicks] == [30]
    session.use("thyroid")
    labels = session.label_maps()
    for frame, point in ((0, (30, 20)), (2, (50, 40))):
        prompts = {"points": [[point]], "labels": [[1]]}
        answer = expected(predictor, STACK[frame], "thyroid", **prompts)
        np.testing.assert_array_equal(labels[frame], answer.label_map())
    assert labels[0].any()
    assert not labels[1].any()
    assert (session.frame, len(session.clicks)) == (0, 1)
    with pytest.raises(ValueError, match="frames 0 to 2"):
        session.show(3)

    path = session.save(tmp_path)
    assert path.name == "heart_mask.nii.gz"
    saved = read_image(path)
    np.testing.assert_array_equal(saved.frames, labels)
    np.testing.assert_allclose(saved.affine, AFFINE)


def test_of_a_picture_the_mask_is_a_png(session: Session, tmp_path: Path):
    session.click(30, 20)
    path = session.save(tmp_path)
    assert path.name == "image_mask.png"
    np.testing.assert_array_equal(read_label_map(path).frames[0], found_of(session).label_map())
    session.save_as(".nii.gz")
    path = session.save(tmp_path)
    assert path.name == "image_mask.nii.gz"
    np.testing.assert_array_equal(read_image(path).frames[0], found_of(session).label_map())


@pytest.mark.parametrize("frames", [1, 3])
def test_of_dicom_the_mask_is_a_segmentation(predictor: Predictor, tmp_path: Path, frames: int):
    pixels, axes = (PIXELS, "HW") if frames == 1 else (STACK, "THW")
    session = Session(predictor, threading.Lock())
    session.open(read_image(write_dicom(tmp_path / "1.2.840", pixels, axes)))
    assert session.endings == ((".dcm", ".png", ".nii.gz") if frames == 1 else (".dcm", ".nii.gz"))
    session.click(30, 20)
    # A session can be asked again, and for another kind in between.
    for ending in (".dcm", ".nii.gz", ".dcm"):
        session.save_as(ending)
        path = session.save(tmp_path)
        assert path.name == f"1.2.840_mask{ending}"
    labels = session.label_maps()
    assert labels.any()
    np.testing.assert_array_equal(read_labels(path), labels)
    named = [each.SegmentLabel for each in pydicom.dcmread(path).SegmentSequence]
    assert named == ["echo", "wall"]


def test_what_cannot_hold_the_masks_is_refused(
    predictor: Predictor, session: Session, sequence: ImageFile
):
    with pytest.raises(ValueError, match=r"ending is '\.dcm': expected \.png, \.nii\.gz"):
        session.save_as(".dcm")
    assert session.ending == ".png"
    session.open(sequence)
    assert (session.ending, session.endings) == (".nii.gz", (".nii.gz",))


# Drawing


@pytest.mark.parametrize("inside", [
    np.ones((5, 7), bool),
    RNG.random((20, 30)) < 0.5,
    np.pad(np.pad(np.zeros((3, 3), bool), 3, constant_values=True), 2),
])  # fmt: skip
def test_an_outline_encloses_the_pixels_of_the_mask(inside: np.ndarray):
    heights = np.where(inside, 1, -1) * RNG.random(inside.shape, dtype=np.float32)
    drawn = drawing.outline(heights, inside)
    rows, columns = np.indices(inside.shape) + 0.5
    crossings = np.zeros(inside.shape, int)
    for line in re.findall(r"M([^Z]*)Z", drawn):
        corners = np.array([point.split(",") for point in line.split()], float)
        assert (corners >= 0).all()
        assert (corners <= inside.shape[::-1]).all()
        points = np.stack([columns.ravel(), rows.ravel()], axis=1)
        crossings += Polygon(corners).contains_points(points).reshape(inside.shape)
    # By the rule that the page fills by, even-odd. Heights so near 0 that rounding to hundredths of
    # a pixel decides are left out.
    sure = abs(heights) > 0.1
    np.testing.assert_array_equal(crossings[sure] % 2 == 1, inside[sure])


def test_where_masks_overlap_the_drawing_is_what_is_saved(session: Session):
    session.click(30, 20)
    session.choose(1)
    session.click(30, 20)
    session.choose(0)
    session.click(60, 20)
    answer = found_of(session)
    assert session.image is not None
    paths = re.findall(r' d="([^"]*)"', drawing.overlay(session.image, answer, ()))
    labels = answer.label_map()
    assert len(paths) == 2
    for k, path in enumerate(paths):
        assert bool(path) == bool((labels == k + 1).any())


def test_pixels_are_as_wide_as_their_spacing_says(session: Session, image: ImageFile):
    assert drawing.size(image) == (90, 60)
    session.open(replace(image, spacing=(0.5, 0.25)))
    session.click(30, 20)
    assert session.image is not None
    assert drawing.size(session.image) == (45, 60)
    drawn = drawing.overlay(session.image, session.answer, session.clicks)
    assert 'transform="scale(0.5 1)"' in drawn
    assert 'cx="15.25" cy="20.50"' in drawn
    area = int((session.label_maps() == 1).sum())
    assert f"{area:,} px · {area / 8:,.0f} mm²" in drawing.structure_list(session)
    assert "0.25 × 0.5 mm per pixel" in drawing.caption(session)


def test_names_are_text_and_not_html(predictor: Predictor, image: ImageFile):
    session = Session(predictor, threading.Lock())
    session.open(replace(image, path=Path("<b>.png")))
    assert "&lt;b&gt;.png · 90 × 60 pixels" in drawing.caption(session)
    session._named = ("<script>",)
    assert "<script>" not in drawing.structure_list(session)


# Serving


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind((HERE, 0))
        return trial.getsockname()[1]


@pytest.fixture(scope="module")
def address(predictor: Predictor) -> Iterator[str]:
    with serving(predictor, "A tiny model.", HERE, free_port(), max_upload=50_000) as address:
        yield address


def test_a_file_over_the_limit_is_refused(address: str):
    answer = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", bytes(60_000))})
    assert answer.status_code == 413
    assert "exceeded" in answer.text
    kept = [path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in kept) == 0


def test_a_port_in_use_is_one_line(address: str):
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(OSError, match=f"port {port} of {HERE} is in use; choose another"):
        serve.serve(port=port)
    with pytest.raises(ValueError, match="--port 0: expected"):
        serve.serve(port=0)
    with pytest.raises(OSError, match=r"cannot listen at 192\.0\.2\.1"):
        serve.serve(host="192.0.2.1")


def test_without_gradio_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.startswith("adapterkit.web")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r"gradio.*: pip install \"adapterkit\[web\]\""):
        serve.serve(port=free_port())


# In a browser


def visit(browser: Any, address: str) -> Any:
    tab = browser.new_page(viewport={"width": 1240, "height": 860})
    tab.set_default_timeout(120_000)  # ms, for machines that are busy
    tab.goto(address)
    tab.wait_for_selector("#structures .structure")
    return tab


def click(tab: Any, x: int, y: int, size: tuple[int, int], **how: Any) -> None:
    """On a pixel's centre; returns when the page shows it."""
    box = tab.locator("#viewer .frame svg").bounding_box()
    before = tab.locator("#viewer .click").count()
    at = {"x": (x + 0.5) / size[0] * box["width"], "y": (y + 0.5) / size[1] * box["height"]}
    tab.locator("#viewer .frame svg").click(position=at, **how)
    tab.locator("#viewer .click").nth(before).wait_for(state="attached")


def download(tab: Any, folder: Path) -> Path:
    with tab.expect_download() as started:
        tab.click("#download")
    path = folder / started.value.suggested_filename
    started.value.save_as(path)
    return path


_DROP = """() => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File(["\\x89PNG and no more"], "broken.png"));
  const drop = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
  document.querySelector("#viewer svg").dispatchEvent(drop);
}"""
"""A damaged file, dropped on the picture."""


@pytest.mark.slow
def test_in_a_browser(browser: Any, address: str, predictor: Predictor, tmp_path: Path):
    Image.fromarray(PIXELS).save(tmp_path / "scan.png")
    tab = visit(browser, address)
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.reload()
    tab.wait_for_selector("#structures .structure")
    tab.set_input_files("#open input[type=file]", tmp_path / "scan.png")
    tab.wait_for_selector("#viewer .frame svg")
    click(tab, 30, 20, (90, 60))
    assert tab.locator("#viewer path.mask").get_attribute("d").startswith("M")
    click(tab, 70, 40, (90, 60), modifiers=["Shift"])
    prompts = {"points": [[(30, 20), (70, 40)]], "labels": [[1, 0]]}
    answer = expected(predictor, PIXELS, "echo", **prompts)
    path = download(tab, tmp_path)
    assert path.name == "scan_mask.png"
    np.testing.assert_array_equal(read_label_map(path).frames[0], answer.label_map())
    area = int(answer.label_map().sum())
    assert f"2 clicks · {area:,} px" in tab.locator("#structures").inner_text()

    other = visit(browser, address)
    assert other.locator("#viewer .frame svg").count() == 0
    other.click("#download")
    other.get_by_text("there is no mask yet: click on a structure first").wait_for()
    other.close()

    tab.get_by_label("NIfTI", exact=True).check()
    path = download(tab, tmp_path)
    assert path.name == "scan_mask.nii.gz"
    np.testing.assert_array_equal(read_image(path).frames[0], answer.label_map())
    assert tab.get_by_label("NIfTI", exact=True).is_checked()

    tab.click("#add")
    tab.locator("#structures .structure").nth(2).wait_for()
    tab.click("#undo")
    tab.locator("#viewer .click").nth(1).wait_for(state="detached")
    tab.click("#clear")
    tab.locator("#viewer path.mask").wait_for(state="detached")

    tab.evaluate(_DROP)
    tab.get_by_text("broken.png cannot be read as a picture").wait_for()
    assert tab.locator("#viewer .frame svg").count() == 1
    tab.close()

    # Nothing from the internet, and nothing left behind.
    assert asked
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    kept = [path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in kept) == 0


@pytest.mark.slow
def test_dicom_in_a_browser(browser: Any, address: str, predictor: Predictor, tmp_path: Path):
    write_dicom(tmp_path / "loop.dcm", STACK, "THW", PixelSpacing=[0.5, 0.5])
    tab = visit(browser, address)
    tab.set_input_files("#open input[type=file]", tmp_path / "loop.dcm")
    tab.wait_for_selector("#viewer .frame svg")
    click(tab, 30, 20, (90, 60))
    path = download(tab, tmp_path)
    assert path.name == "loop_mask.dcm"
    answer = expected(predictor, STACK[0], "echo", points=[[(30, 20)]], labels=[[1]])
    assert answer.masks.any()
    np.testing.assert_array_equal(
        read_labels(path), [answer.label_map(), *np.zeros_like(STACK[1:])]
    )
    # Another adapter answers the same click.
    before = tab.locator("#viewer path.mask").get_attribute("d")
    tab.click("#adapter input")
    tab.get_by_role("option", name="thyroid").click()
    changed = "d => document.querySelector('#viewer path.mask').getAttribute('d') !== d"
    tab.wait_for_function(changed, arg=before)
    path = download(tab, tmp_path)
    answer = expected(predictor, STACK[0], "thyroid", points=[[(30, 20)]], labels=[[1]])
    np.testing.assert_array_equal(read_labels(path)[0], answer.label_map())
    tab.close()


@pytest.mark.slow
def test_the_example_needs_no_files(browser: Any, tmp_path: Path):
    """Takes the README's picture of the page with `ADAPTERKIT_SCREENSHOT=docs/web_page.png`."""
    predictor = Predictor(ak.mini_sam())
    with serving(predictor, serve.describe(None, ()), HERE, free_port(), 10**6) as address:
        tab = visit(browser, address)
        tab.click("#example")
        tab.wait_for_selector("#viewer .frame svg")
        points = [[(127, 113), (143, 156), (130, 58), (169, 154)], [(131, 195)]]
        labels = [[1, 1, 1, 0], [1]]
        for (x, y), label in zip(points[0], labels[0], strict=True):
            click(tab, x, y, (256, 256), modifiers=[] if label else ["Shift"])
        tab.click("#add")
        tab.locator("#structures .structure").nth(1).wait_for()
        click(tab, *points[1][0], (256, 256))
        picture = tab.screenshot(path=os.environ.get("ADAPTERKIT_SCREENSHOT"))
        assert len(picture) > 50_000
        path = download(tab, tmp_path)
        tab.close()
    image = example()
    predictor.set_image(image)
    answer = predictor.predict(points=points, labels=labels)
    np.testing.assert_array_equal(read_image(path).frames[0], answer.label_map())
