"""The command `adapterkit evaluate`."""

import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from adapterkit.data.files.images import read_image
from adapterkit.data.files.masks import write_masks
from adapterkit.evaluation.evaluation import Evaluation
from adapterkit.evaluation.metrics import segmentation_metrics
from tests.conftest import Done
from tests.data.dicom_files import write_dicom

Run = Callable[..., Done]


def save(path: Path, labels: np.ndarray, spacing: tuple[float, float] = (0.5, 0.25)) -> None:
    """A label map (T, H, W) as NIfTI, or (H, W) as a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(labels).save(path)
    else:
        row, column = spacing
        nibabel.save(nibabel.Nifti1Image(labels.T, np.diag([column, row, 1, 1])), path)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:40, :50]
    return np.hypot(rows - y, columns - x) <= radius


def labelled(shift: int) -> np.ndarray:
    """A wall, 2, around a cavity, 1; without the wall if it is shifted far."""
    labels = 2 * disc(20 + shift, 20, 12 if shift < 5 else 0).astype(np.uint8)
    labels[disc(20 + shift, 20, 7)] = 1
    return labels


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Masks of a sequence and of a slice, by a model and by an expert."""
    for name, shifts in {"model": (1, 0), "expert": (0, 2)}.items():
        save(tmp_path / name / "p1" / "a.nii.gz", np.stack([labelled(s) for s in shifts]))
        save(tmp_path / name / "b.nii", labelled(6 if name == "model" else 0)[None])
    return tmp_path / "model", tmp_path / "expert"


def channels(*shifts: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([[labelled(s) == k for k in (1, 2)] for s in shifts]))


def test_labels_of_one_name_are_merged(run: Run, folders: tuple[Path, Path], tmp_path: Path):
    table = tmp_path / "metrics.csv"
    done = run("evaluate", *folders, "--structures", "1=heart", "2=heart", "--csv", table)
    assert done.status == 0
    found = Evaluation.read_csv(table)
    assert found.structures == ["heart"]
    ours, theirs = (channels(*each).any(1, keepdim=True) for each in ((6, 1, 0), (0, 0, 2)))
    torch.testing.assert_close(found.values["dice"], segmentation_metrics(ours, theirs)["dice"])


def test_every_frame_and_structure_is_measured(
    run: Run, folders: tuple[Path, Path], tmp_path: Path
):
    table = tmp_path / "metrics.csv"
    done = run("evaluate", *folders, "--structures", "1=cavity", "2=wall", "--csv", table)
    assert done.status == 0
    found = Evaluation.read_csv(table)
    assert found.structures == ["cavity", "wall"]
    assert found.names == ["b", "p1/a", "p1/a"]
    assert [each["frame"] for each in found.attributes] == ["0", "0", "1"]
    ours, theirs = channels(6, 1, 0), channels(0, 0, 2)
    in_pixels, in_mm = (
        segmentation_metrics(ours, theirs, spacing) for spacing in ((1, 1), (0.5, 0.25))
    )
    for metric in ("dice", "iou"):
        torch.testing.assert_close(found.values[metric], in_pixels[metric])
    for metric in ("hausdorff", "hausdorff95", "average_surface_distance"):
        torch.testing.assert_close(found.values[f"{metric}_px"], in_pixels[metric])
        torch.testing.assert_close(found.values[f"{metric}_mm"], in_mm[metric])
    row = next(line for line in done.output.splitlines() if "| cavity |" in line)
    assert f"{100 * in_pixels['dice'][:, 0].mean():.2f} ±" in row
    assert f"{in_mm['hausdorff95'][:, 0].mean():.2f} ±" in row


def test_two_files_are_compared_whatever_they_are_called(run: Run, tmp_path: Path):
    for name, shift in {"one.png": 0, "other.nii.gz": 3}.items():
        labels = labelled(shift)
        save(tmp_path / name, labels if name.endswith("png") else labels[None])
    done = run("evaluate", tmp_path / "one.png", tmp_path / "other.nii.gz")
    assert done.status == 0
    assert "structure 1" in done.output
    assert "structure 2" in done.output
    # Of the two, one alone says how big a pixel is.
    assert "(px)" in done.output
    assert "(mm)" not in done.output
    assert f"in pixels alone: {tmp_path / 'one.png'} is a picture, which states no" in done.output


