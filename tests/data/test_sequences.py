"""Sequences: how they are read, which frames are labelled, and the clips that training sees."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adapterkit.data.augmentation import MedicalAugmentation
from adapterkit.data.clips import ClipPlan, stretches
from adapterkit.data.collections import Collection, open_collection
from adapterkit.data.collections.camus import find_sequences, read_info
from adapterkit.data.collections.check import check_collection
from adapterkit.data.dataset import SegmentationDataset, is_labelled
from adapterkit.data.image_file import DataError
from adapterkit.data.synthetic.beat import Beat
from adapterkit.data.synthetic.phantom import write_phantom
from tests.camus_files import save

SIZE = 32


@pytest.fixture(scope="module")
def beating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half sequences of three synthetic patients."""
    folder = tmp_path_factory.mktemp("sequences") / "echo"
    return write_phantom(folder, 3, image_size=SIZE, beat=Beat())


def labelled(collection: Collection) -> list[bool]:
    return [is_labelled(record) for record in collection.records]


# CAMUS


def test_frames_of_half_sequences_are_records(beating: Path):
    collection = open_collection(beating, "camus_sequences")
    assert collection.group_names == ("patient0001", "patient0002", "patient0003")
    assert all(labelled(collection))
    expected = 0
    for sequence in find_sequences(beating):
        images, labels, spacing = sequence.read()
        assert labels is not None
        for index in (0, len(images) - 1):
            record = collection.records[expected + index]
            native = record.read()
            assert record.name == f"{sequence.name}/{index:03d}"
            assert record.attributes["view"] == sequence.view
            np.testing.assert_array_equal(native.image, images[index])
            np.testing.assert_array_equal(native.labels, labels[index])
            assert native.spacing == spacing
        expected += len(images)
    assert len(collection.records) == expected
    assert not check_collection(collection).is_wrong


def test_ed_and_es_alone_can_be_taken_as_labelled(beating: Path):
    collection = open_collection(beating, "camus_sequences", labelled="ed-es")
    there = labelled(collection)
    start = 0
    for sequence in find_sequences(beating):
        info = read_info(sequence)
        assert info is not None
        assert info.frame_count is not None
        own = there[start : start + info.frame_count]
        assert [i + 1 for i, each in enumerate(own) if each] == sorted({info.ed or 0, info.es or 0})
        start += info.frame_count
    unlabelled = collection.records[there.index(False)].read()
    assert unlabelled.labels.max() == 0
    assert unlabelled.image.max() > 0
    assert not any("no structure" in p.message for p in check_collection(collection).problems)


def write_older(folder: Path) -> Path:
    """As the older release has it: a sequence without masks, and those of ED and ES."""
    patient = folder / "training" / "patient0001"
    patient.mkdir(parents=True)
    frames = np.arange(5 * SIZE * SIZE, dtype=np.uint8).reshape(5, SIZE, SIZE)
    save(patient / "patient0001_2CH_sequence.nii.gz", frames, (0.5, 0.4))
    for phase, number in (("ED", 2), ("ES", 4)):
        save(patient / f"patient0001_2CH_{phase}.nii.gz", frames[number - 1], (0.5, 0.4))
        mask = np.full((SIZE, SIZE), number - 1, np.uint8)
        save(patient / f"patient0001_2CH_{phase}_gt.nii.gz", mask, (0.5, 0.4))
    (patient / "Info_2CH.cfg").write_text("ED: 2\nES: 4\nNbFrame: 5\n")
    return folder


def test_a_sequence_without_masks_takes_those_of_ed_and_es(tmp_path: Path):
    collection = open_collection(write_older(tmp_path), "camus_sequences")
    assert labelled(collection) == [False, True, False, True, False]
    values = [int(record.read().labels.max()) for record in collection.records]
    assert values == [0, 1, 0, 3, 0]


def test_what_a_sequence_lacks_is_said(tmp_path: Path, beating: Path):
    folder = write_older(tmp_path / "no_info")
    (folder / "training" / "patient0001" / "Info_2CH.cfg").unlink()
    with pytest.raises(DataError, match=r"no Info_2CH\.cfg beside it that says which frames"):
        open_collection(folder, "camus_sequences")
    stills = write_phantom(tmp_path / "stills", 1, image_size=SIZE)
    with pytest.raises(DataError, match="holds no sequence: expected files such as"):
        open_collection(stills, "camus_sequences")
    short = write_older(tmp_path / "short")
    (short / "training" / "patient0001" / "Info_2CH.cfg").write_text("ED: 2\nES: 4\nNbFrame: 7\n")
    record = open_collection(short, "camus_sequences").records[6]
    with pytest.raises(DataError, match="holds 5 frames: expected more than 6"):
        record.read()


