"""One data set in every format: trained by the command, each gives the Dice of the plain folder."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import adapterkit as ak
from tests import camus_files
from tests.conftest import Done
from tests.data.written_collections import (
    draw,
    save,
    write_coco,
    write_dicom_slices,
    write_folders,
    write_metaimage,
    write_nifti,
    write_segmentation,
)

pytestmark = pytest.mark.usefixtures("blank_figures")

# Named as slices are, so that all formats have the same names, which the prompts depend on.
DRAWN = [
    replace(each, name=f"{each.patient}/{index % 2:03d}")
    for index, each in enumerate(draw(8, size=(40, 56)))
]
PAIRS = list(zip(DRAWN[::2], DRAWN[1::2], strict=True))
"""The two images of each patient."""
PARTS = ["train", "train", "val", "val", "train", "train", "test", "test"]
NAMED = ("--structures", "1=ventricle", "2=atrium")
VOLUMES = [
    (one.patient, np.stack([one.image, two.image]), np.stack([one.labels, two.labels]))
    for one, two in PAIRS
]
Command = tuple[str | Path, ...]


def beside(root: Path) -> Command:
    for each in DRAWN:
        save(root / f"{each.name}.png", each.image)
        save(root / f"{each.name}_mask.tif", each.labels)
    return root, "--format", "folders", *NAMED


def patterns(root: Path) -> Command:
    for each in DRAWN:
        save(root / each.name / "photo.png", each.image)
        save(root / each.name / "truth.png", each.labels)
    places = ("--images", root / "{name}/photo.png", "--masks", root / "{name}/truth.png")
    return root, *places, *NAMED


def palettes(root: Path) -> Command:
    for each in DRAWN:
        save(root / "images" / f"{each.name}.png", each.image)
        mask = Image.fromarray(each.labels)
        mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        (root / "masks" / each.patient).mkdir(parents=True, exist_ok=True)
        mask.save(root / "masks" / f"{each.name}.png")
    return root, *NAMED


def one_file_for_each(root: Path) -> Command:
    for each in DRAWN:
        save(root / "images" / f"{each.name}.png", each.image)
        for label, name in ((1, "cavity"), (2, "wall")):
            mask = np.where(each.labels == label, 255, 0).astype(np.uint8)
            save(root / "masks" / f"{each.name}_{name}.png", mask)
    return (root,)


def colours(root: Path) -> Command:
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
    for each in DRAWN:
        save(root / "images" / f"{each.name}.png", each.image)
        save(root / "masks" / f"{each.name}.png", palette[each.labels])
    return root, "--colours", "ventricle=255,0,0", "atrium=0,255,0"


def table(root: Path) -> pd.DataFrame:
    for each in DRAWN:
        save(root / f"{each.name}.png", each.image)
        save(root / "labels" / f"{each.name}.png", each.labels)
    names = [f"{each.name}.png" for each in DRAWN]
    return pd.DataFrame({"image": names, "mask": [f"labels/{name}" for name in names]})


def csv_table(root: Path) -> Command:
    table(root).assign(split=PARTS).to_csv(root / "t.csv", index=False)
    return root / "t.csv", *NAMED


def parquet(root: Path) -> Command:
    groups = [each.patient for each in DRAWN]
    table(root).assign(patient=groups).to_parquet(root / "t.parquet")
    return root / "t.parquet", "--group", "patient", *NAMED


def json_lines(root: Path) -> Command:
    table(root).to_json(root / "t.jsonl", orient="records", lines=True)
    return root / "t.jsonl", *NAMED


def coco(root: Path) -> Command:
    return (write_coco(root, DRAWN),)


def nnunet(root: Path) -> Command:
    labels = {"background": 0, "ventricle": 1, "atrium": 2}
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))
    for name, frames, masks in VOLUMES:
        write_nifti(root / f"imagesTr/{name}_0000.nii.gz", frames)
        write_nifti(root / f"labelsTr/{name}.nii.gz", masks)
    return (root,)


def nifti_along_rows(root: Path) -> Command:
    for name, frames, masks in VOLUMES:
        write_nifti(root / f"images/{name}.nii.gz", frames.swapaxes(0, 1))
        write_nifti(root / f"masks/{name}_seg.nii", masks.swapaxes(0, 1))
    return root, "--axis", "1", *NAMED


def metaimage(root: Path) -> Command:
    for name, frames, masks in VOLUMES:
        write_metaimage(root / f"images/{name}.mha", frames)
        write_metaimage(root / f"masks/{name}.mha", masks)
    return root, *NAMED


def series(root: Path) -> Command:
    for name, frames, masks in VOLUMES:
        files = write_dicom_slices(root / "images" / name, frames)
        write_segmentation(root / f"masks/{name}.dcm", files, masks)
    return (root,)


FORMATS: list[Callable[[Path], Command]] = [
    beside, patterns, palettes, one_file_for_each, colours, csv_table, parquet,
    json_lines, coco, nnunet, nifti_along_rows, metaimage, series,
]  # fmt: skip
AS_SLICES = (nnunet, nifti_along_rows, metaimage, series)
SHORT = ("--method", "samed", "--prompts", "box", "--epochs", "1", "--image-size", "64",
         "--batch-size", "4")  # fmt: skip


def dice(folder: Path) -> list[float]:
    """Of each image and structure."""
    with (folder / "per_image.csv").open() as file:
        return [float(row["dice"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Of the plain folder."""
    root = tmp_path_factory.mktemp("plain")
    data = write_folders(root / "data", DRAWN)
    ak.train(
        data,
        structures=("1=ventricle", "2=atrium"),
        method="samed",
        prompts="box",
        epochs=1,
        image_size=64,
        batch_size=4,
        out=root / "run",
    )
    return dice(root / "run")


