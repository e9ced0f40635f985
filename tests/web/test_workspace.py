"""Tests of what annotators do to a folder, without a server."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import adapterkit as ak
from adapterkit.data.collections import open_collection
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.data.image_file import DataError
from adapterkit.web import drafts, rle
from adapterkit.web.draft_store import StaleError
from adapterkit.web.drafts import Point
from adapterkit.web.held_out import dice_of, divide, write_split
from adapterkit.web.model import Model
from adapterkit.web.predictions import Worker
from adapterkit.web.worklist import WorkList
from adapterkit.web.workspace import Workspace
from tests.models import ECHO
from tests.web.served import PIXELS, STACK, make_model, write_images


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "scans")


@pytest.fixture
def work(folder: Path, model: Model) -> Workspace:
    return Workspace(WorkList(folder), model, "anna")


def masks_of(answer) -> dict[int, np.ndarray]:
    return {m["structure"]: rle.decode(m["rle"], PIXELS.shape) for m in answer.masks}


def click(work: Workspace, structure: int, *points: tuple[int, int], image: str = "scan0"):
    marked = tuple(Point(x, y, True) for x, y in points)
    return work.frames.prompt(image, 0, structure, marked, None, work.revision(image))


# Masks and clicks


def test_structures_known_by_name_have_masks_at_once(work: Workspace, model: Model):
    assert work.worklist.structures.names == {1: "atrium", 2: "wall"}
    expected = model.predict(work.worklist.read("scan0"), 0, "named")
    answer = work.frames.answer("scan0", 0)
    assert [each["predicted_iou"] for each in answer.masks] == pytest.approx(expected.scores)
    assert (masks_of(answer)[1] | masks_of(answer)[2] == expected.masks.any(axis=0)).all()
    assert work.status("scan0") == "new"


def test_clicks_are_answered_as_the_predictor_answers_them(work: Workspace, model: Model):
    work.use("clicked")
    assert work.frames.answer("scan0", 0).masks == []
    answer = click(work, 2, (30, 20), (70, 40))
    image = work.worklist.read("scan0")
    first = model.predict(image, 0, "clicked", points=[[(30, 20)]], labels=[[1]])
    both = {"points": [[(30, 20), (70, 40)]], "labels": [[1, 1]]}
    # The second beside the mask of the first, which this model passes over.
    assert first.masks[0, 20, 30]
    expected = model.predict(image, 0, "clicked", **both, masks=first.masks)
    assert (expected.logits != model.predict(image, 0, "clicked", **both).logits).any()
    np.testing.assert_array_equal(masks_of(answer)[2], expected.masks[0])
    assert answer.prompts[0]["points"][0] == {"x": 30, "y": 20, "inside": True}
    assert (answer.revision, work.status("scan0")) == (1, "draft")
    # Another adapter answers the same clicks.
    work.use("named")
    assert work.frames.answer("scan0", 0).prompts == answer.prompts
    assert masks_of(work.frames.answer("scan0", 0)).keys() == {1, 2}


def test_a_click_corrects_what_the_name_of_a_structure_gave(work: Workspace, model: Model):
    answer = click(work, 1, (30, 20))
    image = work.worklist.read("scan0")
    (by_name,) = model.predict(image, 0, "named", classes=["atrium"]).low_res_logits
    expected = model.predict(
        image, 0, "named", points=[[(30, 20)]], labels=[[1]], classes=["atrium"], masks=[by_name]
    )
    assert answer.masks[0]["predicted_iou"] == pytest.approx(float(expected.scores[0]), abs=1e-3)


def test_a_click_costs_the_decoder_alone_and_once(
    work: Workspace, model: Model, monkeypatch: pytest.MonkeyPatch
):
    click(work, 1, (30, 20))
    calls: list[int] = []
    promptable = model._predictor.promptable
    decode = promptable.decode
    monkeypatch.setattr(promptable, "encode", lambda *given: pytest.fail("encoded again"))
    monkeypatch.setattr(
        type(promptable), "decode", lambda self, e, p: calls.append(1) or decode(e, p)
    )
    click(work, 1, (30, 20), (40, 20))
    assert len(calls) == 1
    work.frames.undo("scan0", 0, 2)
    assert len(calls) == 1


def test_a_box_and_a_refused_click(work: Workspace, model: Model):
    answer = work.frames.prompt("scan0", 0, 1, (), (10.0, 10.0, 60.0, 50.0), 0)
    expected = model.predict(
        work.worklist.read("scan0"), 0, "named", boxes=[(10, 10, 60, 50)], classes=["atrium"]
    )
    assert answer.masks[0]["predicted_iou"] == pytest.approx(float(expected.scores[0]))
    with pytest.raises(ValueError, match="outside of the image"):
        click(work, 1, (90, 20))
    with pytest.raises(ValueError, match="no structure 7: expected one of 1"):
        click(work, 7, (9, 20))
    with pytest.raises(ValueError, match="frame is 1: expected 0 to 0"):
        work.frames.answer("scan0", 1)
    with pytest.raises(KeyError):
        work.frames.answer("../scan0", 0)
    assert work.revision("scan0") == 1
    assert work.frames.answer("scan0", 0).prompts == answer.prompts


def test_what_is_painted_stays_whatever_the_model_says(work: Workspace):
    wanted = np.zeros(PIXELS.shape, bool)
    wanted[5:25, 5:40] = True
    before = masks_of(work.frames.answer("scan0", 0))[1]
    answer = work.frames.paint("scan0", 0, 1, rle.encode(wanted), 0)
    np.testing.assert_array_equal(masks_of(answer)[1], wanted)
    assert answer.masks[0]["edited"]
    # A pixel painted for another one is that one's.
    other = np.zeros(PIXELS.shape, bool)
    other[20:40, 20:60] = True
    answer = work.frames.paint("scan0", 0, 2, rle.encode(other), 1)
    np.testing.assert_array_equal(masks_of(answer)[2], other)
    np.testing.assert_array_equal(masks_of(answer)[1], wanted & ~other)
    painted = click(work, 1, (80, 50))
    after = masks_of(painted)[1]
    assert after[wanted & ~before & ~other].all()
    assert not after[before & ~wanted].any()
    cleared = work.frames.clear("scan0", 0, work.revision("scan0"))
    assert not any(each["edited"] for each in cleared.masks)
    back = work.frames.undo("scan0", 0, work.revision("scan0"))
    np.testing.assert_array_equal(masks_of(back)[1], masks_of(painted)[1])


def test_undo_and_redo(work: Workspace):
    first = click(work, 1, (30, 20))
    second = click(work, 1, (30, 20), (70, 40))
    assert (first.undo, first.redo) == (True, False)
    undone = work.frames.undo("scan0", 0, 2)
    assert (undone.prompts, undone.masks, undone.redo) == (first.prompts, first.masks, True)
    assert work.frames.redo("scan0", 0, 3).masks == second.masks
    work.frames.undo("scan0", 0, 4)
    assert not click(work, 1, (3, 3)).redo
    work.frames.undo("scan0", 0, 6)
    last = work.frames.undo("scan0", 0, 7)
    assert (last.prompts, last.undo) == ([], False)


# What is on disk


def test_nothing_is_lost_when_the_server_is_gone(work: Workspace, folder: Path, model: Model):
    click(work, 1, (30, 20))
    painted = work.frames.paint("scan0", 0, 2, rle.encode(PIXELS > 128), 1)
    work.worklist.structures.rename(1, "left atrium", "#112233")
    work.use("clicked")
    work.use("named")
    work.sort("uncertainty")
    again = Workspace(WorkList(folder), model)
    assert (again.status("scan0"), again.revision("scan0"), again.order) == (
        "draft", 2, "uncertainty",
    )  # fmt: skip
    assert [each.name for each in again.worklist.structures.all] == ["left atrium", "wall"]
    again.worklist.structures.rename(1, "atrium")
    answer = again.frames.answer("scan0", 0)
    assert (answer.prompts, answer.masks) == (painted.prompts, painted.masks)
    assert again.frames.undo("scan0", 0, 2).undo


def test_a_change_that_cannot_be_written_is_none(
    work: Workspace, folder: Path, model: Model, monkeypatch: pytest.MonkeyPatch
):
    click(work, 1, (30, 20))

    def full(*given: object) -> None:
        raise OSError("the disk is full")

    # As where a process is killed: the new file is half-written beside the old one.
    monkeypatch.setattr("adapterkit.system.files.os.replace", full)
    with pytest.raises(OSError, match="full"):
        click(work, 1, (1, 2), (3, 4))
    monkeypatch.undo()
    (folder / ".adapterkit/drafts/.scan0.part-x").mkdir()
    again = Workspace(WorkList(folder), model)
    assert again.frames.answer("scan0", 0).prompts[0]["points"][0]["x"] == 30
    assert not [*(folder / ".adapterkit/drafts").glob(".*")]
    assert drafts.read_draft(folder / "structures.json") is None


def test_an_accepted_mask_is_in_the_training_layout(work: Workspace, folder: Path):
    shown = click(work, 1, (30, 20))
    path = work.accept("scan0", 1)
    assert path == folder / "masks/scan0.png"
    labels = read_label_map(path).frames[0]
    for label, mask in masks_of(shown).items():
        np.testing.assert_array_equal(labels == label, mask)
    said = json.loads((folder / "masks/scan0.json").read_text())
    assert (said["annotator"], said["adapter"], said["clicks"]) == ("anna", "named", 1)
    assert said["prompts"]["0"]["1"]["points"] == [{"x": 30, "y": 20, "inside": True}]
    assert said["time"].endswith("+00:00")
    assert said["structures"] == {"1": "atrium", "2": "wall"}
    assert (work.status("scan0"), work.next("scan0")) == ("accepted", "scan1")
    work.accept("tape", 0)
    assert read_label_map(folder / "masks/tape.nii.gz").frames.shape == STACK.shape
    collection = open_collection(folder)
    assert collection.format == "annotated"
    assert collection.structures == {1: "atrium", 2: "wall"}
    assert [record.name for record in collection.records] == ["scan0/000", *(
        f"tape/00{k}" for k in range(3)
    )]  # fmt: skip
    np.testing.assert_array_equal(collection.records[0].read().labels, labels)
    assert work.next("scan2") == "scan1"


def test_an_accepted_image_is_taken_up_again_with_its_mask(work: Workspace, folder: Path):
    click(work, 1, (30, 20))
    work.accept("scan0", 1)
    accepted = work.frames.answer("scan0", 0)
    assert (accepted.status, accepted.prompts) == ("accepted", [])
    changed = work.frames.paint("scan0", 0, 2, rle.encode(PIXELS > 250), 2)
    assert (changed.status, work.status("scan0")) == ("draft", "draft")
    before = read_label_map(folder / "masks/scan0.png").frames[0]
    np.testing.assert_array_equal(masks_of(changed)[1], (before == 1) & (PIXELS <= 250))
    work.frames.undo("scan0", 0, 3)
    work.accept("scan0", 4)
    np.testing.assert_array_equal(read_label_map(folder / "masks/scan0.png").frames[0], before)
    work.reopen("scan0", 5)
    assert work.status("scan0") == "draft"


def test_a_change_on_something_older_is_refused_unless_it_is_meant(work: Workspace):
    click(work, 1, (30, 20))
    with pytest.raises(StaleError, match="changed elsewhere by anna") as refused:
        work.frames.prompt("scan0", 0, 1, (Point(1, 2, True),), None, 0)
    assert refused.value.revision == 1
    for change in (
        lambda: work.frames.paint("scan0", 0, 1, rle.encode(PIXELS > 9), 0),
        lambda: work.frames.undo("scan0", 0, 0),
        lambda: work.accept("scan0", 0),
        lambda: work.reopen("scan0", 0),
    ):
        with pytest.raises(StaleError):
            change()
    assert work.frames.answer("scan0", 0).prompts[0]["points"][0]["x"] == 30
    work.frames.prompt("scan0", 0, 1, (Point(1, 2, True),), None, None)
    assert work.revision("scan0") == 2


# Folders as they are found


def test_masks_that_are_there_count_as_accepted(folder: Path, model: Model):
    (folder / "masks").mkdir()
    labels = np.zeros(PIXELS.shape, np.uint8)
    labels[9:20, 9:20] = 1
    labels[30:40, 9:20] = 4
    Image.fromarray(labels).save(folder / "masks/scan1_mask.png")
    work = Workspace(WorkList(folder), model)
    assert [work.status(name) for name in ("scan0", "scan1")] == ["new", "accepted"]
    assert work.worklist.structures.names == {1: "label 1", 4: "label 4"}
    assert [each["area"] for each in work.frames.answer("scan1", 0).masks] == [121, 110]
    # A structure that is left out stays in masks, and counts as background.
    work.worklist.structures.leave_out(4)
    work.worklist.structures.add("wall")
    assert work.worklist.structures.names == {1: "label 1", 5: "wall"}
    work.frames.paint("scan1", 0, 5, rle.encode(labels == 1), 0)
    assert work.accept("scan1", 1) == folder / "masks/scan1.png"
    written = read_label_map(folder / "masks/scan1.png").frames[0]
    np.testing.assert_array_equal(written, np.where(labels == 1, 5, labels))
    assert (folder / ".adapterkit/replaced/masks/scan1_mask.png").is_file()
    assert open_collection(folder).structures == {1: "label 1", 5: "wall"}
    np.testing.assert_array_equal(
        open_collection(folder).records[0].read().labels, np.where(labels == 1, 5, 0)
    )


def test_images_may_lie_in_the_folder_itself_and_in_subfolders(tmp_path: Path, model: Model):
    for name in ("a", "p1/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(PIXELS).save(tmp_path / f"{name}.png")
    work = Workspace(WorkList(tmp_path), model)
    assert work.names() == ["a", "p1/b"]
    for name in work.names():
        work.accept(name, 0)
    assert Workspace(WorkList(tmp_path), model).status("p1/b") == "accepted"
    assert [*open_collection(tmp_path).groups] == ["a", "p1"]


def test_folders_that_do_not_fit_say_why(tmp_path: Path, model: Model):
    with pytest.raises(DataError, match="holds no image"):
        WorkList(tmp_path)
    folder = write_images(tmp_path / "scans")
    (folder / "masks").mkdir()
    Image.fromarray(PIXELS).save(folder / "masks/scan9.png")
    with pytest.raises(DataError, match=r"scan9\.png belongs to no image"):
        WorkList(folder)
    (folder / "structures.json").write_text('{"structures": [{"label": 0, "name": "a"}]}')
    with pytest.raises(DataError, match="whole numbers from 1 to 255"):
        WorkList(folder)


def test_names_of_structures(work: Workspace):
    structures = work.worklist.structures
    with pytest.raises(ValueError, match="a structure 'Atrium' already"):
        structures.add("Atrium")
    for name in ("mean", "<b>", "a" * 101, " "):
        with pytest.raises(ValueError, match="cannot be called"):
            structures.rename(1, name)
    with pytest.raises(ValueError, match="expected #RRGGBB"):
        structures.rename(1, colour="red")
    structures.leave_out(2)
    assert structures.add("wall").label == 2
    assert structures.add().name == "structure 3"
    assert len({each.colour for each in structures.all}) == 3


# Sequences


def test_masks_are_carried_to_the_following_frames(work: Workspace, model: Model):
    work.use("clicked")
    first = work.frames.prompt("tape", 0, 1, (Point(30, 20, True),), None, 0)
    work.frames.paint("tape", 2, 2, rle.encode(PIXELS > 200), 1)
    mask = masks_of(first)[1]
    assert work.frames.carry("tape", 0, 2, 2) == 3
    now = mask
    for frame in (1, 2):
        (expected,) = model.predict(work.worklist.read("tape"), frame, "clicked", masks=[now]).masks
        found = masks_of(work.frames.answer("tape", frame))
        now = expected if frame == 1 else expected & (PIXELS <= 200)
        np.testing.assert_array_equal(found[1], now)
    assert found[2].sum() == (PIXELS > 200).sum()
    assert not masks_of(work.frames.undo("tape", 1, 3))
    with pytest.raises(ValueError, match="expected a frame from 1 to 2"):
        work.frames.carry("tape", 0, 3, None)
    with pytest.raises(ValueError, match="frame 2 has no mask"):
        work.frames.carry("tape", 1, 2, None)


# The background, and what is held out


@pytest.fixture
def worker(work: Workspace) -> Iterator[Worker]:
    worker = Worker(work.predictions, work.wanted)
    worker.start()
    yield worker
    worker.end()


def test_all_masks_are_found_in_the_background_and_sorted_by_doubt(
    work: Workspace, worker: Worker, folder: Path, model: Model
):
    work.accept("scan1", 0)
    while any(work.wanted()):
        worker.join(0.05)
    assert work.predictions.uncertainty("scan0", "clicked") is None
    work.sort("uncertainty")
    found = [work.predictions.uncertainty(name, "named") or 0 for name in work.names()]
    assert found == sorted(found, reverse=True)
    assert max(found) > 0
    # They are on disk: another server needs no model for them, unless an image is another one.
    again = Workspace(WorkList(folder), model)
    model._frames.clear()
    again.frames.answer("scan0", 0)
    assert not model._frames
    Image.fromarray(PIXELS.T).save(folder / "images/scan0.png")
    assert again.predictions.get("scan0", 0, "named", urgent=True)
    assert model._frames


def test_what_was_trained_on_is_never_held_out():
    names = [f"patient{k}" for k in range(10)]
    parts = divide(names[:3], {})
    assert sorted(parts.values()) == ["test", "train", "validation"]
    more = divide(names, parts)
    assert parts.items() <= more.items()
    assert [[*more.values()].count(part) for part in ("train", "test", "validation")] == [7, 2, 1]
    assert divide(names[:4], more) == {name: more[name] for name in names[:4]}


def test_dice_of_held_out_images(work: Workspace, model: Model):
    for name in ("scan0", "scan1", "scan2"):
        work.accept(name, 0)
    with pytest.raises(ValueError, match="2 images are accepted, of 2 groups: expected at least 3"):
        write_split(work.worklist, ["scan0", "scan1"], None)
    assert {*write_split(work.worklist, ["scan0", "scan1", "scan2"], None).values()} == {
        "train", "validation", "test",
    }  # fmt: skip
    # What was accepted is what this adapter says, but for the overlap.
    own = dice_of(work.worklist, work.predictions, model, "named", ["scan0"])
    clicked = dice_of(work.worklist, work.predictions, model, "clicked", ["scan0"])
    assert own is not None
    assert clicked is not None
    assert clicked < own <= 1
    assert dice_of(work.worklist, work.predictions, model, "named", []) is None


def test_adapters_are_loaded_and_removed(work: Workspace, model: Model, tmp_path: Path):
    sam = ak.inject(ak.build_sam(ECHO, seed=0), "samed", rank=2)
    ak.save_adapter(sam, tmp_path / "third.safetensors")
    name = model.load(tmp_path / "third.safetensors")
    work.use(name)
    click(work, 1, (30, 20))
    work.use("named")
    model.remove(name)
    with pytest.raises(ValueError, match="no adapter is named 'third'"):
        work.use(name)
