"""The command `adapterkit predict`."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from pydicom.uid import MRImageStorage

import adapterkit as ak
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.data.files.series import files_of, read_series, read_series_labels
from adapterkit.inference.archive import SETTINGS
from adapterkit.inference.predictor import Predictor
from adapterkit.inference.prompt_files import StructurePrompt, read_prompts
from adapterkit.inference.tasks import find_tasks
from adapterkit.promptable.stock_sam import save_sam
from adapterkit.system.lock import LOCK, locked_folder
from tests.conftest import Done
from tests.data.dicom_files import write_dicom
from tests.models import ECHO

Run = Callable[..., Done]
RNG = np.random.default_rng(0)
AFFINE = np.diag([0.5, 0.75, 1, 1])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str | Path, ...]:
    """Options that name an adapter and its base, surer of its masks than random weights are."""
    folder = tmp_path_factory.mktemp("model")
    sam = ak.build_sam(ECHO, seed=0)
    with torch.no_grad():
        for name, weight in sam.mask_decoder.named_parameters():
            if "hypernetworks" in name and "layers.2.weight" in name:
                weight *= 100
    save_sam(sam, folder / "base.safetensors")
    torch.manual_seed(0)
    ak.save_adapter(
        ak.inject_samus(sam, 128), folder / "echo.safetensors", classes=["left atrium", "wall"]
    )
    return (
        "--checkpoint", folder / "base.safetensors", "--adapter", folder / "echo.safetensors"
    )  # fmt: skip


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A picture, and in a subfolder a NIfTI sequence."""
    folder = tmp_path / "scans"
    (folder / "p1").mkdir(parents=True)
    Image.fromarray(RNG.integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(folder / "a.png")
    stack = RNG.integers(0, 256, (90, 60, 2), dtype=np.uint8)
    nibabel.save(nibabel.Nifti1Image(stack, AFFINE), folder / "p1" / "b.c.nii.gz")
    return folder


@pytest.fixture
def predictor(model: tuple[str | Path, ...]) -> Predictor:
    return Predictor.from_files(model[1], model[3])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def labels(path: Path) -> np.ndarray:
    """(T, H, W)."""
    return np.asarray(nibabel.load(path).dataobj).T  # pyright: ignore[reportAttributeAccessIssue]


POINTS = ("--point", "30,20", "80,50,0", "--point", "70,10")
PROMPTS: dict[str, Any] = {"points": [[(30, 20), (80, 50)], [(70, 10)]], "labels": [[1, 0], [1]]}


def test_masks_are_the_predictor_s_in_the_folders_of_the_images(
    run: Run, model: tuple[str | Path, ...], scans: Path, tmp_path: Path, predictor: Predictor
):
    out = tmp_path / "masks"
    done = run("predict", scans, *model, *POINTS, "--box", "5,5,60,40", "--out", out)
    assert done.status == 0
    assert f"masks of 2 images are in {out}" in done.output
    assert contents(out).keys() == {SETTINGS, "a.nii.gz", "p1/b.c.nii.gz"}
    prompts = {**PROMPTS, "boxes": [(5, 5, 60, 40), None]}
    found = predictor.predict_frames(scans / "p1" / "b.c.nii.gz", **prompts)
    expected = np.stack([each.label_map() for each in found])
    assert set(np.unique(expected)) >= {1, 2}
    written = out / "p1" / "b.c.nii.gz"
    np.testing.assert_array_equal(labels(written), expected)
    np.testing.assert_array_equal(nibabel.load(written).affine, AFFINE)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_folder_that_another_run_writes_to_is_refused(
    run: Run, tmp_path: Path, scans: Path, model: tuple[str | Path, ...]
):
    out = tmp_path / "masks"
    out.mkdir()
    with locked_folder(out):
        done = run("predict", scans, *model, "--point", "45,30", "--out", out)
        assert isinstance(done.status, str)
        assert f"{out} is in use by process {os.getpid()} on the machine" in done.status
        assert {path.name for path in out.iterdir()} == {LOCK}


def test_a_run_goes_on_where_it_was(
    run: Run, model: tuple[str | Path, ...], scans: Path, tmp_path: Path
):
    out = tmp_path / "masks"
    command = ("predict", scans, *model, *POINTS, "--format", "nifti", "--out", out)
    assert run(*command).status == 0
    first = contents(out)
    (out / "a.nii.gz").unlink()
    (out / "p1" / "b.c.nii.gz").write_bytes(b"made before, so left as it is")
    done = run(*command)
    assert done.status == 0
    assert "masks of 2 images" in done.output
    assert "1 of them from before" in done.output
    assert contents(out) == {**first, "p1/b.c.nii.gz": b"made before, so left as it is"}

    later = (out / "p1" / "b.c.nii.gz").stat().st_mtime + 1
    os.utime(scans / "p1" / "b.c.nii.gz", (later, later))
    assert run(*command).status == 0
    assert contents(out) == first


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("--point", "31,20"), "prompts: --point 30,20, and now --point 31,20"),
        (("--point", "30,20", "--format", "png"), "format: nifti, and now png"),
        (("--point", "30,20", "--min-score", "0.5"), "min_score: 0.88, and now 0.5"),
        ((), "prompts: --point 30,20, and now automatic"),
    ],
)
def test_other_settings_are_refused(
    run: Run, model: tuple[str | Path, ...], scans: Path, tmp_path: Path, change: tuple, what: str
):
    out = tmp_path / "masks"
    image = scans / "a.png"
    assert run("predict", image, *model, "--point", "30,20", "--out", out).status == 0
    before = contents(out)
    done = run("predict", image, *model, *change, "--out", out)
    assert str(done.status).startswith(
        f"error: --out {out} holds masks that were made with another"
    )
    assert what in str(done.status)
    assert contents(out) == before