# Plain folders


def frames(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 200, (count, SIZE, SIZE)).astype(np.uint8)


def masks(count: int = 4) -> np.ndarray:
    found = np.zeros((count, SIZE, SIZE), np.uint8)
    for frame in range(count):
        found[frame, 4 : 10 + frame, 5:12] = 1
    return found


def write_picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def file_with_file(root: Path) -> None:
    for name, array in (("images", frames()), ("masks", masks())):
        (root / name).mkdir(parents=True)
        if name == "masks":
            array[[1, 2]] = 255
        save(root / name / "a.nii.gz", array, (0.5, 0.5))


def file_with_pictures(root: Path) -> None:
    (root / "images").mkdir(parents=True)
    save(root / "images" / "a.nii.gz", frames(), (0.5, 0.5))
    for index in (0, 3):
        write_picture(root / "masks" / "a" / f"{index:03d}_mask.png", masks()[index])


def pages_with_pages(root: Path) -> None:
    mask = masks()
    mask[[1, 2]] = 255
    for name, array in (("images", frames()), ("masks", mask)):
        (root / name).mkdir(parents=True)
        first, *rest = (Image.fromarray(page) for page in array)
        first.save(root / name / "a.tif", save_all=True, append_images=rest)


def pictures_with_pictures(root: Path) -> None:
    for index, image in enumerate(frames()):
        write_picture(root / "images" / "a" / f"t{index}.png", image)
    for index in (0, 3):
        write_picture(root / "masks" / "a" / f"t{index}.png", masks()[index])


def pictures_with_file(root: Path) -> None:
    for index, image in enumerate(frames()):
        write_picture(root / "images" / "a" / f"t{index}.png", image)
    mask = masks()
    mask[[1, 2]] = 255
    (root / "masks").mkdir(parents=True)
    save(root / "masks" / "a.nii.gz", mask, (0.5, 0.5))


@pytest.mark.parametrize(
    "write",
    [file_with_file, file_with_pictures, pages_with_pages, pictures_with_pictures,
     pictures_with_file],
)  # fmt: skip
def test_plain_sequences_say_which_frames_are_labelled(
    tmp_path: Path, write: Callable[[Path], None]
):
    write(tmp_path)
    collection = open_collection(tmp_path, "sequences", structures={1: "cavity"})
    assert [record.name for record in collection.records] == [f"a/{i:03d}" for i in range(4)]
    assert labelled(collection) == [True, False, False, True]
    for index, record in enumerate(collection.records):
        native = record.read()
        np.testing.assert_array_equal(native.image, frames()[index])
        np.testing.assert_array_equal(native.labels, masks()[index] * labelled(collection)[index])


def test_masks_of_sequences_may_be_binary(tmp_path: Path):
    for index, image in enumerate(frames(2)):
        write_picture(tmp_path / "images" / "p1" / "a" / f"{index}.png", image)
        write_picture(tmp_path / "masks" / "p1" / "a" / f"{index}.png", 200 * masks()[index])
    collection = open_collection(tmp_path, "sequences")
    assert dict(collection.structures) == {1: "foreground"}
    assert collection.groups == ("p1", "p1")
    np.testing.assert_array_equal(collection.records[1].read().labels, masks()[1])


def test_sequences_that_do_not_fit_are_named(tmp_path: Path):
    file_with_file(tmp_path)
    save(tmp_path / "images" / "b.nii.gz", frames(), (0.5, 0.5))
    with pytest.raises(DataError, match=r"b\.nii\.gz has no mask \(1 such\): expected one of"):
        open_collection(tmp_path, "sequences")
    write_picture(tmp_path / "masks" / "b" / "9.png", masks()[0])
    with pytest.raises(DataError, match=r"9\.png is of no frame of .*b\.nii\.gz: expected one of"):
        open_collection(tmp_path, "sequences")


# Clips


def dataset(beating: Path, which: str = "all") -> SegmentationDataset:
    collection = open_collection(beating, "camus_sequences", labelled=which)
    return SegmentationDataset(collection.records, SIZE)


