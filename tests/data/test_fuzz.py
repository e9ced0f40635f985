"""Malformed files of every kind that is read: each gives a reading or a clear error of its name."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from adapterkit.data.files.images import read_image
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.data.files.masks import write_masks
from adapterkit.data.image_file import DataError
from adapterkit.inference.prompt_files import read_prompts
from tests.data.dicom_files import write_dicom

NOISE = np.random.default_rng(0).integers(0, 256, (3, 24, 32), dtype=np.uint8)
LABELS = (NOISE // 100).astype(np.uint8)
PROMPTS = {"a.png": {"1": {"points": [[30.5, 20]], "labels": [1]}, "2": {"box": [1, 2, 9, 8]}}}


def nifti(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(NOISE.T, np.diag([0.5, 0.25, 1, 1])), path)


def picture(path: Path) -> None:
    pages = [Image.fromarray(each) for each in NOISE]
    several = {"save_all": True, "append_images": pages[1:]} if path.suffix == ".tif" else {}
    pages[0].save(path, **several)


def metaimage(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(NOISE), path)


def dicom(path: Path) -> None:
    write_dicom(path, NOISE, "THW", WindowCenter=100, WindowWidth=50, PixelSpacing=[0.5, 0.25])


def segmentation(path: Path) -> None:
    dicom(path)
    write_masks(path, LABELS, read_image(path), ["cavity", "wall"])


def mask(path: Path) -> None:
    labels = Image.fromarray(LABELS[0])
    labels.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    labels.save(path)


def prompts(path: Path) -> None:
    path.write_text(json.dumps(PROMPTS))


def prompt_table(path: Path) -> None:
    path.write_text("image,structure,x,y,label\na.png,1,30.5,20,1\na.png,2,8,9,0\n")


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "a.png": (picture, read_image),
    "a.jpg": (picture, read_image),
    "a.tif": (picture, read_image),
    "a.nii": (nifti, read_image),
    "a.nii.gz": (nifti, read_image),
    "a.mha": (metaimage, read_image),
    "a.mhd": (metaimage, read_image),
    "a.dcm": (dicom, read_image),
    "segmentation.dcm": (segmentation, read_label_map),
    "mask.png": (mask, read_label_map),
    "mask.nii.gz": (nifti, read_label_map),
    "prompts.json": (prompts, read_prompts),
    "prompts.csv": (prompt_table, read_prompts),
}
"""What writes a whole file of each kind, and what reads it."""


def damaged(whole: bytes, draw: np.random.Generator, way: int) -> tuple[str, bytes]:
    """A copy that is damaged in one of five ways, and the way."""
    content = bytearray(whole)
    at = int(draw.integers(len(whole)))
    if way == 0:
        return "cut", whole[:at]
    if way == 1:
        for place in draw.integers(0, min(len(whole), 400), 3):
            content[place] = draw.integers(256)
        return "header", bytes(content)
    if way == 2:
        for place in draw.integers(0, len(whole), 3):
            content[place] ^= 1 << int(draw.integers(8))
        return "bits", bytes(content)
    if way == 3:
        return "gap", whole[:at] + whole[at + int(draw.integers(1, 40)) :]
    other = int(draw.integers(len(whole)))
    return "copied piece", whole[:at] + whole[other : other + 64] + whole[at:]


def fuzz(folder: Path, name: str, count: int) -> Counter[str]:
    """What becomes of `count` malformed files of a kind."""
    write, read = KINDS[name]
    path = folder / name
    write(path)
    whole = path.read_bytes()
    read(path)
    draw = np.random.default_rng(0)
    found: Counter[str] = Counter()
    for k in range(count):
        way, content = damaged(whole, draw, k % 5)
        path.unlink()
        path.write_bytes(content)
        try:
            read(path)
        except ValueError as error:
            if name not in str(error) or not (isinstance(error, DataError) or "prompts" in name):
                pytest.fail(f"{way}: {error!r}")
            found["refused"] += 1
        else:
            found["read"] += 1
    return found


@pytest.mark.parametrize("name", KINDS)
def test_a_few_malformed_files(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]):
    assert fuzz(tmp_path, name, 20)["refused"] > 0
    assert capfd.readouterr() == ("", "")  # No lines of the libraries themselves.


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_two_hundred_malformed_files(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]):
    found = fuzz(tmp_path, name, 200)
    assert capfd.readouterr() == ("", "")
    with capfd.disabled():
        print(f"\n{found.total()} malformed {name}: {dict(found)}")
    assert found["refused"] > 0