def test_after_a_run_that_failed_at_once_other_settings_are_taken(
    run: Run, model: tuple[str | Path, ...], scans: Path, tmp_path: Path
):
    command = ("predict", scans / "a.png", *model, "--out", tmp_path / "masks")
    assert "outside of the image" in str(run(*command, "--point", "300,20").status)
    assert run(*command, "--point", "30,20").status == 0
    assert "made with another prompts" in str(run(*command, "--point", "31,20").status)


def test_without_prompts_what_there_is_is_found(
    run: Run,
    model: tuple[str | Path, ...],
    scans: Path,
    tmp_path: Path,
    predictor: Predictor,
    monkeypatch: pytest.MonkeyPatch,
):
    # Masks of random weights are not stable, and their boxes are alike.
    automatic = partial(Predictor.predict_automatic, points_per_side=3)
    monkeypatch.setattr(Predictor, "predict_automatic", partialmethod(automatic, max_overlap=1.0))
    out = tmp_path / "masks"
    options = ("--min-score", "-9", "--min-stability", "0", "--format", "png", "--out", out)
    assert run("predict", scans / "a.png", *model, *options).status == 0
    predictor.set_image(scans / "a.png")
    expected = predictor.predict_automatic(min_score=-9, min_stability=0, count=255).label_map()
    assert expected.max() > 0
    np.testing.assert_array_equal(read_label_map(out / "a.png").frames[0], expected)


def test_structures_known_by_name_need_no_prompt(tmp_path: Path, run: Run, scans: Path):
    sam = ak.build_sam(ECHO, seed=0)
    save_sam(sam, tmp_path / "base.safetensors")
    torch.manual_seed(0)
    ak.inject(sam, "samus_plus", image_size=128, structures=("atrium", "wall"))
    ak.save_adapter(sam, tmp_path / "heart.safetensors")
    base, heart = tmp_path / "base.safetensors", tmp_path / "heart.safetensors"
    files = "--checkpoint", base, "--adapter", heart
    done = run("predict", scans, *files, "--out", tmp_path / "masks")
    assert (done.status, done.errors) == (0, "")
    predictor = Predictor.from_files(base, heart)
    predictor.set_image(scans / "a.png")
    expected = predictor.predict().label_map()
    np.testing.assert_array_equal(labels(tmp_path / "masks" / "a.nii.gz").squeeze(), expected)
    # A click on one of them corrects it.
    done = run("predict", scans / "a.png", *files, "--point", "40,20", "--out", tmp_path / "one")
    assert done.status == 0
    one = predictor.predict([[(40, 20)]], [[1]], classes=["atrium"]).label_map()
    np.testing.assert_array_equal(labels(tmp_path / "one" / "a.nii.gz").squeeze(), one)


def test_that_nothing_was_found_is_told(
    run: Run, model: tuple[str | Path, ...], scans: Path, tmp_path: Path
):
    command = ("predict", scans, *model, "--min-score", "9", "--out", tmp_path / "masks")
    done = run(*command)
    assert done.status == 0
    assert "nothing was found in 2 of them; lower --min-score and --min-stability" in done.output
    assert not labels(tmp_path / "masks" / "a.nii.gz").any()


