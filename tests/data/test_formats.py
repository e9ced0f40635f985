"""Each format gives what the plain folder of the same images gives."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco_mask

from adapterkit.data.collections import Collection, open_collection
from adapterkit.data.collections.labels import named_colours
from adapterkit.data.image_file import DataError
from adapterkit.data.splits import Split
from tests.data.written_collections import (
    STRUCTURES,
    coco,
    draw,
    rows,
    save,
    write_coco,
    write_dicom_slices,
    write_folders,
    write_metaimage,
    write_nifti,
    write_segmentation,
)

DRAWN = draw()
PARTS = ["train", "train", "val", "val", "test", "test"]


@pytest.fixture
def plain(tmp_path: Path) -> Collection:
    folder = write_folders(tmp_path / "plain", DRAWN)
    return open_collection(folder, structures=STRUCTURES, group=r"p\d")


def check_equal(found: Collection, plain: Collection) -> None:
    assert dict(found.structures) == dict(plain.structures)
    assert [Path(each.name).name for each in found.records] == [e.name for e in plain.records]
    assert found.groups == plain.groups
    for record, expected in zip(found.records, plain.records, strict=True):
        one, other = record.read(), expected.read()
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_the_plain_folder_is_what_was_drawn(plain: Collection):
    assert plain.format == "folders"
    assert plain.groups == tuple(each.patient for each in DRAWN)
    for record, each in zip(plain.records, DRAWN, strict=True):
        np.testing.assert_array_equal(record.read().image, each.image)
        np.testing.assert_array_equal(record.read().labels, each.labels)


# Folders


def test_masks_beside_their_images(tmp_path: Path, plain: Collection):
    for each in DRAWN:
        save(tmp_path / "data" / f"{each.name}.png", each.image)
        save(tmp_path / "data" / f"{each.name}_mask.png", each.labels)
    found = open_collection(tmp_path / "data", structures=STRUCTURES, group=r"p\d")
    check_equal(found, plain)


def test_names_by_patterns(tmp_path: Path, plain: Collection):
    for each in DRAWN:
        save(tmp_path / "raw" / each.name / "photo.png", each.image)
        save(tmp_path / "raw" / each.name / f"{each.name}_truth.png", each.labels)
    images, masks = tmp_path / "raw/{name}/photo.png", tmp_path / "raw/{name}/{name}_truth.png"
    options = {"structures": STRUCTURES, "group": r"p\d"}
    found = open_collection(tmp_path / "raw", images=images, masks=masks, **options)
    check_equal(found, plain)
    with pytest.raises(DataError, match=r"raw/\{name\}\.tif fits no file"):
        open_collection(tmp_path, "folders", images=tmp_path / "raw/{name}.tif", masks=masks)


def test_one_mask_for_each_structure(tmp_path: Path, plain: Collection):
    for each in DRAWN:
        save(tmp_path / "data/images" / each.patient / f"{each.name}.png", each.image)
        for label, name in ((1, "a"), (2, "b")):
            mask = np.where(each.labels == label, 255, 0).astype(np.uint8)
            save(tmp_path / "data/masks" / each.patient / f"{each.name}_{name}.png", mask)
    found = open_collection(tmp_path / "data", structures=None)
    assert dict(found.structures) == {1: "a", 2: "b"}
    check_equal(found.choose(STRUCTURES), plain)


def test_masks_coded_by_colours(tmp_path: Path, plain: Collection):
    colours = np.array([[0, 0, 0], [255, 128, 0], [0, 0, 255]], np.uint8)
    for each in DRAWN:
        save(tmp_path / "data/images" / f"{each.name}.png", each.image)
        save(tmp_path / "data/masks" / f"{each.name}.png", colours[each.labels])
    named = named_colours(("ventricle=255,128,0", "atrium=0,0,255"))
    check_equal(open_collection(tmp_path / "data", colours=named, group=r"p\d"), plain)
    with pytest.raises(DataError, match=r"the colour 0,0,255 .* in 30 pixels: .* 255,128,0; name"):
        open_collection(tmp_path / "data", colours={(255, 128, 0): "a"}).records[0].read()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("a=#ff0000", "expected NAME=RED,GREEN,BLUE"),
        ("a=300,0,0", "expected NAME=RED,GREEN,BLUE"),
        ("255,0,0", "expected NAME=RED,GREEN,BLUE"),
        ("a=0,0,0", "is black, which is background"),
        ("b=1,2,3", "1,2,3 is there twice"),
    ],
)
def test_what_is_no_colour_is_refused(option: str, message: str):
    with pytest.raises(DataError, match=message):
        named_colours(("a=1,2,3", option))


# COCO


def test_coco_with_polygons_and_run_lengths(tmp_path: Path, plain: Collection):
    found = open_collection(write_coco(tmp_path / "coco", DRAWN), group=r"p\d")
    assert found.format == "coco"
    check_equal(found, plain)
    file = open_collection(tmp_path / "coco/instances.json", group=r"p\d")
    check_equal(file, plain)


def test_coco_with_compressed_run_lengths_and_an_image_of_background(tmp_path: Path):
    folder = write_coco(tmp_path / "coco", DRAWN)
    written = coco(DRAWN)
    for each in written["annotations"]:
        if isinstance(each["segmentation"], dict):
            packed = coco_mask.frPyObjects(each["segmentation"], *each["segmentation"]["size"])
            each["segmentation"] = {**packed, "counts": packed["counts"].decode()}
    written["annotations"] = written["annotations"][2:]
    (folder / "instances.json").write_text(json.dumps(written))
    found = open_collection(folder)
    assert not found.records[0].read().labels.any()
    np.testing.assert_array_equal(found.records[1].read().labels, DRAWN[1].labels)


def test_of_regions_that_overlap_the_smaller_one_is_on_top(tmp_path: Path):
    folder = write_coco(tmp_path / "coco", DRAWN[:1])
    written = coco(DRAWN[:1])
    written["annotations"][0]["segmentation"] = [[0, 0, 4, 0, 4, 4, 0, 4]]
    written["annotations"][1]["segmentation"] = [[0, 0, 10, 0, 10, 10, 0, 10]]
    for order in (1, -1):
        (folder / "instances.json").write_text(
            json.dumps({**written, "annotations": written["annotations"][::order]})
        )
        labels = open_collection(folder).records[0].read().labels
        assert (labels[:4, :4] == 1).all()
        assert (labels == 2).sum() == 100 - 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(images=[]), "lists no images"),
        (lambda d: d.update(annotations=[]), "lists no annotations"),
        (lambda d: d.pop("categories"), "has no list of categories"),
        (lambda d: d["annotations"][0].update(category_id=9), "annotation 0: there is no category"),
        (lambda d: d["annotations"][0].update(image_id=99), "annotates the image 99"),
        (lambda d: d["annotations"][0].pop("segmentation"), "annotation 0 has no segmentation"),
        (
            lambda d: d["annotations"][0].update(segmentation=[[0, 0, 90, 0, 9, 9]]),
            "annotation 0 has a polygon outside of its image of 20 x 28",
        ),
        (
            lambda d: d["annotations"][0].update(segmentation=[[0, 0, 9, 0]]),
            "a polygon of 4 numbers",
        ),
        (lambda d: d["images"][0].update(file_name="z.png"), "lists z.png, which is not in"),
        (lambda d: d["images"][0].pop("height"), r"is not as COCO has it \(KeyError: 'height'\)"),
        (lambda d: d["images"].append(d["images"][0]), "p0_a is listed twice"),
    ],
)
def test_wrong_coco_is_refused(tmp_path: Path, change, message: str):
    folder = write_coco(tmp_path / "coco", DRAWN)
    written = coco(DRAWN)
    change(written)
    (folder / "instances.json").write_text(json.dumps(written))
    with pytest.raises(DataError, match=message):
        open_collection(folder, format="coco")


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_what_is_no_coco_is_refused(tmp_path: Path, content: str):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json"):
        open_collection(tmp_path / "a.json")


# Tables


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_tables(tmp_path: Path, plain: Collection, ending: str):
    table = pd.DataFrame(rows(tmp_path, DRAWN, PARTS))
    path = tmp_path / f"data.{ending}"
    if ending == "csv":
        table.to_csv(path, index=False)
    elif ending == "parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=True)
    found = open_collection(path, structures=STRUCTURES)
    assert found.split == Split(("p0",), ("p1",), ("p2",))
    check_equal(found, plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="mask"), "has no column mask, but image, group, split"),
        (lambda t: t.iloc[:0], "has no row"),
        (lambda t: t.assign(mask=["", *t["mask"][1:]]), "row 1, has no mask"),
        (lambda t: t.assign(image=["x.png", *t["image"][1:]]), r"row 1: there is no .*x\.png"),
        (lambda t: t.assign(split="train"), "no row of the split validation"),
        (lambda t: t.assign(split="fit"), "row 1, has the split 'fit'"),
        (
            lambda t: t.assign(split=["train", "test", *t["split"][2:]]),
            "row 2: p0 is in test and in train",
        ),
        (lambda t: pd.concat([t, t[:1]]), "scans/p0_a is listed twice"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, change, message: str):
    change(pd.DataFrame(rows(tmp_path, DRAWN, PARTS))).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match=message):
        open_collection(tmp_path / "t.csv", structures=STRUCTURES)


# nnU-Net


def write_nnunet(root: Path, ending: str, labels: dict) -> Path:
    """The images of each patient as a volume of two slices; as pictures, each by itself."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ending}))
    for first, second in zip(DRAWN[::2], DRAWN[1::2], strict=True):
        if ending == ".png":
            for each in (first, second):
                save(root / f"imagesTr/{each.name}_0000.png", each.image)
                save(root / f"labelsTr/{each.name}.png", each.labels)
            continue
        for file, what in ((f"imagesTr/{first.patient}_0000", "image"),
                           (f"labelsTr/{first.patient}", "labels")):  # fmt: skip
            volume = np.stack([getattr(first, what), getattr(second, what)]).T
            affine = np.diag([0.5, 0.7, 3.0, 1.0])
            nibabel.save(nibabel.Nifti1Image(volume, affine), root / (file + ending))
    return root


