"""Tests of plain folders and of the US30K layout."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from adapterkit.data.collections import open_collection
from adapterkit.data.collections.folders import Pair, find_pairs
from adapterkit.data.collections.us30k import find_us30k
from adapterkit.data.dataset import SegmentationDataset
from adapterkit.data.image_file import DataError

IMAGE = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
LABELS = np.arange(48, dtype=np.uint8).reshape(6, 8) % 3


def save(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b", "a.1"):
        save(tmp_path / f"images/{name}.png", IMAGE)
        save(tmp_path / f"masks/{name}.png", LABELS)
    return tmp_path


def pair(folder: Path, image: str = "a.png", mask: str = "a.png", labels=(1, 2)) -> Pair:
    structures = {label: str(label) for label in labels or (1,)}
    known = None if labels is None else {label: label for label in labels}
    return Pair("a", folder / "images" / image, (folder / "masks" / mask,), structures, known)


# find_pairs


def test_images_and_masks_are_matched_by_stem(folder: Path) -> None:
    save(folder / "images/c.JPG", IMAGE)
    save(folder / "masks/c.tif", LABELS)
    (folder / "images/.DS_Store").touch()
    (folder / "images/notes.txt").touch()
    pairs = find_pairs(folder, {1: "nodule", 2: "gland"})
    assert [each.name for each in pairs] == ["a.1", "b", "c"]
    assert (pairs[2].image.name, pairs[2].masks[0].name) == ("c.JPG", "c.tif")
    native = pairs[0].read()
    np.testing.assert_array_equal(native.image, IMAGE)
    np.testing.assert_array_equal(native.labels, LABELS)
    assert native.labels.dtype == np.uint8
    assert native.spacing is None


def test_pairs_make_samples_as_frames_do(folder: Path) -> None:
    dataset = SegmentationDataset(find_pairs(folder, {2: "gland", 1: "nodule"}), 8)
    assert dataset.structures == ("gland", "nodule")
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    assert batch["image"].shape == (2, 3, 8, 8)
    assert batch["masks"].shape == (2, 2, 8, 8)
    assert batch["name"] == ["a.1", "b"]
    masks, spacing = dataset.native_reference(1)
    assert spacing is None
    np.testing.assert_array_equal(masks.numpy(), [LABELS == 2, LABELS == 1])


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_file_without_partner_is_named(folder: Path, kind: str) -> None:
    save(folder / kind / "c.png", IMAGE)
    other = "mask" if kind == "images" else "image"
    with pytest.raises(DataError, match=rf"c\.png has no {other} \(1 such.*name, c, in .*{other}s"):
        find_pairs(folder)


def test_a_name_twice_is_refused(folder: Path) -> None:
    save(folder / "images/b.jpg", IMAGE)
    with pytest.raises(DataError, match=r"b is listed twice, as .*b\.jpg and as b\.png"):
        find_pairs(folder)


def test_missing_and_empty_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images is not a folder: expected folders images and"):
        find_pairs(tmp_path / "nowhere")
    for path in (folder / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"images holds no picture.*\.png"):
        find_pairs(folder)


@pytest.mark.parametrize("structures", [{}, {0: "background"}, {256: "far"}])
def test_labels_out_of_range_are_refused(folder: Path, structures: dict[int, str]) -> None:
    with pytest.raises(DataError, match="structures is"):
        find_pairs(folder, structures)


# Collections


def test_a_folder_is_recognised_and_opened(folder: Path) -> None:
    with pytest.raises(DataError, match=r"hold the labels 1, 2 .* --structures 1=NAME 2=NAME"):
        open_collection(folder)
    found = open_collection(folder, structures={1: "nodule", 2: "gland"})
    assert (found.format, found.structures) == ("folders", {1: "nodule", 2: "gland"})
    assert found.groups == ("a.1", "b")
    assert not found.is_grouped


def test_labels_are_merged_and_left_out(folder: Path) -> None:
    save(folder / "masks/b.png", np.full((6, 8), 5, np.uint8))
    (merged,) = {
        tuple(each.structures.items())
        for each in find_pairs(folder, {2: "lesion", 1: "lesion"}, leave_out=[5])
    }
    assert merged == ((2, "lesion"),)
    first, second = find_pairs(folder, {2: "lesion", 1: "lesion"}, leave_out=[5])
    np.testing.assert_array_equal(first.read().labels, 2 * (LABELS > 0))
    assert not second.read().labels.any()
    with pytest.raises(DataError, match=r"b\.png holds the labels 5: expected only 0"):
        find_pairs(folder, {1: "nodule", 2: "gland"})[1].read()
    with pytest.raises(DataError, match="labels are left out, and none is named"):
        find_pairs(folder, leave_out=[5])


@pytest.mark.parametrize("suffix", ["_mask", "-seg", "_GT", "_label"])
def test_masks_may_have_a_suffix(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / "images/a_1.png", IMAGE)
    save(tmp_path / f"masks/a_1{suffix}.png", (LABELS > 0).astype(np.uint8) * 255)
    (pair,) = open_collection(tmp_path).records
    np.testing.assert_array_equal(pair.read().labels, LABELS > 0)


def test_one_mask_for_each_structure(tmp_path: Path) -> None:
    for name in ("a", "a_1"):
        save(tmp_path / f"images/{name}.png", IMAGE)
        save(tmp_path / f"masks/{name}_lv.png", 255 * (LABELS == 2).astype(np.uint8))
    save(tmp_path / "masks/a_la_mask.png", 255 * (LABELS == 1).astype(np.uint8))
    found = open_collection(tmp_path)
    assert found.structures == {1: "la", 2: "lv"}
    first, second = (record.read().labels for record in found.records)
    np.testing.assert_array_equal(first, LABELS)
    np.testing.assert_array_equal(second, 2 * (LABELS == 2))


def test_groups_are_subfolders_or_what_a_pattern_finds(tmp_path: Path) -> None:
    for name in ("p1/a", "p1/b", "p2/a"):
        save(tmp_path / f"images/{name}.png", IMAGE)
        save(tmp_path / f"masks/{name}.png", (LABELS > 0).astype(np.uint8))
    assert open_collection(tmp_path).groups == ("p1", "p1", "p2")
    assert open_collection(tmp_path, group=r"/(\w)$").groups == ("a", "b", "a")
    with pytest.raises(DataError, match="--group 'x' finds nothing in the name 'p1/a'"):
        open_collection(tmp_path, group="x")
    with pytest.raises(DataError, match=r"--group '\(' is no regular expression"):
        open_collection(tmp_path, group="(")


# Pictures of every kind


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_are_read_whole(folder: Path, ending: str) -> None:
    save(folder / f"images/a.{ending}", IMAGE.astype(np.uint16) * 250)
    save(folder / f"masks/a.{ending}", LABELS.astype(np.uint16))
    native = pair(folder, f"a.{ending}", f"a.{ending}").read()
    np.testing.assert_array_equal(native.image, IMAGE.astype(int) * 250)
    np.testing.assert_array_equal(native.labels, LABELS)
    sample = SegmentationDataset([pair(folder, f"a.{ending}", f"a.{ending}")], 8)[0]
    assert (sample["image"].min(), sample["image"].max()) == (0, 255)


@pytest.mark.parametrize(("mode", "colour"), [("LA", False), ("RGB", True), ("RGBA", True)])
def test_colour_stays_and_transparency_goes(folder: Path, mode: str, colour: bool) -> None:
    save(folder / "images/a.png", IMAGE, mode)
    save(folder / "masks/a.png", LABELS)
    image = pair(folder).read().image
    np.testing.assert_array_equal(image, np.stack([IMAGE] * 3, -1) if colour else IMAGE)


def test_the_channels_of_colour_reach_the_sample(folder: Path) -> None:
    red = np.zeros((6, 6, 3), np.uint8)
    red[..., 0] = 200
    save(folder / "images/a.png", red)
    save(folder / "masks/a.png", LABELS[:, :6])
    image = SegmentationDataset([pair(folder)], 8)[0]["image"]
    assert image.mean((1, 2)).tolist() == [200, 0, 0]


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
def test_label_maps_are_read_from_grey_and_palette(folder: Path, mode: str) -> None:
    save(folder / "images/a.png", IMAGE)
    if mode == "P":
        picture = Image.fromarray(LABELS).convert("P")
        picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        picture.save(folder / "masks/a.png")
        with Image.open(folder / "masks/a.png") as saved:
            assert saved.mode == "P"
    else:
        save(folder / "masks/a.png", LABELS, mode)
    np.testing.assert_array_equal(pair(folder).read().labels, LABELS)


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (0, 65535), (False, True)])
def test_binary_masks_have_any_two_values(folder: Path, values: tuple[int, int]) -> None:
    save(folder / "images/a.png", IMAGE)
    dtype = bool if values[1] is True else np.uint16 if values[1] > 255 else np.uint8
    save(folder / "masks/a.png", np.array(values, dtype)[(LABELS > 0).astype(int)])
    np.testing.assert_array_equal(pair(folder, labels=None).read().labels, LABELS > 0)


def test_binary_masks_survive_jpeg_and_label_maps_are_refused(folder: Path) -> None:
    disc = np.hypot(*np.mgrid[-32:32, -32:32]) < 20
    save(folder / "images/a.png", np.zeros((64, 64), np.uint8))
    save(folder / "masks/a.jpg", 255 * disc.astype(np.uint8))
    labels = pair(folder, mask="a.jpg", labels=None).read().labels
    assert (labels != disc).mean() < 0.01
    with pytest.raises(DataError, match=r"a\.jpg is a JPEG, whose compression changes labels"):
        pair(folder, mask="a.jpg").read()


# Faults of the files


def test_a_size_mismatch_gives_both(folder: Path) -> None:
    save(folder / "images/a.png", IMAGE)
    save(folder / "masks/a.png", LABELS.T)
    with pytest.raises(DataError, match=r"masks/a\.png is 8 x 6 .*images/a\.png is 6 x 8"):
        pair(folder).read()


def test_unknown_labels_are_listed(folder: Path) -> None:
    save(folder / "images/a.png", IMAGE)
    save(folder / "masks/a.png", LABELS * 7)
    with pytest.raises(DataError, match=r"holds the labels 0, 7, 14: expected only 0 .*, 1, 2"):
        pair(folder).read()


def test_a_mask_in_colour_is_refused(folder: Path) -> None:
    save(folder / "images/a.png", IMAGE)
    save(folder / "masks/a.png", np.stack([LABELS, LABELS, 0 * LABELS], -1))
    with pytest.raises(DataError, match=r"masks/a\.png is in colour"):
        pair(folder).read()


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_damaged_file_is_named(folder: Path, ending: str, content: bytes | None) -> None:
    path = folder / f"images/a.{ending}"
    save(path, np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8))
    save(folder / "masks/a.png", np.zeros((64, 64), np.uint8))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(DataError, match=rf"a\.{ending} cannot be read as a picture"):
        pair(folder, f"a.{ending}").read()


def test_a_file_of_several_images_is_refused(folder: Path) -> None:
    pages = [Image.fromarray(IMAGE)] * 3
    pages[0].save(folder / "images/a.tif", save_all=True, append_images=pages[1:])
    save(folder / "masks/a.png", LABELS)
    with pytest.raises(DataError, match=r"a\.tif holds 3 images"):
        pair(folder, "a.tif").read()


# US30K


@pytest.fixture
def us30k(tmp_path: Path) -> Path:
    lists = tmp_path / "MainPatient"
    lists.mkdir()
    (lists / "class.json").write_text(json.dumps({"Breast": 2, "Heart": 4}))
    (lists / "train.txt").write_text("1/Breast/b1\n3/Heart/0055_2CH_000\n1/Heart/0055_2CH_000\n")
    (lists / "test.txt").write_text("Breast/b1\nHeart/0055_2CH_000")
    save(tmp_path / "Breast/img/b1.png", IMAGE)
    save(tmp_path / "Breast/label/b1.png", (LABELS > 0) * np.uint8(255))
    save(tmp_path / "Heart/img/0055_2CH_000.png", IMAGE)
    save(tmp_path / "Heart/label/0055_2CH_000.png", np.arange(48, dtype=np.uint8).reshape(6, 8) % 4)
    return tmp_path


def test_a_line_is_one_record_of_one_structure(us30k: Path) -> None:
    pairs = find_us30k(us30k, "train")
    names = ["1/Breast/b1", "3/Heart/0055_2CH_000", "1/Heart/0055_2CH_000"]
    assert [each.name for each in pairs] == names
    dataset = SegmentationDataset(pairs, 8)
    batch = next(iter(DataLoader(dataset, batch_size=3)))
    assert batch["masks"].shape == (3, 1, 8, 8)
    assert batch["dataset"] == ["Breast", "Heart", "Heart"]
    assert batch["class"] == ["1", "3", "1"]
    labels = np.arange(48).reshape(6, 8) % 4
    for index, expected in enumerate([LABELS > 0, labels == 3, labels == 1]):
        np.testing.assert_array_equal(dataset.native_reference(index)[0][0].numpy(), expected)
    assert torch.equal(batch["image"][1], batch["image"][2])


def test_a_line_without_class_stands_for_all_classes(us30k: Path) -> None:
    names = [each.name for each in find_us30k(us30k, "test")]
    assert names == ["1/Breast/b1", *(f"{label}/Heart/0055_2CH_000" for label in (1, 2, 3))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b1", 'line 2 ("b1"): expected "class/data set/image"'),
        ("one/Breast/b1", 'line 2 ("one/Breast/b1"): expected "class/data set/image"'),
        ("1/Liver/b1", "class.json has no Liver, but Breast, Heart"),
        ("4/Heart/0055_2CH_000", "Heart has the classes 1, 2, 3, by class.json"),
        ("0/Breast/b1", "Breast has the classes 1, by class.json"),
        ("1/Breast/b2", "b2.png"),
    ],
)
def test_a_line_that_is_wrong_is_named(us30k: Path, line: str, message: str) -> None:
    listing = us30k / "MainPatient/train.txt"
    listing.write_text(f"\n{line}\n")
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        find_us30k(us30k, "train")
    assert str(listing) in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("train.txt", None, "train.txt cannot be read"),
        ("train.txt", "\n", "train.txt is empty"),
        ("class.json", None, "class.json cannot be read"),
        ("class.json", "{", "class.json is not JSON"),
        ("class.json", '{"Breast": 1}', "expected numbers of classes from 2"),
        ("class.json", "[2]", "expected numbers of classes from 2"),
    ],
)
def test_lists_that_are_none_are_named(
    us30k: Path, file: str, text: str | None, message: str
) -> None:
    path = us30k / "MainPatient" / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DataError, match=message):
        find_us30k(us30k, "train")


def test_an_unknown_label_is_named(us30k: Path) -> None:
    save(us30k / "Heart/label/0055_2CH_000.png", LABELS + np.uint8(3))
    with pytest.raises(DataError, match="holds the labels 3, 4, 5: expected only"):
        find_us30k(us30k, "train")[1].read()
