"""Training learns, repeats itself from a seed, and evaluation sees what a prediction is worth."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

import adapterkit as ak
from adapterkit.data.camus import CamusDataset, find_frames
from adapterkit.data.phantom import write_phantom
from adapterkit.segmenter import Masks
from adapterkit.training import Epoch, evaluate, make_accelerator, mean_dice, predict, train

CONFIG = ak.SamConfig(
    width=32, depth=4, num_heads=2, global_blocks=(1, 3), image_size=256, prompt_width=32,
    decoder_mlp_width=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> CamusDataset:
    """Synthetic echo of two patients, eight images of 64x64 pixels."""
    folder = write_phantom(tmp_path_factory.mktemp("phantom") / "echo", patients=2, image_size=64)
    return CamusDataset(find_frames(folder), image_size=64)


def adapted(seed: int = 0) -> ak.Segmenter:
    torch.manual_seed(seed)
    sam = ak.build_sam(CONFIG, seed=0)
    ak.inject(sam, [*ak.methods.samus(image_size=64), ak.parts.Train("mask_decoder")])
    return ak.Segmenter(sam)


def run(segmenter: ak.Segmenter, training: Dataset, validation: Dataset, **changes: Any) -> Any:
    best: list[Epoch] = []
    settings = {"epochs": 2, "batch_size": 2, "learning_rate": 1e-3, "seed": 0, **changes}
    history = train(
        segmenter,
        training,
        validation,
        accelerator=make_accelerator(settings["seed"]),
        on_improvement=best.append,
        **settings,
    )
    return history, best


def test_it_learns_to_segment(echo: CamusDataset):
    segmenter, one = adapted(), Subset(echo, [0, 1])
    before = mean_dice(segmenter, one, seed=0)
    history, _ = run(segmenter, one, one, epochs=50)
    assert [each.epoch for each in history] == list(range(1, 51))
    assert history[-1].loss < 0.6 * history[0].loss
    after = mean_dice(segmenter, one, seed=0)
    assert after > before + 0.25
    assert after == history[-1].validation_dice


def test_only_the_adapter_changes(echo: CamusDataset):
    segmenter = adapted()
    before = {name: each.clone() for name, each in segmenter.named_parameters()}
    run(segmenter, echo, Subset(echo, [0]), epochs=1)
    for name, parameter in segmenter.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert parameter.requires_grad or not changed, name


def test_a_seed_repeats_and_another_differs(echo: CamusDataset):
    def weights(seed: int) -> dict[str, Tensor]:
        segmenter = adapted()
        run(segmenter, echo, Subset(echo, [0]), seed=seed)
        return segmenter.state_dict()

    first, second, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


def test_improvements_are_reported_as_they_come(echo: CamusDataset):
    history, best = run(adapted(), echo, Subset(echo, [0, 1]), epochs=4)
    expected, highest = [], -1.0
    for epoch in history:
        if epoch.validation_dice >= highest:
            expected.append(epoch)
            highest = epoch.validation_dice
    assert best == expected


class WithOneBrokenImage(Dataset):
    """The samples of another data set, image 3 being not a number."""

    def __init__(self, samples: CamusDataset):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = dict(self.samples[index])
        if index == 3:
            sample["image"] = sample["image"] * torch.nan
        return sample


def test_a_loss_that_is_not_finite_stops_with_the_images_named(echo: CamusDataset):
    with pytest.raises(FloatingPointError, match=echo[3]["name"]):
        run(adapted(), WithOneBrokenImage(echo), Subset(echo, [0]))


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}])
def test_numbers_out_of_range_are_refused(echo: CamusDataset, bad: dict[str, Any]):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}=0"):
        run(adapted(), echo, echo, **bad)


class Planted(nn.Module):
    """Predicts what it is given rather than what it sees."""

    def __init__(self, masks: Tensor):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.masks = masks
        self.seen = 0

    def forward(self, images: Tensor, points: Tensor, labels: Tensor) -> Masks:
        masks = self.masks[self.seen : self.seen + len(images)]
        self.seen += len(images)
        return Masks(20.0 * masks.float() - 10, torch.zeros(masks.shape[:2]), masks.shape[-1])


@pytest.mark.parametrize(
    ("plant", "dice", "distance"),
    [
        (lambda masks: masks, [1, 1, 1], [0, 0, 0]),
        (lambda masks: torch.zeros_like(masks), [0, 0, 0], [64 * 2**0.5] * 3),
        (lambda masks: masks[:, [0, 2, 1]], [1, None, None], [0, None, None]),
        (lambda masks: masks.roll(3, dims=-1), [None] * 3, [3, 3, 3]),
    ],
    ids=["perfect", "empty", "two swapped", "shifted by 3 pixels"],
)
def test_evaluation_sees_what_predictions_are_worth(echo: CamusDataset, plant, dice, distance):
    reference = torch.stack([sample["masks"] for sample in echo]).bool()
    planted = Planted(plant(reference))
    names, values = evaluate(planted, echo, seed=0, batch_size=3)  # pyright: ignore[reportArgumentType]
    assert names == [sample["name"] for sample in echo]
    for k in range(3):
        for metric, expected in (("dice", dice[k]), ("hausdorff", distance[k])):
            column = values[metric][:, k]
            if expected is None:
                assert (column > 0).all() if metric == "hausdorff" else (column < 0.95).all()
            else:
                torch.testing.assert_close(column, torch.full((8,), float(expected)))


def test_prompts_do_not_depend_on_order_or_subset(echo: CamusDataset):
    segmenter = adapted()

    def points(indices: list[int]) -> dict[str, Tensor]:
        found = {}
        for each in predict(segmenter, Subset(echo, indices), seed=0, batch_size=3):
            found |= dict(zip(each.names, each.points, strict=True))
        return found

    every = points(list(range(8)))
    for name, value in points([6, 2]).items():
        assert torch.equal(value, every[name])
    for sample in echo:
        for point, mask in zip(every[sample["name"]][:, 0].long(), sample["masks"], strict=True):
            assert mask[point[1], point[0]] == 1


def test_an_epoch_is_plain_data(tmp_path: Path, sam: Sam):
    ak.inject_samus(sam)
    epoch = dataclasses.asdict(Epoch(3, 0.5, 0.9))
    ak.save_adapter(sam, tmp_path / "a.safetensors", training=epoch)
    assert ak.inspect_adapter(tmp_path / "a.safetensors").training == epoch