@pytest.mark.parametrize("ending", [".nii.gz", ".png"])
@pytest.mark.parametrize(
    "labels",
    [{"background": 0, "ventricle": 1, "atrium": 2},
     {"0": "background", "1": "ventricle", "2": "atrium"}],
)  # fmt: skip
def test_nnunet(tmp_path: Path, plain: Collection, ending: str, labels: dict):
    found = open_collection(write_nnunet(tmp_path / "n", ending, labels), group=r"p\d")
    assert found.format == "nnunet"
    assert dict(found.structures) == dict(plain.structures)
    assert found.groups == plain.groups
    for record, expected in zip(found.records, plain.records, strict=True):
        one, other = record.read(), expected.read()
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_volumes_are_cut_along_any_axis(tmp_path: Path):
    folder = write_nnunet(tmp_path / "n", ".nii.gz", {"background": 0, "v": 1, "a": 2})
    for axis, size, spacing in ((0, (20, 28), (0.7, 0.5)), (1, (2, 28), (3, 0.5)),
                                (2, (2, 20), (3, 0.7))):  # fmt: skip
        found = open_collection(folder, axis=axis)
        native = found.records[7 if axis else 0].read()
        assert native.image.shape == size
        assert native.spacing == pytest.approx(spacing)
        if axis:
            pair = [each.labels for each in DRAWN[:2]]
            expected = np.take(np.stack(pair), 7, axis=axis)
            np.testing.assert_array_equal(native.labels, expected)
    assert found.records[0].attributes == {"volume": "p0", "slice": "0"}
    with pytest.raises(DataError, match="axis 3: expected 0"):
        open_collection(folder, axis=3)