@pytest.mark.parametrize(
    ("unit", "side", "told"),
    [
        ("mm", 1.0, ""),
        ("unknown", 0.5, ""),
        ("unknown", 1.0, "nii states 1 x 1, without a unit of length or without a form"),
        ("mha", 1.0, "mha states 1 x 1 mm, which is what is written where no size is known"),
        ("dicom", 1.0, "dcm is a DICOM file without Pixel Spacing"),
    ],
)
def test_which_file_takes_the_millimetres_away_is_said(
    run: Run, tmp_path: Path, unit: str, side: float, told: str
):
    for name in ("ours", "theirs"):
        save(tmp_path / name / "a.nii", labelled(0)[None])
        if unit == "mha":
            sitk.WriteImage(sitk.GetImageFromArray(labelled(1)), tmp_path / name / "b.mha")
        elif unit == "dicom":
            image = read_image(write_dicom(tmp_path / "b.dcm", np.zeros((40, 50), np.uint8)))
            write_masks(tmp_path / name / "b.dcm", labelled(1)[None], image)
        else:
            nifti = nibabel.Nifti1Image(labelled(1).T, np.diag([side, side, 1, 1]))
            nifti.header.set_xyzt_units(unit)
            nibabel.save(nifti, tmp_path / name / "b.nii")
    done = run("evaluate", tmp_path / "ours", tmp_path / "theirs")
    assert done.status == 0
    assert ("HD95 (mm)" in done.output) is not bool(told)
    assert told in done.output
    assert ("in pixels alone" in done.output) is bool(told)
    assert ("(as 1 more masks)" in done.output) is bool(told)


@pytest.mark.parametrize("frames", [1, 4])
def test_masks_of_every_format_are_read(run: Run, tmp_path: Path, frames: int):
    """Of a loop, the last frame is empty in all."""
    pixels = np.zeros((frames, 40, 50), np.uint8)
    axes = "THW" if frames > 1 else "HW"
    spacing = {"PixelSpacing": [0.5, 0.25]}
    write_dicom(tmp_path / "a.dcm", pixels if frames > 1 else pixels[0], axes, **spacing)
    image = read_image(tmp_path / "a.dcm")
    endings = (".nii.gz", ".dcm", ".png") if frames == 1 else (".nii.gz", ".dcm")
    for name, shift in {"model": 1, "expert": 0}.items():
        labels = np.stack([labelled(shift + t) for t in range(frames)])
        labels[3:] = 0
        for ending in endings:
            (tmp_path / name).mkdir(exist_ok=True)
            write_masks(tmp_path / name / f"a{ending}", labels, image)
    found = []
    for ours in endings:
        for theirs in endings:
            files = tmp_path / "model" / f"a{ours}", tmp_path / "expert" / f"a{theirs}"
            done = run("evaluate", *files, "--csv", tmp_path / "metrics.csv", "--force")
            assert done.status == 0
            with (tmp_path / "metrics.csv").open() as file:
                found.append([(row["structure"], row["dice"]) for row in csv.DictReader(file)])
    assert len(found[0]) == 2 * frames
    assert 0 < float(found[0][0][1]) < 1
    assert all(each == found[0] for each in found)


def test_a_segmentation_may_leave_out_frames_at_the_end(run: Run, tmp_path: Path):
    image = read_image(write_dicom(tmp_path / "a.dcm", np.zeros((4, 40, 50), np.uint8), "THW"))
    labels = np.stack([labelled(0), labelled(2), *np.zeros((2, 40, 50), np.uint8)])
    write_masks(tmp_path / "whole.nii", labels, image)
    two = replace(image, frames=image.frames[:2])
    write_masks(tmp_path / "two.dcm", labels[:2], two)
    for pair in (("whole.nii", "two.dcm"), ("two.dcm", "whole.nii")):
        table = tmp_path / "metrics.csv"
        done = run("evaluate", *(tmp_path / each for each in pair), "--csv", table, "--force")
        assert done.status == 0
        np.testing.assert_array_equal(Evaluation.read_csv(table).values["dice"], np.ones((4, 2)))


