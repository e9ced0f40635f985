"""What `adapterkit check` says of a data set, and `train` too of many that are wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapterkit.commands.check import check
from adapterkit.data.collections import open_collection
from adapterkit.data.collections.check import check_collection
from adapterkit.data.image_file import DataError
from adapterkit.data.splits import Split
from tests.conftest import Done
from tests.data.written_collections import (
    STRUCTURES,
    coco,
    draw,
    rows,
    save,
    write_coco,
    write_folders,
    write_nifti,
)

DRAWN = draw()
OPTIONS = {"structures": STRUCTURES, "group": r"p\d"}


def test_the_fingerprint(tmp_path: Path):
    report = check_collection(open_collection(write_folders(tmp_path / "d", DRAWN), **OPTIONS))
    assert report.images == {"ventricle": 6, "atrium": 6}
    assert report.sizes == {(20, 28): 6}
    assert report.spacings == {None: 6}
    values = np.stack([each.image for each in DRAWN])
    assert (report.lowest, report.highest) == (values.min(), values.max())
    assert report.problems == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_folders(tmp_path / "d", DRAWN)
    named = ("1=ventricle", "2=atrium")
    check(folder, structures=named, group=r"p\d", sheet=tmp_path / "sheet.png")
    printed = capsys.readouterr().out
    assert "d: 6 images in 3 groups (folders)" in printed
    assert "ventricle in 6 images" in printed
    assert "nothing wrong was found" in printed
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 192, 5 * 192, 3)
    assert (sheet == (230, 159, 0)).all(axis=-1).any()
    _each(folder, lambda mask: np.where(mask == 2, 0, mask))
    with pytest.raises(SystemExit) as ended:
        check(folder, structures=named, group=r"p\d")
    assert ended.value.code == 1
    assert "wrong: atrium is in no mask" in capsys.readouterr().out


def test_an_image_on_two_sides_is_wrong_and_twice_is_for_a_look(tmp_path: Path):
    folder = write_folders(tmp_path / "d", DRAWN)
    save(folder / "images/p0_a.png", DRAWN[2].image)
    found = open_collection(folder, **OPTIONS)
    report = check_collection(found)
    assert not report.is_wrong
    (problem,) = report.problems
    assert "p0_a and p1_a are the same image, of the groups p0 and p1" in problem.message
    report = check_collection(found, Split(("p0",), ("p1",), ("p2",)))
    assert report.is_wrong
    assert "are the same image, in train and in validation" in report.problems[0].message


def test_images_of_one_patient_without_a_group_are_for_a_look(tmp_path: Path):
    folder = write_folders(tmp_path / "d", DRAWN)
    report = check_collection(open_collection(folder, structures=STRUCTURES))
    assert not report.is_wrong
    (problem,) = report.problems
    assert problem.message.startswith("p0_a and p0_b look like one patient's (3 such)")


# Wrong data sets: a name, how the folder is spoilt, and what is said of it.

Spoil = Callable[[Path], object]


def _write_coco(change: Callable[[dict], object]) -> Spoil:
    def spoil(root: Path) -> None:
        for each in (*root.rglob("*.png"),):
            each.unlink()
        for folder in ("images", "masks"):
            (root / folder).rmdir()
        write_coco(root, DRAWN)
        written = coco(DRAWN)
        change(written)
        (root / "instances.json").write_text(json.dumps(written))

    return spoil


def _each(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in (root / "masks").iterdir():
        save(path, change(np.asarray(Image.open(path))))


def _empty_folder(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _swap(root: Path) -> None:
    (root / "images").rename(root / "other")
    (root / "masks").rename(root / "images")
    (root / "other").rename(root / "masks")


def _one_image(root: Path) -> None:
    for path in root.rglob("*.png"):
        if path.stem != "p0_a":
            path.unlink()


NAMED = ("--structures", "1=ventricle", "2=atrium")

WRONG: dict[str, tuple[Spoil, str]] = {
    "a mask is missing": (lambda r: (r / "masks/p1_a.png").unlink(), "p1_a.png has no mask"),
    "all masks are missing": (lambda r: _empty_folder(r / "masks"), "masks holds no picture"),
    "an image is missing": (lambda r: (r / "images/p1_a.png").unlink(), "p1_a.png has no image"),
    "no images": (lambda r: _empty_folder(r / "images"), "images holds no picture"),
    "folders are swapped": (_swap, "holds the labels"),
    "masks in colour": (
        lambda r: _each(r, lambda m: np.stack([m * 100, m, m], -1)), "is in colour"),
    "label 300": (lambda r: _each(r, lambda m: m.astype(np.uint16) * 150), "150"),
    "an unknown label": (lambda r: _each(r, lambda m: m + m // 2 * 3), "holds the labels 0, 1, 5"),
    "0/255 masks": (lambda r: _each(r, lambda m: (m > 0).astype(np.uint8) * 255), "0, 255"),
    "other size": (lambda r: _each(r, lambda m: m[:-1]), "expected the same size"),
    "turned masks": (lambda r: _each(r, lambda m: m.T.copy()), "is 28 x 20"),
    "a stem twice": (lambda r: save(r / "images/p0_a.tif", DRAWN[0].image), "p0_a is listed twice"),
    "an unreadable image": (
        lambda r: (r / "images/p1_a.png").write_bytes(b"\x89PNG"), "p1_a.png cannot be read"),
    "an unreadable mask": (
        lambda r: (r / "masks/p1_b.png").write_bytes(b""), "p1_b.png cannot be read"),
    "a truncated image": (
        lambda r: (r / "images/p1_a.png").write_bytes((r / "images/p1_a.png").read_bytes()[:300]),
        "p1_a.png cannot be read"),
    "one image only": (_one_image, "has 1 group of images: expected at least 3"),
    "a structure never present": (
        lambda r: _each(r, lambda m: np.where(m == 2, 0, m)), "atrium is in no mask"),
    "all masks are empty": (lambda r: _each(r, np.zeros_like), "ventricle is in no mask"),
    "a name without a patient": (
        lambda r: (save(r / "images/x.png", DRAWN[0].image),
                   save(r / "masks/x.png", DRAWN[0].labels)),
        "finds nothing in the name 'x'"),
    "COCO without images": (_write_coco(lambda d: d["images"].clear()), "lists no images"),
    "COCO without annotations": (
        _write_coco(lambda d: d["annotations"].clear()), "lists no annotations"),
    "COCO without names": (_write_coco(lambda d: d["categories"].clear()), "0 different"),
    "a polygon outside": (
        _write_coco(lambda d: d["annotations"][0].update(segmentation=[[0, 0, 99, 0, 0, 99]])),
        "has a polygon outside of its image"),
    "COCO of another size": (
        _write_coco(lambda d: d["images"][3].update(width=60)), "states 20 x 60"),
    "an empty JSON": (
        lambda r: [_write_coco(lambda d: None)(r), (r / "instances.json").write_text("")],
        "cannot be read as JSON"),
}  # fmt: skip


# Further ones, of which the folder is as it was written: options, and what is said.

SPLIT = {"train": ["p0", "p1"], "validation": ["p2"]}
OPTIONS_WRONG: dict[str, tuple[Spoil, tuple[str, ...], str]] = {
    "a --group that is in no name": (lambda r: None, ("--group", "x"), "finds nothing in the name"),
    "a --group that is no expression": (
        lambda r: None, ("--group", "("), "'(' is no regular expression"),
    "a --group that leaves two": (
        lambda r: None, ("--group", "_."), "has 2 groups of images: expected at least 3"),
    "a split without a test": (
        lambda r: (r / "split.json").write_text(json.dumps(SPLIT)),
        ("--split", "split.json"), "has no entry of the split test"),
    "a split of other images": (
        lambda r: (r / "split.csv").write_text("name,split\nscan7,test\n"),
        ("--split", "split.csv"), "'scan7' is no image and no group"),
    "a split of a patient on two sides": (
        lambda r: (r / "split.csv").write_text("name,split\np0_a,test\np0_b,train\n"),
        ("--split", "split.csv"), "p0 is in train and in test"),
    "an image on two sides": (
        lambda r: [save(r / "images/p0_a.png", DRAWN[4].image),
                   (r / "split.json").write_text(json.dumps({**SPLIT, "validation": ["p1"],
                                                             "train": ["p0"], "test": ["p2"]}))],
        ("--split", "split.json"), "are the same image, in test and in train"),
    "a colour without a name": (
        lambda r: _each(r, lambda m: np.stack([m * 100, m, m], -1)),
        ("--colours", "ventricle=100,1,1"), "has the colour 200,2,2"),
    "labels beside colours": (
        lambda r: None, ("--colours", "a=1,1,1", *NAMED), "give no labels beside --colours"),
    "a label that is no number": (
        lambda r: None, ("--structures", "one=a"), "expected LABEL=NAME"),
    "a name that no file can hold": (
        lambda r: None, ("--structures", "1=a<b>", "2=b"), "a structure is called 'a<b>'"),
    "a name that tables have": (
        lambda r: None, ("--structures", "1=mean", "2=b"), "a structure is called 'mean'"),
    "a wrong format": (lambda r: None, ("--format", "nnunet"), "dataset.json"),
    "an option of another format": (lambda r: None, ("--axis", "1"), "has no option 'axis'"),
    "a volume and a mask of other sizes": (
        lambda r: [_empty_folder(r / "images"), _empty_folder(r / "masks"),
                   write_nifti(r / "images/p0.nii.gz", np.zeros((3, 8, 8), np.uint8)),
                   write_nifti(r / "masks/p0.nii.gz", np.zeros((2, 8, 8), np.uint8))],
        (), "is 2 x 8 x 8 but its image"),
}  # fmt: skip
TOLD = {
    **{case: (spoil, (), message) for case, (spoil, message) in WRONG.items()},
    **OPTIONS_WRONG,
}


@pytest.mark.parametrize("command", ["check", "train"])
@pytest.mark.parametrize("case", TOLD)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, case: str, command: str, run: Callable[..., Done], monkeypatch
):
    spoil, options, message = TOLD[case]
    folder = write_folders(tmp_path / "d", DRAWN)
    spoil(folder)
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    named = () if "--structures" in options or "--colours" in options else NAMED
    grouped = () if "--group" in options else ("--group", r"p\d")
    done = run(command, folder, *named, *grouped, *options)
    if done.status == 1:  # `check` lists all that is wrong.
        told = [li for li in done.output.splitlines() if li.startswith("wrong: ")]
    else:
        told = [str(done.status)]
        assert told[0].startswith("error: ")
        assert not done.errors
    assert any(message in line for line in told), told
    assert "\n" not in told[0]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_table_with_a_patient_on_two_sides_is_refused(tmp_path: Path):
    listed = rows(tmp_path, DRAWN, ["train", "test", "val", "val", "test", "test"])
    lines = [",".join(listed[0]), *(",".join(row.values()) for row in listed)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match="p0 is in test and in train"):
        check(tmp_path / "t.csv", structures=("1=a", "2=b"))
