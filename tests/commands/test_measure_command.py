"""The command `adapterkit measure`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import adapterkit as ak
from adapterkit.data.collections.camus import find_frames, read_info
from adapterkit.data.synthetic.beat import Beat
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.evaluation.clinical import measure_view
from adapterkit.promptable.stock_sam import save_sam
from tests.conftest import Done
from tests.half_ellipses import beat, half_ellipses, of_half_ellipsoid
from tests.models import ECHO

Run = Callable[..., Done]


def save(path: Path, labels: np.ndarray, spacing: float = 1.0) -> None:
    """A label map (H, W) or (T, H, W) as NIfTI, or as a picture, which states no spacing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(labels).save(path)
    else:
        image = nibabel.Nifti1Image(labels.T, np.diag([spacing, spacing, 1, 1]))
        image.header.set_xyzt_units("mm")
        nibabel.save(image, path)


def patients(out: Path) -> dict[str, dict[str, Any]]:
    """The rows of a run's table."""
    rows = pd.read_csv(out / "patients.csv", keep_default_na=False, na_values=[""])
    return {str(row["patient"]): row for row in rows.to_dict("records")}


def column(found: dict[str, dict[str, Any]], name: str) -> np.ndarray:
    return np.array([row[name] for row in found.values()])


def is_drawn(path: Path) -> bool:
    return len(np.unique(np.asarray(Image.open(path).convert("L")))) > 20


def test_camus_is_measured_beside_what_it_states(run: Run, phantom: Path, tmp_path: Path):
    done = run("measure", phantom, "--reference", phantom, "--out", tmp_path / "out")
    assert done.status == 0, done.errors
    found = patients(tmp_path / "out")
    assert [*found] == ["patient0001", "patient0002", "patient0003"]
    assert {*column(found, "method")} == {"biplane"}
    for frame in find_frames(phantom):
        info = read_info(frame)
        assert info is not None
        assert found[frame.patient]["ef_stated"] == info.ejection_fraction
    assert np.abs(column(found, "ef") - column(found, "ef_stated")).max() < 4
    assert "| EF (%) | 3 |" in done.output
    assert "not for clinical use" in done.output
    assert is_drawn(tmp_path / "out" / "agreement_stated.png")
    assert not (tmp_path / "out" / "agreement.png").exists()
    again = run("measure", phantom, "--out", tmp_path / "out")
    assert "exists; give --force" in str(again.status)
    assert run("measure", phantom, "--out", tmp_path / "out", "--force").status == 0


def test_masks_of_a_model_are_compared_with_those_of_an_expert(run: Run, tmp_path: Path):
    """Of five patients, in whose masks the model errs by known factors."""
    factors = {"a": 1.0, "b": 1.1, "c": 0.9, "d": 1.05, "e": 1.0}
    for k, (patient, factor) in enumerate(factors.items()):
        radius = 18 + k
        for view in ("2CH", "4ch"):
            for phase, scale in (("ED", 1), ("es", 0.7)):
                true = half_ellipses(60, scale * radius)
                save(tmp_path / "expert" / f"{patient}_{view}_{phase}.nii.gz", true, 0.5)
                ours = half_ellipses(60, factor * scale * radius)
                save(tmp_path / "model" / "sub" / f"{patient}-{view}-{phase}_gt.nii", ours, 0.5)
    out = tmp_path / "out"
    done = run("measure", tmp_path / "model", "--reference", tmp_path / "expert", "--out", out)
    assert done.status == 0, done.errors
    found = patients(out)
    assert column(found, "ef") == pytest.approx(np.full(5, 100 * (1 - 0.7**2)), abs=1)
    ours, theirs = column(found, "edv_ml"), column(found, "edv_ml_reference")
    assert ours / theirs == pytest.approx([f**2 for f in factors.values()], rel=0.02)
    assert found["c"]["edv_ml_reference"] == pytest.approx(
        of_half_ellipsoid(60, 20) / 1000, rel=0.02
    )
    of_agreement = done.output.partition("against the reference")[2]
    row = next(line for line in of_agreement.splitlines() if line.startswith("| EDV (ml) | 5 | "))
    bias, mae = (float(row.split(" | ")[k].split()[0]) for k in (2, 4))
    assert bias == pytest.approx((ours - theirs).mean(), abs=0.01)
    assert mae == pytest.approx(np.abs(ours - theirs).mean(), abs=0.01)
    assert is_drawn(out / "agreement.png")
    # The table of one run is a reference for another.
    other = run(
        "measure", tmp_path / "expert", "--reference", out / "patients.csv", "--out", tmp_path / "b"
    )
    assert other.status == 0, other.errors
    assert (column(patients(tmp_path / "b"), "edv_ml_reference") == ours).all()