def test_binary_masks_may_have_any_foreground(run: Run, tmp_path: Path):
    save(tmp_path / "ours" / "a.png", disc(20, 20, 9).astype(np.uint8))
    save(tmp_path / "theirs" / "a.png", 255 * disc(20, 20, 9).astype(np.uint8))
    folders = tmp_path / "ours", tmp_path / "theirs"
    done = run("evaluate", *folders, "--binary", "--csv", tmp_path / "metrics.csv")
    assert done.status == 0
    with (tmp_path / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["structure"], row["dice"]) == ("foreground", "1")
    status = str(run("evaluate", *folders).status)
    assert "holds the label 1, which is no structure's: known are 255" in status
    assert "give --binary" in status
    assert "give --binary" in str(run("evaluate", *folders, "--structures", "1=lv").status)


def damage_nothing(folder: Path) -> None:
    pass


def remove(folder: Path) -> None:
    (folder / "b.nii").unlink()


def add(folder: Path) -> None:
    for k in range(2):
        shutil.copy(folder / "b.nii", folder / f"c{k}.nii")


def twice(folder: Path) -> None:
    save(folder / "b.png", labelled(0))


def resize(folder: Path) -> None:
    save(folder / "b.nii", labelled(0)[None, :, 1:])


def stretch(folder: Path) -> None:
    save(folder / "b.nii", labelled(0)[None], (0.5, 0.3))


def move(folder: Path) -> None:
    affine = np.diag([0.25, 0.5, 1, 1])
    affine[1, 3] = 7
    nibabel.save(nibabel.Nifti1Image(labelled(0)[None].T, affine), folder / "b.nii")


def relabel(folder: Path) -> None:
    save(folder / "b.nii", 3 * labelled(0)[None])


def blur(folder: Path) -> None:
    save(folder / "b.nii", labelled(0)[None] / np.float32(2))


def colour(folder: Path) -> None:
    remove(folder)
    save(folder / "b.png", np.random.default_rng(0).integers(0, 9, (40, 50, 3), dtype=np.uint8))


def dicom(folder: Path) -> None:
    remove(folder)
    write_dicom(folder / "b.dcm", labelled(0))


def cut(folder: Path) -> None:
    dicom(folder)
    image = read_image(folder / "b.dcm")
    write_masks(folder / "b.dcm", labelled(0)[None], image)
    content = (folder / "b.dcm").read_bytes()
    (folder / "b.dcm").write_bytes(content[:-200])


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (remove, "", "expert/b.nii has no counterpart in model: expected masks of the same names"),
        (add, "", "model/c0.nii has no counterpart in expert, and 1 more have none"),
        (twice, "", "b is listed twice, as model/b.nii and as b.png"),
        (resize, "", "(frames, rows, columns): (1, 40, 49) and (1, 40, 50)"),
        (stretch, "", "differ in spacing (row, column): 0.5 x 0.3 mm and 0.5 x 0.25 mm"),
        (move, "", "model/b.nii and expert/b.nii lie elsewhere in space: row 1 of their affines"),
        (
            relabel,
            "",
            "model/b.nii holds the label 3, which is no structure's: known",
        ),
        (blur, "", "model/b.nii holds numbers that are not whole"),
        (colour, "", "model/b.png is in colour"),
        (dicom, "", "model/b.dcm cannot be read as DICOM-SEG"),
        (cut, "", "model/b.dcm cannot be read as a DICOM image"),
        (damage_nothing, "--structures 2=wall", "model/b.nii holds the label 1, which is no struc"),
        (damage_nothing, "--structures wall", "--structures wall: expected LABEL=NAME"),
        (damage_nothing, "--structures 1=a 1=b", "--structures 1=b: 1 is there twice"),
        (damage_nothing, "--structures 1=a --binary", "--binary is of one structure"),
        (damage_nothing, "--csv expert/b.nii", "expert/b.nii exists; give --force"),
        (shutil.rmtree, "", "there is no file or folder at model"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    run: Run,
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    options: str,
    message: str,
):
    damage(folders[0])
    monkeypatch.chdir(tmp_path)
    status = run("evaluate", "model", "expert", *options.split()).status
    assert isinstance(status, str)
    assert status.startswith("error: ")
    assert message in status
    assert "\n" not in status


def test_a_file_and_a_folder_cannot_be_compared(run: Run, folders: tuple[Path, Path]):
    status = run("evaluate", folders[0], folders[1] / "b.nii").status
    assert "expected two files, or two folders" in str(status)
