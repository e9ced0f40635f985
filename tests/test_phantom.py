"""Tests of the phantom: files that read like CAMUS and hearts that look like hearts."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from adapterkit.data.camus import STRUCTURES, Frame, find_frames, read_image, read_mask
from adapterkit.data.phantom import biplane_volume, write_phantom

SIZE = 96


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "echo", 4, image_size=SIZE)


def read_info(path: Path) -> dict[str, str]:
    return dict(line.split(": ") for line in path.read_text(encoding="utf-8").splitlines())


def masks_of(frames: list[Frame], patient: str) -> dict[tuple[str, str], np.ndarray]:
    return {
        (frame.view, frame.phase): read_mask(frame, (SIZE, SIZE))
        for frame in frames
        if frame.patient == patient
    }


def test_the_reader_reads_the_phantom(phantom: Path) -> None:
    frames = find_frames(phantom)
    assert len(frames) == 16
    for frame in frames:
        image, (row, column) = read_image(frame)
        assert image.shape == (SIZE, SIZE)
        assert image.dtype == np.uint8
        # 10 to 20 cm of depth, and a sector that is wider than deep.
        assert 100 < row * SIZE < 200
        assert row < column < 1.5 * row


def test_each_structure_is_one_piece_and_in_its_place(phantom: Path) -> None:
    for frame in find_frames(phantom):
        labels = read_mask(frame, (SIZE, SIZE))
        for label, structure in STRUCTURES.items():
            numbered = np.empty(labels.shape, np.int32)
            pieces = ndimage.label(labels == label, np.ones((3, 3)), output=numbered)
            assert pieces == 1, f"{frame.name}: {structure} in {pieces} pieces"
        rows = {label: np.argwhere(labels == label)[:, 0] for label in STRUCTURES}
        assert rows[3].mean() > rows[1].mean() > rows[2].min()
        open_base = ndimage.binary_dilation(labels == 3) & (labels == 1)
        assert open_base.sum() >= 5, f"{frame.name}: ventricle and atrium meet at the base"


def test_the_image_is_a_black_framed_sector_with_dark_blood(phantom: Path) -> None:
    contrasts = []
    for frame in find_frames(phantom):
        image, _ = read_image(frame)
        labels = read_mask(frame, (SIZE, SIZE))
        assert image[:20, 0].max() == image[:20, -1].max() == 0
        assert image[20:80, SIZE // 2].min() > 0
        seen = image > 0
        contrasts.append(image[(labels == 2) & seen].mean() - image[(labels == 1) & seen].mean())
    assert np.mean(contrasts) > 20


def test_the_four_views_of_a_patient_differ(phantom: Path) -> None:
    masks = list(masks_of(find_frames(phantom), "patient0001").values())
    assert all((masks[0] != other).any() for other in masks[1:])


def test_the_ventricle_contracts_and_the_atrium_fills(phantom: Path) -> None:
    frames = find_frames(phantom)
    for patient in {frame.patient for frame in frames}:
        masks = masks_of(frames, patient)
        for view in ("2CH", "4CH"):
            diastole, systole = masks[view, "ED"], masks[view, "ES"]
            assert (systole == 1).sum() < 0.95 * (diastole == 1).sum()
            assert (systole == 3).sum() > (diastole == 3).sum()


def test_info_has_the_keys_of_camus_and_the_ejection_fraction_of_the_masks(phantom: Path) -> None:
    frames = find_frames(phantom)
    for patient in {frame.patient for frame in frames}:
        folder = phantom / "database_nifti" / patient
        spacing = read_image(next(frame for frame in frames if frame.patient == patient))[1]
        masks = masks_of(frames, patient)
        full, empty = (
            biplane_volume(masks["2CH", phase], masks["4CH", phase], spacing)
            for phase in ("ED", "ES")
        )
        assert 30 < full < 350
        for view in ("2CH", "4CH"):
            info = read_info(folder / f"Info_{view}.cfg")
            assert list(info) == [
                "ED", "ES", "NbFrame", "Sex", "Age", "ImageQuality", "EF", "FrameRate",
            ]  # fmt: skip
            assert info["ImageQuality"] in ("Good", "Medium", "Poor")
            assert float(info["EF"]) == pytest.approx(100 * (1 - empty / full), abs=0.05)
            assert 15 < float(info["EF"]) < 75
            assert 1 <= int(info["ED"]) < int(info["ES"]) <= int(info["NbFrame"])


def test_the_volume_of_a_known_body_is_right() -> None:
    # A half ellipse of length 80 mm and half-width 25 mm; its body of revolution has 2/3 pi a b^2.
    row, column = np.mgrid[0:120, 0:160]
    labels = np.zeros((120, 160), np.uint8)
    spacing = (1.0, 0.5)
    inside: np.ndarray = ((row - 89.5) / 80) ** 2 + ((column - 79.5) * 0.5 / 25) ** 2 < 1
    labels[inside & (row < 90)] = 1
    labels[90:110, 40:120] = 3
    expected = 2 / 3 * np.pi * 80 * 25**2 / 1000
    assert biplane_volume(labels, labels, spacing) == pytest.approx(expected, rel=0.03)


def test_a_volume_needs_a_base() -> None:
    labels = np.zeros((20, 20), np.uint8)
    labels[3:8, 5:10] = 1
    labels[12:18, 5:10] = 3
    with pytest.raises(ValueError, match="label 1 does not touch label 3"):
        biplane_volume(labels, labels, (1.0, 1.0))


def test_a_patient_does_not_depend_on_how_many_there_are(phantom: Path, tmp_path: Path) -> None:
    few = write_phantom(tmp_path / "few", 2, image_size=SIZE)
    for frame, same in zip(find_frames(few), find_frames(phantom)[:8], strict=True):
        np.testing.assert_array_equal(read_image(frame)[0], read_image(same)[0])
        np.testing.assert_array_equal(read_mask(frame, (SIZE, SIZE)), read_mask(same, (SIZE, SIZE)))
    info = "database_nifti/patient0002/Info_4CH.cfg"
    assert (few / info).read_text() == (phantom / info).read_text()


def test_seeds_and_patients_differ(phantom: Path, tmp_path: Path) -> None:
    other = find_frames(write_phantom(tmp_path / "other", 1, seed=1, image_size=SIZE))[0]
    first, second = find_frames(phantom)[0], find_frames(phantom)[4]
    images = [read_image(frame)[0] for frame in (first, second, other)]
    assert (images[0] != images[1]).any()
    assert (images[0] != images[2]).any()


def test_the_same_phantom_is_reused_untouched(tmp_path: Path) -> None:
    folder = write_phantom(tmp_path / "echo", 1, image_size=32)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_phantom(folder, 1, image_size=32) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_folder_says_what_it_holds_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    folder = write_phantom(tmp_path / "deep/echo", 1, seed=5, image_size=32)
    assert "synthetic" in (folder / "README.txt").read_text().lower()
    assert json.loads((folder / "phantom.json").read_text())["seed"] == 5
    assert list(folder.parent.iterdir()) == [folder]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "echo").mkdir()
    assert len(find_frames(write_phantom(tmp_path / "echo", 1, image_size=32))) == 4


def test_another_phantom_is_not_overwritten(tmp_path: Path) -> None:
    folder = write_phantom(tmp_path / "echo", 1, image_size=32)
    with pytest.raises(FileExistsError, match=r"something else.*'seed': 0.*'seed': 1"):
        write_phantom(folder, 1, seed=1, image_size=32)


def test_foreign_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"no readable phantom\.json"):
        write_phantom(tmp_path, 1, image_size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(FileExistsError, match="is a file"):
        write_phantom(tmp_path / "notes.txt", 1, image_size=32)


def test_an_interrupted_phantom_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("adapterkit.data.phantom.nibabel.save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_phantom(tmp_path / "echo", 1, image_size=32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("patients", "seed", "image_size", "named"),
    [(0, 0, 64, "patients is 0"), (10000, 0, 64, "patients is 10000"), (1, -1, 64, "seed is -1"),
     (1, 0, 16, "image_size is 16")],
)  # fmt: skip
def test_arguments_out_of_range_are_named(
    tmp_path: Path, patients: int, seed: int, image_size: int, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        write_phantom(tmp_path / "echo", patients, seed, image_size)