def test_sequences_tell_their_phases_area_dice_and_jitter(run: Run, tmp_path: Path):
    truth = beat()
    flickering = truth.copy()
    flickering[5, :, :70][flickering[5, :, :70] == 1] = 0
    for view in ("2CH", "4CH"):
        save(tmp_path / "expert" / f"anna_{view}_half_sequence_gt.nii.gz", truth)
        save(tmp_path / "model" / f"anna_{view}.nii.gz", flickering)
    options = "--reference", tmp_path / "expert", "--out", tmp_path / "out"
    done = run("measure", tmp_path / "model", *options)
    assert done.status == 0, done.errors
    row = patients(tmp_path / "out")["anna"]
    assert (row["ed_frame_2CH"], row["es_frame_4CH"]) == (0, pytest.approx(11, abs=1))
    assert row["ef"] == pytest.approx(100 * (1 - (45 * 16**2) / (60 * 24**2)), abs=1)
    assert row["ef"] == row["ef_reference"]
    frames = pd.read_csv(tmp_path / "out" / "frames.csv").to_dict("records")
    assert len(frames) == 2 * len(truth)
    assert frames[0]["lv_area_mm2"] == (truth[0] == 1).sum()
    for row_of_frame in frames:
        assert (row_of_frame["dice"] == 1) == (row_of_frame["frame"] != 5)
    assert run("measure", tmp_path / "expert", "--out", tmp_path / "steady").status == 0
    assert row["jitter_2CH"] > 1.5 * patients(tmp_path / "steady")["anna"]["jitter_2CH"]


def test_beating_phantoms_have_their_true_volumes(run: Run, tmp_path: Path):
    beating = write_phantom(tmp_path / "beat", 2, image_size=96, beat=Beat())
    done = run("measure", beating, "--reference", beating, "--out", tmp_path / "out")
    assert done.status == 0, done.errors
    found = patients(tmp_path / "out")
    for key, tolerance in {"ef": 3, "edv_ml": 8, "esv_ml": 5}.items():
        off = column(found, key) - column(found, f"{key}_stated")
        assert np.abs(off).max() < tolerance, key
    assert 0 < column(found, "jitter_2CH").max() < 0.1


def test_what_is_wrong_with_masks_is_told_and_in_the_table(run: Run, tmp_path: Path):
    """Pictures, so the size of a pixel is unknown; one is empty."""
    for phase, size in (("ED", 60), ("ES", 48)):
        labels = half_ellipses(size, 0.4 * size)
        save(tmp_path / "masks" / f"anna_2CH_{phase}.png", labels)
        empty = np.zeros_like(labels)
        save(tmp_path / "masks" / f"anna_4CH_{phase}.png", labels if phase == "ED" else empty)
    done = run("measure", tmp_path / "masks", "--out", tmp_path / "out")
    assert done.status == 0
    row = patients(tmp_path / "out")["anna"]
    assert row["ef"] == pytest.approx(100 * (1 - 0.8**3), abs=0.5)
    assert row["method"] == "monoplane 2CH"
    assert np.isnan(row["edv_ml"])
    assert "anna_4CH_ES: the left ventricle is empty" in done.errors
    assert "the size of a pixel is not known" in done.errors
    assert "anna_4CH_ES: the left ventricle is empty" in row["notes"]
    assert "EDV" not in done.output