def test_dicom_segmentations_have_the_adapter_s_structures(
    run: Run, model: tuple[str | Path, ...], tmp_path: Path
):
    import pydicom

    image = tmp_path / "1.2.840.113"
    write_dicom(image, RNG.integers(0, 256, (2, 60, 90), dtype=np.uint8), "THW")
    done = run(
        "predict", image, *model, *POINTS, "--format", "dicom-seg", "--out", tmp_path / "masks"
    )
    assert done.status == 0
    written = pydicom.dcmread(tmp_path / "masks" / "1.2.840.113.dcm")
    assert [each.SegmentLabel for each in written.SegmentSequence] == ["left atrium", "wall"]
    done = run("predict", tmp_path / "masks", *model, *POINTS, "--out", tmp_path / "of masks")
    assert "1.2.840.113.dcm is a DICOM segmentation: expected an image" in str(done.status)
    assert contents(tmp_path / "of masks").keys() == {SETTINGS}


# Prompts in files


CSV = """image,structure,x,y,label,x0,y0,x1,y1
a.png,wall,30,20,1,,,,
a.png,2,80,50,0,,,,
p1/b.c.nii.gz,1,,,,10,5,60,40
"""
JSON = {
    "a.png": {"wall": {"points": [[30, 20], [80, 50]], "labels": [1, 0]}},
    "p1/b.c.nii.gz": {"left atrium": {"box": [10, 5, 60, 40]}},
}


def test_prompts_of_files_are_read(tmp_path: Path):
    (tmp_path / "prompts.csv").write_text(CSV)
    (tmp_path / "prompts.json").write_text(json.dumps(JSON))
    structures = ["left atrium", "wall"]
    expected = {
        "a.png": {2: StructurePrompt(((30, 20), (80, 50)), (1, 0))},
        "p1/b.c.nii.gz": {1: StructurePrompt(box=(10, 5, 60, 40))},
    }
    for ending in ("csv", "json"):
        assert read_prompts(tmp_path / f"prompts.{ending}", structures) == expected


def test_each_image_has_its_prompts_and_each_structure_its_label(
    run: Run, model: tuple[str | Path, ...], scans: Path, tmp_path: Path, predictor: Predictor
):
    (tmp_path / "prompts.csv").write_text(CSV)
    out = tmp_path / "masks"
    prompts = ("--prompts", tmp_path / "prompts.csv")
    assert run("predict", scans, *model, *prompts, "--out", out).status == 0
    predictor.set_image(scans / "a.png")
    found = predictor.predict([[(30, 20), (80, 50)]], [[1, 0]])
    assert found.masks.any()
    np.testing.assert_array_equal(labels(out / "a.nii.gz"), 2 * found.masks)
    assert set(np.unique(labels(out / "p1" / "b.c.nii.gz"))) == {0, 1}

    Image.new("L", (50, 50)).save(scans / "new.png")
    done = run("predict", scans, *model, *prompts, "--out", out)
    assert done.status == "error: 1 of 3 images failed, for the reasons above"
    assert "failed: there is no prompt for new.png" in done.errors
    (scans / "a.png").unlink()
    done = run("predict", scans, *model, *prompts, "--out", out)
    assert "has prompts for a.png, which is no image of these" in str(done.status)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "image,x,y\na.png,1,2\n", "expected image, structure"),
        ("p.csv", "", "has the columns (none)"),
        ("p.csv", "image,structure,x,y\n", "holds no prompt"),
        ("p.csv", "image,structure,x,y\na.png,1,2\n", "line 2: expected a point"),
        ("p.csv", "image,structure,x,y\na.png,1,2,nan\n", "line 2 has '2,nan': expected numbers"),
        ("p.csv", "image,structure,x,y\n,1,2,3\n", "line 2 names no image"),
        ("p.csv", "image,structure,x,y\na.png,0,2,3\n", "the structure is '0'; expected a number"),
        ("p.csv", "image,structure,x,y\na.png,left,2,3\n", "from 1 to 255 or one of wall"),
        ("p.csv", "image,structure,x,y,label\na.png,1,2,3,2\n", "has the label 2: expected 1"),
        ("p.json", "{", "is no JSON"),
        ("p.json", "[]", "is a list: expected an object"),
        ("p.json", '{"a.png": {"1": {"point": [1, 2]}}}', "has point: expected points"),
        ("p.json", '{"a.png": {"1": {"points": [1, 2]}}}', "expected numbers, x, y"),
        ("p.json", '{"a.png": {"1": {"points": [[1, 2]], "labels": [[]]}}}', "has the label []"),
        ("p.json", '{"a.png": {"1": {"points": [[1, 2]], "labels": []}}}', "expected a label"),
        ("p.json", '{"a.png": {"1": {"box": [1, 2, 3]}}}', "expected numbers, x0, y0, x1, y1"),
        ("p.txt", "", "ends in .csv or .json"),
    ],
)
def test_a_mistake_in_a_file_of_prompts_is_named(
    tmp_path: Path, name: str, content: str, message: str
):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as raised:
        read_prompts(tmp_path / name, ["wall"])
    assert message in str(raised.value)


