"""Images of any values become grey values alike in training, `predict`, `Predictor` and page."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

import adapterkit as ak
from adapterkit.data.collections.check import check_collection
from adapterkit.data.collections.collection import open_collection
from adapterkit.data.dataset import SegmentationDataset
from tests.conftest import Done

RNG = np.random.default_rng(0)
ROWS, COLUMNS = np.mgrid[:80, :120]
BLOB = ((ROWS - 30) / 15) ** 2 + ((COLUMNS - 50) / 20) ** 2 < 1
GREY = np.clip(np.where(BLOB, 190, 60) + RNG.normal(0, 8, BLOB.shape), 0, 255).round()


def changed(place: int, value: float) -> np.ndarray:
    array = GREY / 255
    array.flat[place] = value
    return array


SCALED = {
    "to 1": GREY / 255,
    "to its 99th percentile": GREY / np.percentile(GREY, 99),
    "to 200": GREY / GREY.max() * 200 + 0.25,
    "to both sides of 0": (GREY - GREY.mean()) / GREY.std(),
    "to 12 bits": GREY * 16,
}
LOST = {
    "an outlier": changed(7, 1000.0),
    "nearly black": (GREY // 20).astype(np.uint8),
    "an outlier among whole numbers": np.where(ROWS + COLUMNS == 0, 30_000, GREY // 4).astype("i2"),
}


def data_set(folder: Path, image: np.ndarray) -> Path:
    """Images with masks on disk."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(image.astype("f4").T, np.eye(4)), folder / "images/a.nii")
    Image.fromarray(BLOB.astype(np.uint8)).save(folder / "masks/a.png")
    return folder


def trained_on(folder: Path) -> np.ndarray:
    collection = open_collection(folder)
    return SegmentationDataset(collection.records, 64)[0]["image"].numpy()


@pytest.fixture(scope="module")
def predictor() -> ak.Predictor:
    return ak.Predictor(ak.mini_sam())


def mask(predictor: ak.Predictor, image: Any) -> np.ndarray:
    predictor.set_image(image)
    return predictor.predict(points=[[(50, 30)]], labels=[[1]]).masks[0]


@pytest.mark.parametrize("how", SCALED)
def test_fractions_are_scaled_by_their_range(tmp_path: Path, predictor: ak.Predictor, how: str):
    data_set(tmp_path / "data", SCALED[how])
    sample = trained_on(tmp_path / "data")
    assert len(np.unique(sample)) > 100
    assert sample.max() > 220
    found = mask(predictor, SCALED[how])
    expected = mask(predictor, GREY.astype(np.uint8))
    assert (found & expected).sum() / (found | expected).sum() > 0.95
    np.testing.assert_array_equal(mask(predictor, tmp_path / "data/images/a.nii"), found)


@pytest.mark.parametrize("how", LOST)
def test_what_leaves_few_grey_levels_is_named(
    tmp_path: Path, predictor: ak.Predictor, how: str, run: Callable[..., Done]
):
    folder = data_set(tmp_path / "data", LOST[how])
    image = folder / "images/a.nii"
    named = re.escape(str(image)) + " has values from .* grey levels remain"
    with pytest.warns(UserWarning, match=named):
        trained_on(folder)
    with pytest.warns(UserWarning, match=named):
        predictor.set_image(image)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = run("predict", image, "--point", "50,30", "--out", tmp_path / "out")
    assert done.status == 0
    (line,) = done.errors.splitlines()
    assert re.match(f"warning: {named}", line)
    (problem,) = [
        each.message
        for each in check_collection(open_collection(folder)).problems
        if "grey levels" in each.message
    ]
    assert problem.startswith("fewer than 16 grey levels would remain of the image a")


@pytest.mark.parametrize(
    "image", [255 * BLOB.astype(np.uint8), np.zeros((80, 120), np.uint8), np.full((80, 120), 7.5)]
)
def test_drawings_and_single_values_are_not_named(predictor: ak.Predictor, image: np.ndarray):
    predictor.set_image(image)


def test_the_page_names_what_leaves_few_grey_levels(tmp_path: Path, predictor: ak.Predictor):
    pytest.importorskip("fastapi", reason="adapterkit[web] is not installed")
    from adapterkit.web.model import Model
    from adapterkit.web.worklist import WorkList
    from adapterkit.web.workspace import Workspace

    folder = data_set(tmp_path / "data", LOST["an outlier"])
    (folder / "structures.json").write_text('{"structures": [{"label": 1, "name": "disc"}]}')
    work = Workspace(WorkList(folder), Model(predictor))
    (line,) = work.frames.answer("a", 0).notes
    assert line.startswith("a has values from")
