"""Tests of the measures of a work list's hearts."""

import json
import shutil
from pathlib import Path

import pytest

from adapterkit.data.synthetic.beat import Beat
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.web.clinical import measure_heart, partner_of
from adapterkit.web.model import Model
from adapterkit.web.worklist import WorkList
from adapterkit.web.workspace import Workspace
from tests.web.served import make_model

SEQUENCE = "patient0001_{}_half_sequence"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("adapters"))


def write_scans(heart: Path, folder: Path, *views: str) -> Path:
    """The sequences of a synthetic heart with their reference masks, as accepted ones."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for view in views:
        (file,) = heart.rglob(f"{SEQUENCE.format(view)}.nii.gz")
        shutil.copy(file, folder / "images")
        reference = file.with_name(file.name.replace(".nii", "_gt.nii"))
        shutil.copy(reference, folder / "masks" / file.name)
    names = ["left ventricle", "myocardium", "left atrium"]
    structures = [{"label": k, "name": name} for k, name in enumerate(names, 1)]
    (folder / "structures.json").write_text(json.dumps({"structures": structures}))
    return folder


@pytest.fixture(scope="module")
def heart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    beat = Beat(irregular=0)
    return write_phantom(tmp_path_factory.mktemp("heart") / "made", 1, image_size=128, beat=beat)


def stated(heart: Path) -> dict[str, float]:
    lines = (heart / "database_nifti/patient0001/Info_4CH.cfg").read_text().splitlines()
    pairs = [line.split(": ") for line in lines]
    return {key: float(value) for key, value in pairs if key in ("EF", "LVedv", "LVesv", "ED")}


def test_both_views_give_the_volumes_of_the_heart(heart: Path, tmp_path: Path, model: Model):
    work = Workspace(WorkList(write_scans(heart, tmp_path / "scans", "2CH", "4CH")), model)
    name, truth = SEQUENCE.format("4CH"), stated(heart)
    assert partner_of(work, name) == SEQUENCE.format("2CH")
    found = measure_heart(work, name)
    assert found["method"] == "biplane"
    assert found["ef_percent"] == pytest.approx(truth["EF"], abs=3)
    assert found["edv_ml"] == pytest.approx(truth["LVedv"], rel=0.07)
    assert found["esv_ml"] == pytest.approx(truth["LVesv"], rel=0.1)
    assert found["ed"] == pytest.approx(truth["ED"] - 1, abs=1)


def test_one_view_and_no_ventricle(heart: Path, tmp_path: Path, model: Model):
    folder = write_scans(heart, tmp_path / "scans", "4CH")
    work = Workspace(WorkList(folder), model)
    name = SEQUENCE.format("4CH")
    assert partner_of(work, name) is None
    assert measure_heart(work, name)["method"] == "monoplane 4CH"
    work.worklist.structures.rename(1, "right ventricle", None)
    assert measure_heart(work, name)["ef_percent"] is None