# What is in a folder


def slices(folder: Path, count: int = 5, **elements: Any) -> None:
    """A DICOM series, whose files are not in the order of their places."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        place: dict[str, Any] = {
            "Modality": "MR",
            "SOPClassUID": MRImageStorage,
            "SeriesInstanceUID": "1.2.3",
            "StudyInstanceUID": "1.2",
            "FrameOfReferenceUID": "1.2.4",
            "PositionReferenceIndicator": "",
            "InstanceNumber": k + 1,
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [0, 0, 3 * (k * 2 % count)],
            "PixelSpacing": [0.5, 0.25],
            "SliceThickness": 3,
        }
        pixels = RNG.integers(0, 256, (60, 90), dtype=np.uint8)
        write_dicom(folder / f"{k}.dcm", pixels, "HW", **{**place, **elements})


def test_the_slices_of_a_series_are_one_volume_and_one_segmentation(
    run: Run, model: tuple[str | Path, ...], tmp_path: Path, predictor: Predictor
):
    slices(tmp_path / "scans/p1/t1")
    out = tmp_path / "masks"
    command = ("predict", tmp_path / "scans", *model, *POINTS)
    assert run(*command, "--out", out, "--format", "dicom-seg").status == 0
    assert contents(out).keys() == {SETTINGS, "p1/t1.dcm"}
    volume = read_series(files_of(tmp_path / "scans/p1/t1"), tmp_path)
    expected = np.stack([each.label_map() for each in predictor.predict_frames(volume, **PROMPTS)])
    assert expected.any()
    instances = [str(each.SOPInstanceUID) for each in volume.series]
    found = read_series_labels(out / "p1/t1.dcm", instances)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(read_label_map(out / "p1/t1.dcm").frames, expected)
    # As NIfTI, the same; the folder itself may be given, and other files be in it.
    assert run(*command, "--out", tmp_path / "nifti").status == 0
    np.testing.assert_array_equal(labels(tmp_path / "nifti/p1/t1.nii.gz"), expected)
    Image.new("L", (90, 60)).save(tmp_path / "scans/p1/t1/extra.png")
    done = run("predict", tmp_path / "scans/p1/t1", *model, *POINTS, "--out", tmp_path / "given")
    assert done.status == 0
    assert contents(tmp_path / "given").keys() == {SETTINGS, "0.nii.gz", "extra.nii.gz"}
    np.testing.assert_array_equal(labels(tmp_path / "given/0.nii.gz"), expected)


@pytest.mark.parametrize(
    "elements",
    [{"Modality": "US", "ImageOrientationPatient": ""}, {"SeriesInstanceUID": ""}],
)
def test_files_that_are_no_slices_are_images_of_their_own(tmp_path: Path, elements: dict):
    slices(tmp_path / "scans", 2, **elements)
    found = find_tasks([tmp_path / "scans"], tmp_path / "out", ".png", lambda _: None)
    assert [task.name for task in found.tasks] == ["0.dcm", "1.dcm"]


def test_what_is_left_out_is_counted_and_named_and_the_rest_goes_on(
    run: Run, model: tuple[str | Path, ...], scans: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    for name in ("notes.txt", "p1/table.csv", ".hidden.txt"):
        (scans / name).write_text("no image")
    for name in ("b.bmp", "c.gif", "d.webp", "a.jpg"):
        Image.new("L", (90, 60)).save(scans / name)
    pages = [Image.fromarray(RNG.integers(0, 256, (60, 90), dtype=np.uint8)) for _ in range(3)]
    pages[0].save(scans / "e.tif", save_all=True, append_images=pages[1:])
    sitk.WriteImage(sitk.GetImageFromArray(np.asarray(pages[0])), scans / "f.mhd")
    Image.new("L", (90, 60)).save(scans / "locked.png")
    (tmp_path / "more").mkdir()
    Image.new("L", (90, 60)).save(tmp_path / "more/b.bmp")
    opened = Path.open

    def refusing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "locked.png":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    out = tmp_path / "masks"
    done = run("predict", scans, tmp_path / "more", *model, *POINTS, "--out", out)
    assert done.status == "error: 1 of 9 images failed, for the reasons above"
    lines = done.errors.splitlines()
    assert f"left out 2 files, no image: {scans}/notes.txt, {scans}/p1/table.csv" in lines
    assert f"left out 1 file, named as an image of another folder is; give it its own --out: " \
           f"{tmp_path}/more/b.bmp" in lines  # fmt: skip
    assert f"the masks of {scans}/a.jpg are named a.jpg.nii.gz, as others share its stem" in lines
    assert any("failed: " in line and "locked.png cannot be read (Permission" in line
               for line in lines)  # fmt: skip
    masks = {f"{name}.nii.gz" for name in ("a.jpg", "a.png", "b", "c", "d", "e", "f", "p1/b.c")}
    assert contents(out).keys() == {SETTINGS, *masks}
    assert labels(out / "e.nii.gz").shape == (3, 60, 90)


def test_long_work_is_heard_of(
    run: Run, model: tuple[str | Path, ...], scans: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr("adapterkit.commands.predict._SILENCE", 0.0)
    done = run("predict", scans / "p1", *model, *POINTS, "--out", tmp_path / "masks")
    assert [line for line in done.errors.splitlines() if "b.c" in line] == [
        "reading b.c.nii.gz",
        "frame 1 of 2 of b.c.nii.gz",
        "frame 2 of 2 of b.c.nii.gz",
    ]


# What goes wrong


def test_what_the_format_cannot_hold_is_refused_before_it_is_segmented(
    run: Run, model: tuple[str | Path, ...], scans: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Predictor, "predict_sequence", lambda *_, **__: pytest.fail("segmented"))
    sequence, out = scans / "p1" / "b.c.nii.gz", scans.parent / "masks"
    done = run("predict", sequence, *model, *POINTS, "--format", "png", "--out", out)
    assert "b.c.png: a PNG holds one label map, and " in str(done.status)


def test_a_failed_file_does_not_stop_the_rest(
    run: Run, model: tuple[str | Path, ...], scans: Path, tmp_path: Path
):
    whole = (scans / "a.png").read_bytes()
    (scans / "a.png").write_bytes(whole[:200])
    Image.new("L", (1, 1)).save(scans / "b.png")
    out = tmp_path / "masks"
    command = ("predict", scans, *model, *POINTS, "--out", out)
    done = run(*command)
    assert done.status == "error: 2 of 3 images failed, for the reasons above"
    failures = [line for line in done.errors.splitlines() if line.startswith("failed: ")]
    assert len(failures) == 2
    assert "a.png cannot be read as a picture" in failures[0]
    assert "b.png is 1 x 1 pixels" in failures[1]
    assert contents(out).keys() == {SETTINGS, "p1/b.c.nii.gz"}
    (scans / "a.png").write_bytes(whole)
    (scans / "b.png").unlink()
    assert run(*command).status == 0
    assert contents(out).keys() == {SETTINGS, "a.nii.gz", "p1/b.c.nii.gz"}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, model: tuple[str | Path, ...]) -> Path:
    """Files that are not to be segmented."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "none").mkdir()
    (folder / "text.png").write_text("not an image")
    (folder / "notes.txt").write_text("not an image")
    Image.new("L", (1, 1)).save(folder / "pixel.png")
    noise = RNG.random((20, 20)).astype(np.float32)
    nibabel.save(
        nibabel.Nifti1Image(np.where(noise > 0.9, np.nan, noise), AFFINE), folder / "nan.nii"
    )
    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 9, 2, 2), np.uint8), AFFINE), folder / "4d.nii")
    write_dicom(folder / "whole.dcm", RNG.integers(0, 256, (60, 90), dtype=np.uint8), "HW")
    content = (folder / "whole.dcm").read_bytes()
    (folder / "cut.dcm").write_bytes(content[: len(content) // 2])
    Image.new("L", (90, 60)).save(folder / "good.png")
    (folder / "twins").mkdir()
    for ending in ("png", "tif"):
        Image.new("L", (90, 60)).save(folder / "twins" / f"a.{ending}")
    save_sam(ak.build_sam(ECHO, seed=1), folder / "other.safetensors")
    shutil.copy(Path(model[3]), folder / "echo.safetensors")
    return folder


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("text.png", "text.png cannot be read as a picture"),
        ("notes.txt", "notes.txt is no image that adapterkit reads"),
        ("pixel.png", "pixel.png is 1 x 1 pixels (rows x columns): expected at least 8 x 8"),
        ("nan.nii", "nan.nii has "),
        ("4d.nii", "4d.nii holds an array of shape (2, 2, 9, 9)"),
        ("cut.dcm", "cut.dcm cannot be read as a DICOM image"),
        ("none", "none holds no image"),
        ("nowhere", "there is no file or folder at nowhere"),
        ("", "there is nothing to segment"),
        ("good.png --point 90,5", "points[0] has (90, 5), outside of the image"),
        ("good.png --point 9", "a prompt has '9': expected numbers, x,y or x,y,label"),
        ("good.png --box 0,0,91,60", "boxes[0] is [0.0, 0.0, 91.0, 60.0]"),
        ("good.png --format dicom-seg", "out/good.dcm: DICOM-SEG refers to a DICOM image"),
        ("good.png --prompts nowhere.csv", "there is no file at nowhere.csv"),
        ("good.png --adapter nowhere.safetensors", "there is no file at nowhere.safetensors"),
        (
            "good.png --checkpoint other.safetensors --adapter echo.safetensors",
            "echo.safetensors was trained on another base",
        ),
        ("good.png --workers 2", "--workers 2: expected 1 or more, together with --ray"),
        ("twins --out twins/masks", "--out twins/masks lies within twins"),
        ("good.png --format png --out .", "good.png is an image, and would be overwritten"),
        ("good.png --out none/../twins", "--out none/../twins exists, and is not the folder"),
        ("good.png --out notes.txt", "--out notes.txt exists, and is not the folder"),
    ],
)
def test_a_mistake_is_one_line(
    run: Run,
    model: tuple[str | Path, ...],
    bad: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    line: str,
):
    monkeypatch.chdir(bad)
    words = arguments.split()
    words += [] if "--out" in words else ["--out", "out"]
    words += [] if "--checkpoint" in words else map(str, model[:2])
    words += [] if {"--point", "--box", "--prompts"} & {*words} else ["--point", "5,5"]
    before = contents(bad)
    status = run("predict", *words).status
    assert isinstance(status, str)
    assert status.startswith(f"error: {line}")
    assert "\n" not in status
    shutil.rmtree("out", ignore_errors=True)
    assert contents(bad) == before