def test_names_and_labels_may_be_others(run: Run, tmp_path: Path):
    for phase, size in (("dia", 60), ("sys", 48)):
        labels = half_ellipses(size)
        save(tmp_path / "masks" / "4ch" / f"p7 {phase}.nii.gz", np.where(labels == 1, 20, labels))
    names = r"(?P<view>.CH)/(?P<patient>\w+) (?P<phase>\w+)"
    options = "measure", tmp_path / "masks", "--out", tmp_path / "out", "--names"
    done = run(*options, names)
    assert "the view 4CH and the phase DIA: expected 2CH or 4CH, and ED, ES" in str(done.status)
    for phase, other in (("dia", "ed"), ("sys", "es")):
        path = tmp_path / "masks" / "4ch" / f"p7 {phase}.nii.gz"
        path.rename(path.with_name(f"p7 {other}.nii.gz"))
    done = run(*options, names)
    assert "holds the label 20, which is no structure's" in str(done.status)
    done = run(*options, names, "--structures", "20=left ventricle", "3=left atrium")
    assert done.status == 0, done.errors
    assert patients(tmp_path / "out")["p7"]["method"] == "monoplane 4CH"


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Of a patient, one view at ED and ES."""
    for phase in ("ED", "ES"):
        save(tmp_path / "masks" / f"anna_2CH_{phase}.nii.gz", half_ellipses())
    return tmp_path / "masks"


def fails(run: Run, *arguments: str | Path) -> str:
    """The one line that a call ends with."""
    done = run("measure", *arguments)
    assert str(done.status).startswith("error: ")
    return str(done.status)


def test_errors_say_what_was_found_and_what_to_do(run: Run, masks: Path, tmp_path: Path):
    out = "--out", tmp_path / "out"
    table = tmp_path / "a.csv"
    assert "no group patient" in fails(run, masks, *out, "--names", "(?P<view>.CH).*")
    assert "no regular expression" in fails(run, masks, *out, "--names", "(")
    assert "expected names such as anna_2CH_ED" in fails(run, masks, *out, "--names",
           "x(?P<patient>.)(?P<view>.)")  # fmt: skip
    assert 'no structure is called "left ventricle": known are 1=LV' in fails(
        run, masks, *out, "--structures", "1=LV"
    )
    assert "give both" in fails(run, masks, *out, "--checkpoint", "sam.pth")
    assert "no file or folder at --reference" in fails(run, masks, *out, "--reference", table)
    table.write_text("patient,EF\nanna,50\n")
    assert "expected patient, and one or more of ef" in fails(
        run, masks, *out, "--reference", table
    )
    table.write_text("patient,ef\nbert,50\n")
    assert "none of the patients: it has bert, and the masks anna" in fails(
        run, masks, *out, "--reference", table
    )
    table.write_text("patient,ef\nanna,50\nanna,51\n")
    assert "the patient anna twice" in fails(run, masks, *out, "--reference", table)
    table.write_text("patient,ef\nanna,about 50\n")
    assert "no number" in fails(run, masks, *out, "--reference", table)
    assert "is a file" in fails(run, masks, "--out", table)
    save(masks / "anna_4CH.nii.gz", half_ellipses())
    assert "neither ED nor ES" in fails(run, masks, *out)
    save(masks / "anna_4CH.nii.gz", beat())
    save(masks / "b" / "anna_2CH_ED.nii.gz", half_ellipses())
    assert "one patient, view and phase" in fails(run, masks, *out)
    (masks / "b" / "anna_2CH_ED.nii.gz").unlink()
    save(masks / "anna_2CH_ES.nii.gz", beat())
    assert "21 frames and its name says ES" in fails(run, masks, *out)
    assert not (tmp_path / "out").exists()


def test_images_are_segmented_by_an_adapter_first(run: Run, phantom: Path, tmp_path: Path):
    sam = ak.build_sam(ECHO, seed=0)
    save_sam(sam, tmp_path / "base.safetensors")
    structures = "left ventricle", "myocardium", "left atrium"
    ak.inject(sam, "samus_plus", image_size=128, structures=structures)
    ak.save_adapter(sam, tmp_path / "echo.safetensors", classes=list(structures))
    base = "--checkpoint", tmp_path / "base.safetensors"
    options = "measure", phantom, *base, "--reference", phantom, "--out", tmp_path / "out"
    done = run(*options, "--adapter", tmp_path / "echo.safetensors")
    assert done.status == 0, done.errors
    found = patients(tmp_path / "out")
    assert len(found) == 3
    assert np.isfinite(column(found, "ef_reference")).all()
    predictor = ak.Predictor.from_files(base[1], tmp_path / "echo.safetensors")
    predictor.set_image(next(phantom.rglob("patient0002_4CH_ES.nii.gz")))
    masks = predictor.predict()
    view = measure_view(masks.label_map(), masks.spacing, "patient0002_4CH_ES")
    area = found["patient0002"]["lv_area_4CH_ES_cm2"]
    assert area == pytest.approx(view.ventricle.area_cm2, rel=1e-4)
    ak.eject(sam)
    ak.save_adapter(
        ak.inject_samus(sam, 128), tmp_path / "clicks.safetensors", classes=list(structures)
    )
    done = run(*options, "--adapter", tmp_path / "clicks.safetensors", "--force")
    assert "needs prompts: segment the images with adapterkit predict" in str(done.status)
