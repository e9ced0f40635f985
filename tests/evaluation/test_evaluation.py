"""Evaluation sees what a prediction is worth, in pixels and in mm, and whose it is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

import adapterkit as ak
from adapterkit.data.collections.camus import CamusDataset, find_frames
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.evaluation.evaluation import Evaluation, dice_of_images, evaluate, predict
from adapterkit.evaluation.metrics import segmentation_metrics
from adapterkit.evaluation.tables import (
    extreme_cases,
    extremes,
    predict_extremes,
    summaries,
    tables,
)
from adapterkit.promptable.points import farthest_point
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Embedding, Masks, Promptable
from tests.models import ECHO


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> CamusDataset:
    """Synthetic echo of two patients, eight images of 64x64 pixels, as they are on disk."""
    folder = write_phantom(tmp_path_factory.mktemp("phantom") / "echo", patients=2, image_size=64)
    return CamusDataset(find_frames(folder), image_size=64)


class Planted(Promptable):
    """Predicts what it is given rather than what it sees; keeps the prompts that it got."""

    def __init__(self, masks: Tensor):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.masks = masks
        self.seen = 0

    def encode(self, images: Tensor, frames: int = 1) -> Embedding:
        return Embedding(images, images.shape[-1])

    def decode(self, embedding: Embedding, prompts: Prompts | None = None) -> Masks:
        masks = self.masks[self.seen : self.seen + len(embedding)]
        self.seen += len(embedding)
        logits = 20.0 * masks[:, :, None].float() - 10
        return Masks(logits, torch.zeros(logits.shape[:3]), masks.shape[-1])


def reference(dataset: CamusDataset) -> Tensor:
    return torch.stack([dataset[i]["masks"] for i in range(len(dataset))]).bool()


PLANTED = pytest.mark.parametrize(
    ("plant", "dice", "distance"),
    [
        (lambda masks: masks, [1, 1, 1], [0, 0, 0]),
        (lambda masks: torch.zeros_like(masks), [0, 0, 0], [64 * 2**0.5] * 3),
        (lambda masks: masks[:, [0, 2, 1]], [1, None, None], [0, None, None]),
        (lambda masks: masks.roll(3, dims=-1), [None] * 3, [3, 3, 3]),
    ],
    ids=["perfect", "empty", "two swapped", "shifted by 3 pixels"],
)


@PLANTED
def test_evaluation_sees_what_predictions_are_worth(echo: CamusDataset, plant, dice, distance):
    found = evaluate(Planted(plant(reference(echo))), echo, seed=0, batch_size=3)
    assert list(found.names) == [frame.name for frame in echo.records]
    for k in range(3):
        for metric, expected in (("dice", dice[k]), ("hausdorff_px", distance[k])):
            column = found.values[metric][:, k]
            if expected is None:
                assert (column > 0).all() if metric == "hausdorff_px" else (column < 0.95).all()
            else:
                torch.testing.assert_close(column, torch.full((8,), float(expected)))
    # The images are as large on disk, and their pixels are no squares.
    for i in range(8):
        masks, spacing = echo.native_reference(i)
        assert spacing is not None
        in_mm = segmentation_metrics(plant(masks[None]), masks[None], spacing)
        for metric in ("hausdorff", "hausdorff95", "average_surface_distance"):
            torch.testing.assert_close(found.values[f"{metric}_mm"][i], in_mm[metric][0])


@PLANTED
def test_dice_of_images_is_that_of_the_evaluation(echo: CamusDataset, plant, dice, distance):
    masks = plant(reference(echo))
    expected = evaluate(Planted(masks), echo, seed=0).values["dice"]
    found = dice_of_images(Planted(masks), echo, seed=0, batch_size=3)
    torch.testing.assert_close(found, expected)


def test_distances_in_mm_are_of_the_images_own_size(tmp_path: Path):
    folder = write_phantom(tmp_path / "echo", patients=1, image_size=128)
    small = CamusDataset(find_frames(folder), image_size=48)
    found = evaluate(Planted(reference(small).roll(3, dims=-1)), small, seed=0)
    for i in range(4):
        masks, spacing = small.native_reference(i)
        assert masks.shape == (3, 128, 128)
        assert spacing is not None
        # Three pixels of 48 are eight of 128; the small grid's rounding adds less than three more.
        expected = segmentation_metrics(masks.roll(8, dims=-1)[None], masks[None], spacing)
        error = found.values["hausdorff_mm"][i] - expected["hausdorff"][0]
        assert (error.abs() < 3 * spacing[0]).all()


def test_without_spacing_there_are_no_mm(echo: CamusDataset, monkeypatch: pytest.MonkeyPatch):
    native = echo.native_reference
    monkeypatch.setattr(
        echo, "native_reference", lambda i: (native(i)[0], None if i == 5 else native(i)[1])
    )
    found = evaluate(Planted(reference(echo)), echo, seed=0)
    assert [metric for metric in found.values if metric.endswith("_mm")] == []
    assert "hausdorff_px" in found.values


def test_prompts_do_not_depend_on_order_or_subset(echo: CamusDataset):
    def points(indices: list[int]) -> dict[str, Tensor]:
        found = {}
        for each in predict(Planted(reference(echo)), Subset(echo, indices), seed=0, batch_size=3):
            found |= dict(zip(each.names, each.points, strict=True))
        return found

    every = points(list(range(8)))
    for name, value in points([6, 2]).items():
        assert torch.equal(value, every[name])
    for sample in (echo[i] for i in range(8)):
        for point, mask in zip(every[sample["name"]][:, 0].long(), sample["masks"], strict=True):
            assert mask[point[1], point[0]] == 1


def test_what_is_shown_is_what_is_measured_and_extremes_are_predicted_alike(echo: CamusDataset):
    sam = ak.inject(ak.build_sam(ECHO, seed=0), [ak.parts.Resize(64)])
    segmenter, shown = ak.Segmenter(sam), []
    found = evaluate(segmenter, echo, seed=0, batch_size=3, show=[shown.append])
    assert [index for each in shown for index in each.indices] == [*range(8)]
    assert [name for each in shown for name in each.names] == [*found.names]
    for each in shown:
        dice = segmentation_metrics(each.predicted, each.reference)["dice"]
        assert torch.equal(dice, found.values["dice"][each.indices])
        assert all(
            torch.equal(image, echo[index]["image"])
            for index, image in zip(each.indices, each.images, strict=True)
        )
    predicted = predict_extremes(segmenter, echo, found, seed=0)
    assert {*predicted} == {index for each in extremes(found) for index in each.values()}
    logits, points = (torch.cat([getattr(p, what) for p in shown]) for what in ("logits", "points"))
    for index, each in predicted.items():
        assert each.indices == [index]
        torch.testing.assert_close(each.logits[0], logits[index], rtol=1e-3, atol=1e-3)
        assert torch.equal(each.points[0], points[index])
    cases = extreme_cases(found, predicted)
    assert len(cases) == 9
    titles = [f"{s}, {which}: " for s in found.structures for which in ("best", "median", "worst")]
    assert all(map(str.startswith, [case.title for case in cases], titles))


def test_the_second_point_is_chosen_as_asked(echo: CamusDataset):
    masks, one = reference(echo), Subset(echo, range(8))
    first = next(predict(Planted(masks), one, seed=0)).points
    for strategy in ("2-random", "2-max-distance"):
        both = next(predict(Planted(masks), one, seed=0, points=strategy)).points
        assert torch.equal(both[:, :, :1], first)
        if strategy == "2-max-distance":
            assert torch.equal(both[:, :, 1:], farthest_point(masks, first[:, :, 0])[0])
    # For the entropy the model is asked twice; it is least certain where it says nothing.
    segmenter = Planted(torch.cat([masks, masks]))
    segmenter.decode = lambda embedding, prompts=None: Masks(
        torch.where(corner(masks), 0.0, 10.0)[:, :, None], torch.zeros(8, 3, 1), 64
    )
    both = next(predict(segmenter, one, seed=0, points="2-entropy")).points
    assert torch.equal(both[:, :, :1], first)
    last = both[:, :, 1].flatten(0, 1).long()
    assert all(mask[y, x] for mask, (x, y) in zip(corner(masks).flatten(0, 1), last, strict=True))


def corner(masks: Tensor) -> Tensor:
    """The last foreground pixel of each mask."""
    last = masks.flatten(2).cumsum(dim=-1) == masks.flatten(2).sum(dim=-1, keepdim=True)
    return last.view_as(masks) & masks


def evaluation() -> Evaluation:
    values = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]])
    return Evaluation(
        ["cavity", "wall"],
        ["a_ED", "a_ES", "b_ED", "c_ES"],
        [
            {"patient": "a", "phase": "ED"},
            {"patient": "a", "phase": "ES"},
            {"patient": "b", "phase": "ED"},
            {"patient": "c", "phase": "ES"},
        ],
        {"dice": values, "hausdorff_px": 10 * values, "hausdorff_mm": values / 3},
    )


def test_summaries_by_and_over_an_attribute():
    found = evaluation()
    assert found.summary()["cavity"]["dice"]["mean"] == pytest.approx(0.4)
    by_phase = found.summary_by("phase")
    assert list(by_phase) == ["ED", "ES"]
    assert by_phase["ED"]["cavity"]["dice"]["mean"] == pytest.approx(0.3)
    assert by_phase["ES"]["wall"]["hausdorff_px"]["mean"] == pytest.approx(6.0)
    over_patients = found.summary_over("patient")["cavity"]["dice"]
    # Patients have 0.2, 0.5 and 0.7.
    assert over_patients["mean"] == pytest.approx(1.4 / 3)
    assert over_patients["std"] == pytest.approx(torch.tensor([0.2, 0.5, 0.7]).std().item())


def test_images_without_a_patient_have_no_summary_over_patients():
    found = evaluation()
    plain = replace(found, attributes=[{"frame": "0"}] * 4)
    assert list(summaries(found, ["phase"])) == ["images", "patients", "phase"]
    assert summaries(plain, []) == {"images": found.summary()}
    grouped = [{"group": each["patient"]} for each in found.attributes]
    groups = summaries(replace(found, attributes=grouped), [])["groups"]
    assert groups == found.summary_over("patient")


def test_pixels_of_another_input_size():
    found, scaled = evaluation(), evaluation().in_pixels_of(256, 1024)
    for metric, factor in (("dice", 1), ("hausdorff_mm", 1), ("hausdorff_px", 0.25)):
        torch.testing.assert_close(scaled.values[metric], found.values[metric] * factor)


def test_the_table_of_images_holds_every_bit(tmp_path: Path):
    found, path = evaluation(), tmp_path / "per_image.csv"
    found.write_csv(path)
    assert path.read_text().splitlines()[:2] == [
        "image,patient,phase,structure,dice,hausdorff_px,hausdorff_mm",
        "a_ED,a,ED,cavity,0.100000001,1,0.0333333351",
    ]
    read = Evaluation.read_csv(path)
    assert (read.structures, read.names, read.attributes) == (
        found.structures, found.names, found.attributes,
    )  # fmt: skip
    assert list(read.values) == list(found.values)
    assert all(torch.equal(read.values[metric], found.values[metric]) for metric in found.values)


@pytest.mark.parametrize("text", ["", "image,dice\na,1\n", "image,structure,dice\na,wall,much\n"])
def test_what_is_no_table_of_images_is_refused(tmp_path: Path, text: str):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=r"table.csv is no table of metrics"):
        Evaluation.read_csv(tmp_path / "table.csv")


def test_a_real_model_is_evaluated(echo: CamusDataset):
    segmenter = ak.Segmenter(ak.inject_samus(ak.build_sam(ECHO, seed=0), 64))
    found = evaluate(segmenter, echo, seed=0)
    assert found.values["dice"].shape == (8, 3)
    assert set(found.attributes[0]) == {"patient", "view", "phase"}
    again = evaluate(segmenter, echo, seed=0)
    assert all(torch.equal(again.values[metric], found.values[metric]) for metric in found.values)


def test_volumes_are_measured_over_all_their_slices():
    counts = torch.tensor([[30.0, 0], [10, 0], [5, 7]])
    values = {
        "dice": torch.ones(3, 2),
        "shared_pixels": counts,
        "predicted_pixels": 2 * counts,
        "reference_pixels": torch.tensor([[40.0, 0], [40, 0], [5, 7]]),
    }
    slices = [{"volume": "a"}, {"volume": "a"}, {"volume": "b"}]
    found = Evaluation(("one", "two"), ("a/0", "a/1", "b/0"), slices, values)
    volumes = found.of_volumes()
    assert volumes is not None
    assert list(volumes.names) == ["a", "b"]
    # 2 * 40 / (80 + 80), and of an empty structure that is not found; 2 * 5 / (10 + 5).
    expected = torch.tensor([[0.5, 1.0], [2 / 3, 2 / 3]])
    torch.testing.assert_close(volumes.values["dice"], expected)
    torch.testing.assert_close(volumes.values["iou"], expected / (2 - expected))
    summary = summaries(found, [])
    assert summary["volume"]["b"] == {"one": pytest.approx(2 / 3), "two": pytest.approx(2 / 3)}
    assert summary["volumes"]["one"]["dice"]["mean"] == pytest.approx(7 / 12)
    written = tables({"model": found}, [])
    assert "## Volumes, in 3-D over all slices" in written
    assert "| model | a | 50.00 | 100.00 | 75.00 |" in written
    pictures = replace(found, attributes=[{}, {}, {}])
    assert pictures.of_volumes() is None
    assert "Volumes" not in tables({"model": pictures}, [])