def test_ray_is_named_where_it_is_not_installed(
    run: Run,
    model: tuple[str | Path, ...],
    scans: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "ray", None)
    status = run("predict", scans, *model, *POINTS, "--out", tmp_path / "masks", "--ray").status
    assert str(status).startswith("error: this needs ray, ")
    assert 'pip install "adapterkit[cluster]"' in str(status)


@pytest.mark.slow
def test_a_ray_cluster_writes_the_same_masks(
    run: Run,
    model: tuple[str | Path, ...],
    scans: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    for package in ("ray", "pyarrow"):
        pytest.importorskip(package, reason="adapterkit[cluster] is not installed")
    for k in range(6):
        noise = RNG.integers(0, 256, (60, 90), dtype=np.uint8)
        Image.fromarray(noise).save(scans / f"{k}.png")
    (scans / "damaged.png").write_bytes(b"\x89PNG")
    monkeypatch.setenv("PYTHONPATH", str(Path(ak.__file__).parents[1]))
    command = ("predict", scans, *model, *POINTS)
    plain = run(*command, "--out", tmp_path / "plain")
    on_ray = run(*command, "--out", tmp_path / "ray", "--ray", "--workers", "2")
    assert plain.status == on_ray.status == "error: 1 of 9 images failed, for the reasons above"
    assert "damaged.png cannot be read" in on_ray.errors
    assert len(contents(tmp_path / "plain")) == 9
    assert contents(tmp_path / "ray") == contents(tmp_path / "plain")