def test_clips_are_consecutive_and_have_labelled_frames(beating: Path):
    for which in ("all", "ed-es"):
        data = dataset(beating, which)
        plan, sequences = ClipPlan(data, 5), data.sequences
        assert len(sequences) == 6
        for clip in range(len(plan)):
            drawn = plan.draw(clip, seed=1, epoch=3)
            assert len(drawn) == 5
            assert drawn == list(range(drawn[0], drawn[0] + 5))
            assert any(data.labelled[image] for image in drawn)
            assert any({*drawn} <= {*images} for images in sequences)
            assert drawn == plan.draw(clip, seed=1, epoch=3)
        epochs = [tuple(plan.draw(0, seed=1, epoch=epoch)) for epoch in range(8)]
        assert len(set(epochs)) > 1


def test_an_epoch_has_about_each_labelled_frame_once(beating: Path):
    data = dataset(beating)
    assert len(ClipPlan(data, 5)) == sum(-(-len(each) // 5) for each in data.sequences)
    sparse = dataset(beating, "ed-es")
    assert len(ClipPlan(sparse, 5)) == len(sparse.sequences)
    plan = ClipPlan(sparse, 1)
    drawn = [plan.draw(clip, 0, 1) for clip in range(len(plan))]
    assert drawn == [[i] for i, each in enumerate(sparse.labelled) if each]


class Still:
    """Images that are no sequences, or one sequence of which some frames are labelled."""

    def __init__(self, labelled: list[bool], is_sequence: bool):
        self.labelled = labelled
        if is_sequence:
            self.sequences = [list(range(len(labelled)))]

    def __len__(self) -> int:
        return len(self.labelled)


@settings(max_examples=20)
@given(flags=st.lists(st.booleans(), min_size=1, max_size=12).filter(any), frames=st.integers(2, 9))
def test_any_labelled_frame_can_come_at_any_length(flags: list[bool], frames: int):
    plan = ClipPlan(Still(flags, is_sequence=True), frames)
    seen: set[int] = set()
    for epoch in range(60):
        for clip in range(len(plan)):
            drawn = plan.draw(clip, 0, epoch)
            assert len(drawn) == frames
            assert all(abs(a - b) <= 1 for a, b in pairwise(drawn))
            assert any(flags[image] for image in drawn)
            seen |= {*drawn}
    assert {i for i, each in enumerate(flags) if each} <= seen


def test_a_single_image_is_a_sequence_of_one():
    plan = ClipPlan(Still([True, True], is_sequence=False), 3)
    assert [plan.draw(clip, 0, 1) for clip in range(len(plan))] == [[0] * 3, [1] * 3]


def test_clips_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="no frame is labelled"):
        ClipPlan(Still([False, False], is_sequence=True), 2)
    with pytest.raises(DataError, match="clips of 0 frames"):
        ClipPlan(Still([True], is_sequence=True), 0)


@given(count=st.integers(1, 30), length=st.integers(1, 9), reach=st.integers(0, 5))
def test_stretches_have_all_that_a_frame_depends_on(count: int, length: int, reach: int):
    wanted = [i % 3 != 1 for i in range(count)]
    found = []
    for piece, places in stretches(range(100, 100 + count), wanted, length, reach):
        assert len(piece) <= length + 2 * reach
        for place in places:
            frame = piece[place] - 100
            found.append(frame)
            around = range(max(0, frame - reach), min(count, frame + reach + 1))
            assert {100 + i for i in around} <= {*piece}
    assert found == [i for i in range(count) if wanted[i]]


def test_frames_of_a_sequence_are_augmented_alike(beating: Path):
    records = open_collection(beating, "camus_sequences").records
    augmentation = MedicalAugmentation(SIZE, probability=1)

    def corners(data: SegmentationDataset) -> list[torch.Tensor]:
        """Where the augmentation moved what is beyond the border."""
        return [data[i]["image"][0] == 0 for i in (0, 1, data.sequences[1][0])]

    class White:
        """The record with a white image, of which the augmentation's place alone is seen."""

        def __init__(self, record):
            self.record, self.name = record, record.name
            self.structures, self.attributes = record.structures, record.attributes

        def read(self):
            native = self.record.read()
            white = np.full((SIZE, SIZE), 200, np.uint8)
            white[0, 0] = 0
            return type(native)(white, native.labels, native.spacing)

    moved = SegmentationDataset([White(each) for each in records], SIZE, augmentation)
    one, same, other = corners(moved)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