def test_wrong_nnunet_data_are_refused(tmp_path: Path):
    folder = write_nnunet(tmp_path / "n", ".png", {"background": 0, "v": 1, "a": 2})
    (folder / "labelsTr/p0_a.png").unlink()
    with pytest.raises(DataError, match=r"p0_a has no label map, labelsTr/p0_a\.png \(1 such"):
        open_collection(folder)
    for content, message in (
        ("", "is not as nnU-Net has it"),
        ("[]", "is not as nnU-Net has it"),
        ('{"labels": {"background": 0, "both": [1, 2]}}', "regions of several labels"),
        ('{"labels": {"background": 0, "ignore": 2}}', "labels to ignore are not read"),
        ('{"labels": {"background": 0, "v": 1}}', r"holds no file that ends in \.nii\.gz"),
    ):
        (folder / "dataset.json").write_text(content)
        with pytest.raises(DataError, match=message):
            open_collection(folder)


# Loose scans and series


def volumes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The images of each patient as a volume of two slices, and its label maps."""
    pairs = zip(DRAWN[::2], DRAWN[1::2], strict=True)
    return {
        one.patient: (np.stack([one.image, two.image]), np.stack([one.labels, two.labels]))
        for one, two in pairs
    }


def nifti(root: Path) -> None:
    for name, (frames, labels) in volumes().items():
        write_nifti(root / f"images/{name}.nii.gz", frames)
        write_nifti(root / f"masks/{name}_seg.nii", labels)


def metaimage(root: Path) -> None:
    for name, (frames, labels) in volumes().items():
        write_metaimage(root / f"images/{name}.mha", frames)
        write_metaimage(root / f"masks/{name}.mha", labels)


def series(root: Path) -> None:
    for name, (frames, labels) in volumes().items():
        write_dicom_slices(root / "images" / name, frames)
        write_nifti(root / f"masks/{name}.nii.gz", labels)


def series_and_segmentations(root: Path) -> None:
    for name, (frames, labels) in volumes().items():
        files = write_dicom_slices(root / "images" / name, frames)
        write_segmentation(root / f"masks/{name}_seg.dcm", files, labels)


@pytest.mark.parametrize("write", [nifti, metaimage, series, series_and_segmentations])
def test_volumes_of_any_kind(tmp_path: Path, plain: Collection, write):
    write(tmp_path / "s")
    named = None if write is series_and_segmentations else STRUCTURES
    found = open_collection(tmp_path / "s", structures=named)
    assert found.format == "scans"
    assert dict(found.structures) == dict(plain.structures)
    assert found.groups == plain.groups
    assert [each.name for each in found.records[:3]] == ["p0/000", "p0/001", "p1/000"]
    for record, expected in zip(found.records, plain.records, strict=True):
        one, other = record.read(), expected.read()
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert one.spacing == pytest.approx((0.7, 0.5))
    across = open_collection(tmp_path / "s", structures=named, axis=2)
    assert across.records[3].read().image.shape == (2, 20)
    assert across.records[3].read().spacing == pytest.approx((3, 0.7))


def test_masks_that_are_stored_another_way_round_are_turned(tmp_path: Path, plain: Collection):
    """Of a DICOM series whose first axis runs to the left and second to the back."""
    for name, (frames, labels) in volumes().items():
        write_dicom_slices(tmp_path / "s/images" / name, frames)
        stored = labels[::-1, ::-1].transpose(1, 0, 2)
        rows, count = labels.shape[1], len(labels)
        affine = np.array([[-0.5, 0, 0, 0], [0, 0, 0.7, -0.7 * (rows - 1)],
                           [0, -3, 0, 3.0 * (count - 1)], [0, 0, 0, 1]])  # fmt: skip
        (tmp_path / "s/masks").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(stored.T, affine), tmp_path / f"s/masks/{name}.nii.gz")
    found = open_collection(tmp_path / "s", structures=STRUCTURES)
    for record, expected in zip(found.records, plain.records, strict=True):
        np.testing.assert_array_equal(record.read().labels, expected.read().labels)


def test_single_dicom_files_with_segmentations(tmp_path: Path, plain: Collection):
    for each in DRAWN:
        (file,) = write_dicom_slices(tmp_path / "made" / each.name, each.image[None])
        (tmp_path / "d/images" / each.patient).mkdir(parents=True, exist_ok=True)
        file.rename(tmp_path / "d/images" / each.patient / f"{each.name}.dcm")
        image = tmp_path / "d/images" / each.patient / f"{each.name}.dcm"
        mask = tmp_path / "d/masks" / each.patient / f"{each.name}.dcm"
        write_segmentation(mask, [image], each.labels[None])
    found = open_collection(tmp_path / "d")
    check_equal(found, plain)
    assert found.records[0].attributes == {}


def test_binary_scans_need_no_names(tmp_path: Path):
    for name, (frames, labels) in volumes().items():
        write_nifti(tmp_path / f"s/images/{name}.nii.gz", frames)
        write_nifti(tmp_path / f"s/masks/{name}.nii.gz", 255 * (labels > 0).astype(np.uint8))
    found = open_collection(tmp_path / "s")
    assert dict(found.structures) == {1: "foreground"}
    np.testing.assert_array_equal(found.records[0].read().labels, DRAWN[0].labels > 0)


def test_wrong_scans_are_refused(tmp_path: Path):
    nifti(tmp_path / "s")
    with pytest.raises(DataError, match="the masks hold the labels 1, 2"):
        open_collection(tmp_path / "s")
    (tmp_path / "s/masks/p1_seg.nii").rename(tmp_path / "s/masks/p9.nii")
    with pytest.raises(DataError, match=r"p1\.nii\.gz has no mask \(2 such files\)"):
        open_collection(tmp_path / "s")
    series(tmp_path / "d")
    other = write_dicom_slices(tmp_path / "other", DRAWN[0].image[None])
    other[0].rename(tmp_path / "d/images/p1/x.dcm")
    with pytest.raises(DataError, match=r"images/p1 holds 2 series: expected one"):
        open_collection(tmp_path / "d", structures=STRUCTURES)


# Structures


def test_structures_are_merged_renamed_and_left_out(tmp_path: Path):
    folder = write_coco(tmp_path / "coco", DRAWN)
    merged = open_collection(folder, structures={1: "heart", 2: "heart"})
    assert dict(merged.structures) == {1: "heart"}
    without = open_collection(folder, leave_out=["ventricle"])
    assert dict(without.structures) == {2: "atrium"}
    for index, each in enumerate(DRAWN):
        np.testing.assert_array_equal(merged.records[index].read().labels, each.labels > 0)
        expected = np.where(each.labels == 2, 2, 0)
        np.testing.assert_array_equal(without.records[index].read().labels, expected)
    with pytest.raises(DataError, match="no structure 5: expected some of 1=ventricle, 2=atrium"):
        open_collection(folder, leave_out=[5])
    with pytest.raises(DataError, match="all structures of coco are left out"):
        open_collection(folder, leave_out=[1, 2])