@pytest.mark.parametrize("write", FORMATS)
def test_each_format_gives_the_dice_of_the_plain_folder(
    tmp_path: Path,
    write: Callable[[Path], Command],
    expected: list[float],
    run: Callable[..., Done],
):
    (tmp_path / "data").mkdir()
    data = write(tmp_path / "data")
    done = run("train", *data, *SHORT, "--out", tmp_path / "run")
    assert done.status == 0, done
    assert dice(tmp_path / "run") == expected
    assert min(expected) > 0
    if write in AS_SLICES:
        table = (tmp_path / "run" / "table.md").read_text()
        assert "## Volumes, in 3-D over all slices" in table


def test_camus_gives_the_dice_of_the_plain_folder_of_its_images(
    tmp_path: Path, run: Callable[..., Done]
):
    names = "1=left ventricle", "2=myocardium", "3=left atrium"
    for number, each in enumerate(draw(20, size=(40, 56))):
        patient, frame = f"patient{number // 4 + 1:04d}", ["2CH_ED", "2CH_ES", "4CH_ED", "4CH_ES"]
        name = f"{patient}_{frame[number % 4]}"
        labels = each.labels.copy()
        labels[30:36, 40:50] = 3
        (tmp_path / "camus" / patient).mkdir(parents=True, exist_ok=True)
        camus_files.save(tmp_path / "camus" / patient / f"{name}.nii.gz", each.image)
        camus_files.save(tmp_path / "camus" / patient / f"{name}_gt.nii.gz", labels)
        save(tmp_path / "plain/images" / f"{name}.png", each.image)
        save(tmp_path / "plain/masks" / f"{name}.png", labels)
    plain = tmp_path / "plain", "--group", r"^patient\d+", "--structures", *names
    for data, out in (((tmp_path / "camus",), "a"), (plain, "b")):
        done = run("train", *data, *SHORT, "--out", tmp_path / out)
        assert done.status == 0, done
    assert dice(tmp_path / "a") == dice(tmp_path / "b")
    assert max(dice(tmp_path / "a")) > 0


def test_us30k_gives_the_dice_of_a_table_of_its_images(tmp_path: Path, run: Callable[..., Done]):
    lists = {"train": range(5), "val": range(5, 6), "test": range(6, 8)}
    listings, rows = tmp_path / "us30k/MainPatient", []
    listings.mkdir(parents=True)
    for part, indices in lists.items():
        for each in (DRAWN[index] for index in indices):
            image, mask = each.image, (each.labels > 0).astype(np.uint8)
            name = each.name.replace("/", "_")
            save(tmp_path / f"us30k/Breast-BUSI/img/{name}.png", image)
            save(tmp_path / f"us30k/Breast-BUSI/label/{name}.png", mask)
            save(tmp_path / f"table/1/Breast-BUSI/{name}.png", image)
            save(tmp_path / f"table/masks/{name}.png", mask)
            rows.append((f"1/Breast-BUSI/{name}.png", f"masks/{name}.png", name, part))
        names = [name for _, _, name, of in rows if of == part]
        (listings / f"{part}.txt").write_text("".join(f"1/Breast-BUSI/{each}\n" for each in names))
    (listings / "class.json").write_text('{"Breast-BUSI": 2}')
    columns = ["image", "mask", "group", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "table/t.csv", index=False)
    table = tmp_path / "table/t.csv", "--structures", "1=foreground"
    for data, out in (((tmp_path / "us30k",), "a"), (table, "b")):
        done = run("train", *data, *SHORT, "--epochs", "6", "--out", tmp_path / out)
        assert done.status == 0, done
    assert dice(tmp_path / "a") == dice(tmp_path / "b")
    assert min(dice(tmp_path / "a")) > 0
