"""Tests of the phantom: files that read like CAMUS and hearts that look like hearts."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from adapterkit.data.collections.camus import (
    STRUCTURES,
    find_frames,
    find_sequences,
    read_info,
)
from adapterkit.data.synthetic.beat import Beat, record
from adapterkit.data.synthetic.phantom import write_phantom

SIZE = 96


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "echo", 4, image_size=SIZE)


def masks_of(folder: Path, patient: str) -> dict[tuple[str, str], np.ndarray]:
    return {
        (frame.view, frame.phase): frame.read().labels
        for frame in find_frames(folder)
        if frame.patient == patient
    }


def patients_of(folder: Path) -> list[str]:
    return sorted({frame.patient for frame in find_frames(folder)})


def discs(labels: np.ndarray, spacing: tuple[float, float]) -> tuple[float, np.ndarray]:
    """Length of the ventricle in mm, and its diameters at 20 discs, from base to apex."""
    ventricle = labels == 1
    base = np.argwhere(ventricle & ndimage.binary_dilation(labels == 3)).mean(axis=0)
    offsets = (np.argwhere(ventricle) - base) * spacing
    distances = np.hypot(*offsets.T)
    axis = offsets[distances.argmax()] / distances.max()
    counts, _ = np.histogram(offsets @ axis, bins=20, range=(0, distances.max()))
    return distances.max(), counts * spacing[0] * spacing[1] * 20 / distances.max()


def simpson(
    two_chamber: np.ndarray, four_chamber: np.ndarray, spacing: tuple[float, float]
) -> float:
    """Volume of the left ventricle in ml by the biplane method of discs."""
    (length_2, across_2), (length_4, across_4) = (
        discs(labels, spacing) for labels in (two_chamber, four_chamber)
    )
    return np.pi / 4 * max(length_2, length_4) / 20 * float(across_2 @ across_4) / 1000


def test_the_reader_reads_the_phantom(phantom: Path) -> None:
    frames = find_frames(phantom)
    assert len(frames) == 16
    for frame in frames:
        native = frame.read()
        assert native.image.shape == native.labels.shape == (SIZE, SIZE)
        assert native.image.dtype == np.uint8
        assert native.spacing is not None
        row, column = native.spacing
        # 10 to 20 cm of depth, and a sector that is wider than deep.
        assert 100 < row * SIZE < 200
        assert row < column < 1.5 * row


def test_each_structure_is_one_piece_and_in_its_place(phantom: Path) -> None:
    for frame in find_frames(phantom):
        labels = frame.read().labels
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
        native = frame.read()
        image, labels = native.image, native.labels
        assert image[:20, 0].max() == image[:20, -1].max() == 0
        assert image[20:80, SIZE // 2].min() > 0
        seen = image > 0
        contrasts.append(image[(labels == 2) & seen].mean() - image[(labels == 1) & seen].mean())
    assert np.mean(contrasts) > 20


def test_the_four_views_of_a_patient_differ(phantom: Path) -> None:
    masks = list(masks_of(phantom, "patient0001").values())
    assert all((masks[0] != other).any() for other in masks[1:])


def test_the_ventricle_contracts_and_the_atrium_fills(phantom: Path) -> None:
    for patient in patients_of(phantom):
        masks = masks_of(phantom, patient)
        for view in ("2CH", "4CH"):
            diastole, systole = masks[view, "ED"], masks[view, "ES"]
            assert (systole == 1).sum() < 0.95 * (diastole == 1).sum()
            assert (systole == 3).sum() > (diastole == 3).sum()


def test_info_has_the_keys_of_camus_and_the_ejection_fraction_of_the_masks(phantom: Path) -> None:
    for frame in find_frames(phantom):
        masks = masks_of(phantom, frame.patient)
        spacing = frame.read().spacing
        assert spacing is not None
        full, empty = (
            simpson(masks["2CH", phase], masks["4CH", phase], spacing) for phase in ("ED", "ES")
        )
        assert 30 < full < 350
        info = read_info(frame)
        assert info is not None
        assert info.image_quality in ("Good", "Medium", "Poor")
        assert info.ejection_fraction == pytest.approx(100 * (1 - empty / full), abs=2)
        assert 15 < (info.ejection_fraction or 0) < 75
        assert info.ed == 1
        assert info.es == info.frame_count
        text = (frame.image.parent / f"Info_{frame.view}.cfg").read_text()
        assert [line.split(": ")[0] for line in text.splitlines()] == [
            "ED", "ES", "NbFrame", "Sex", "Age", "ImageQuality", "EF", "FrameRate",
        ]  # fmt: skip


def test_the_ejection_fraction_of_both_views_is_one(phantom: Path) -> None:
    for patient in patients_of(phantom):
        infos = [read_info(frame) for frame in find_frames(phantom) if frame.patient == patient]
        assert len({info.ejection_fraction for info in infos if info}) == 1


def test_the_volume_of_a_known_body_is_right() -> None:
    # A half ellipse of length 80 mm and half-width 25 mm; its body of revolution has 2/3 pi a b^2.
    row, column = np.mgrid[0:120, 0:160]
    labels = np.zeros((120, 160), np.uint8)
    inside: np.ndarray = ((row - 89.5) / 80) ** 2 + ((column - 79.5) * 0.5 / 25) ** 2 < 1
    labels[inside & (row < 90)] = 1
    labels[90:110, 40:120] = 3
    expected = 2 / 3 * np.pi * 80 * 25**2 / 1000
    assert simpson(labels, labels, (1.0, 0.5)) == pytest.approx(expected, rel=0.03)


# Half sequences


@pytest.fixture(scope="module")
def beating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "beating"
    return write_phantom(folder, 1, image_size=SIZE, half_sequences=True)


def test_a_half_sequence_runs_from_ed_to_es(phantom: Path, beating: Path) -> None:
    frames = find_frames(beating)
    sequences = find_sequences(beating)
    assert [each.name for each in sequences] == ["patient0001_2CH", "patient0001_4CH"]
    for sequence, ends in zip(sequences, (frames[:2], frames[2:]), strict=True):
        images, labels, spacing = sequence.read()
        assert labels is not None
        info = read_info(sequence)
        assert info is not None
        assert info.frame_count == len(images) == len(labels)
        for end, index in zip(ends, (0, -1), strict=True):
            np.testing.assert_array_equal(images[index], end.read().image)
            np.testing.assert_array_equal(labels[index], end.read().labels)
            assert spacing == end.read().spacing
        areas = (labels == 1).sum(axis=(1, 2))
        assert (np.diff(areas) <= 2).all()
        assert areas[-1] < 0.9 * areas[0]


def test_frames_follow_on_one_another(beating: Path) -> None:
    for sequence in find_sequences(beating):
        images = sequence.read()[0].astype(float)
        seen = images.max(axis=0) > 0

        def correlation(a: int, b: int, images=images, seen=seen) -> float:
            return float(np.corrcoef(images[a][seen], images[b][seen])[0, 1])

        assert correlation(0, 1) > 0.9
        assert correlation(0, 1) > correlation(0, len(images) // 2) > correlation(0, -1)


def test_the_frames_are_the_same_without_half_sequences(phantom: Path, beating: Path) -> None:
    assert not find_sequences(phantom)
    for one, other in zip(find_frames(beating), find_frames(phantom)[:4], strict=True):
        np.testing.assert_array_equal(one.read().image, other.read().image)
        assert read_info(one) == read_info(other)


# Hearts of which everything is known


@pytest.fixture(scope="module", params=[False, True], ids=["half", "whole"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "recorded"
    beat = Beat(irregular=0.5, whole=request.param)
    return write_phantom(folder, 2, seed=2, image_size=SIZE, beat=beat)


def test_volumes_and_ejection_fraction_are_those_of_the_masks(recorded: Path) -> None:
    sequences = find_sequences(recorded)
    for two, four in zip(sequences[::2], sequences[1::2], strict=True):
        (_, labels_2, spacing), (_, labels_4, _) = two.read(), four.read()
        assert labels_2 is not None
        assert labels_4 is not None
        assert spacing is not None
        measured = [simpson(*pair, spacing) for pair in zip(labels_2, labels_4, strict=True)]
        table = np.loadtxt(
            two.image.parent / f"{two.patient}_volumes.csv", delimiter=",", skiprows=1
        )
        true, info = table[:, 1], read_info(two)
        assert info is not None
        assert table[:, 0].tolist() == [*range(1, (info.frame_count or 0) + 1)]
        assert np.abs(np.array(measured) / true - 1).mean() < 0.06
        assert (info.ed, info.es) == (true.argmax() + 1, true.argmin() + 1)
        assert (info.edv, info.esv) == pytest.approx((true.max(), true.min()), abs=0.1)
        stated = info.ejection_fraction
        assert stated == pytest.approx(100 * (1 - true.min() / true.max()), abs=0.1)
        for phase, number in (("ED", info.ed), ("ES", info.es)):
            end = next(
                frame for frame in find_frames(recorded)
                if (frame.patient, frame.view, frame.phase) == (two.patient, "2CH", phase)
            )  # fmt: skip
            np.testing.assert_array_equal(end.read().labels, labels_2[(number or 0) - 1])


def test_a_whole_beat_fills_again(tmp_path: Path) -> None:
    folder = write_phantom(tmp_path / "echo", 1, image_size=32, beat=Beat(whole=True))
    table = np.loadtxt(next(folder.rglob("*_volumes.csv")), delimiter=",", skiprows=1)
    volumes = table[:, 1]
    assert 0.3 * len(volumes) < volumes.argmin() < 0.6 * len(volumes)
    assert volumes[-1] > 0.9 * volumes[0]


def test_ejection_fractions_are_what_was_asked_for() -> None:
    def drawn(low: float, high: float) -> list[float]:
        beat = Beat((low, high), irregular=0)
        return [
            record(np.random.default_rng(seed), beat, ("2CH", "4CH"), 32).ejection_fraction
            for seed in range(4)
        ]

    assert drawn(40, 40) == pytest.approx([40] * 4, abs=0.1)
    varied = drawn(20, 75)
    assert 20 <= min(varied) < max(varied) - 10 <= 65


def test_flicker_and_dropouts_change_from_frame_to_frame() -> None:
    def unrest(beat: Beat) -> float:
        images = record(np.random.default_rng(1), beat, ("2CH", "4CH"), 48).images["4CH"]
        return float(np.abs(np.diff(images.astype(float), axis=0)).mean())

    steady = unrest(Beat((40, 40), 0, flicker=0, dropouts=0))
    assert unrest(Beat((40, 40), 0, flicker=1, dropouts=0)) > 1.5 * steady
    assert unrest(Beat((40, 40), 0, flicker=0, dropouts=1)) > 1.2 * steady


def test_a_wall_that_moves_less_is_seen(tmp_path: Path) -> None:
    """An even contraction multiplies all half-widths alike."""

    def unevenness(irregular: float) -> float:
        labels = record(
            np.random.default_rng(3), Beat((50, 50), irregular), ("2CH", "4CH"), SIZE
        ).labels["2CH"]
        widths = [(frame == 1).sum(axis=1) for frame in (labels[0], labels[-1])]
        rows = np.flatnonzero((widths[0] > 8) & (widths[1] > 8))[3:-3]
        return float((widths[1][rows] / widths[0][rows]).std())

    assert unevenness(1) > 1.5 * unevenness(0)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"ejection_fraction": (50, 90)}, "ejection_fraction is"), ({"dropouts": 2}, "dropouts is 2"),
     ({"flicker": -1}, "flicker is -1")],
)  # fmt: skip
def test_a_beat_that_cannot_be_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Beat(**options)


# The folder


def test_a_patient_does_not_depend_on_how_many_there_are(phantom: Path, tmp_path: Path) -> None:
    few = write_phantom(tmp_path / "few", 2, image_size=SIZE)
    for frame, same in zip(find_frames(few), find_frames(phantom)[:8], strict=True):
        np.testing.assert_array_equal(frame.read().image, same.read().image)
        np.testing.assert_array_equal(frame.read().labels, same.read().labels)
    info = "database_nifti/patient0002/Info_4CH.cfg"
    assert (few / info).read_text() == (phantom / info).read_text()


def test_seeds_and_patients_differ(phantom: Path, tmp_path: Path) -> None:
    other = find_frames(write_phantom(tmp_path / "other", 1, seed=1, image_size=SIZE))[0]
    first, second = find_frames(phantom)[0], find_frames(phantom)[4]
    images = [frame.read().image for frame in (first, second, other)]
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


def test_every_image_says_that_it_is_synthetic(beating: Path) -> None:
    images = sorted(beating.rglob("*.nii.gz"))
    assert len(images) == 12
    for image in images:
        header = nibabel.Nifti1Image.from_filename(image).header
        assert b"synthetic" in header["descrip"].item()


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

    monkeypatch.setattr("adapterkit.data.synthetic.phantom.nibabel.save", fail)
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
