"""What further settings do: moving averages, losses, workers and memory."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

import adapterkit as ak
from adapterkit.data.augmentation import SamusAugmentation
from adapterkit.data.collections.camus import CamusDataset, find_frames
from adapterkit.data.decoded import DecodedImages
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.evaluation.evaluation import dice_of_images
from adapterkit.system.command_line import bytes_in_words
from adapterkit.training.accelerator import make_accelerator
from adapterkit.training.averages import MovingAverage
from adapterkit.training.loop import train
from adapterkit.training.settings import Settings
from adapterkit.training.state import Epoch
from tests.models import ECHO

PLAIN = Settings(epochs=2, batch_size=2, learning_rate=1e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "echo", patients=1, image_size=64)


def dataset(folder: Path, cache: int = 10**9, augmented: bool = False) -> CamusDataset:
    augmentation = SamusAugmentation(64) if augmented else None
    return CamusDataset(find_frames(folder), 64, augmentation, seed=0, cache=cache)


def adapted() -> ak.Segmenter:
    torch.manual_seed(0)
    sam = ak.build_sam(ECHO, seed=0)
    parts = [ak.parts.Resize(64), ak.parts.FeatureAdapter(), ak.parts.Train("mask_decoder")]
    return ak.Segmenter(ak.inject(sam, parts))


def trained(
    model: ak.Segmenter,
    data: CamusDataset,
    settings: Settings = PLAIN,
    kept: dict[str, torch.Tensor] | None = None,
    state_file: Path | None = None,
    stop_after: int | None = None,
    workers: int = 0,
) -> list[Epoch]:
    AcceleratorState._reset_state()

    def keep(epoch: Epoch) -> None:
        if kept is not None:
            kept.update({n: p.detach().clone() for n, p in model.named_parameters()})
        if epoch.epoch == stop_after:
            raise InterruptedError

    return train(
        model,
        data,
        data,
        settings,
        accelerator=make_accelerator(),
        on_improvement=keep,
        state_file=state_file,
        workers=workers,
    )


def test_a_moving_average_is_what_is_validated_and_saved(folder: Path):
    data, settings = dataset(folder), Settings(**{**vars(PLAIN), "ema": 0.9})
    plain, averaged, kept = adapted(), adapted(), {}
    trained(plain, data)
    history = trained(averaged, data, settings, kept)
    # The weights themselves go the same way.
    weights = dict(plain.named_parameters())
    for name, each in averaged.named_parameters():
        assert torch.equal(each, weights[name])
    assert any(not torch.equal(each, kept[name]) for name, each in weights.items())
    best = max(history, key=lambda epoch: (epoch.validation_dice, epoch.epoch))
    with torch.no_grad():
        for name, each in averaged.named_parameters():
            each.copy_(kept[name])
    found = dice_of_images(averaged, data, seed=0, batch_size=2).mean().item()
    assert found == pytest.approx(best.validation_dice)


def test_a_resumed_moving_average_is_the_same(tmp_path: Path, folder: Path):
    data, settings = dataset(folder), Settings(**{**vars(PLAIN), "ema": 0.9})
    whole, parts = {}, {}
    expected = trained(adapted(), data, settings, whole)
    state = tmp_path / "state.safetensors"
    with pytest.raises(InterruptedError):
        trained(adapted(), data, settings, None, state, stop_after=1)
    assert trained(adapted(), data, settings, parts, state) == expected
    assert all(torch.equal(each, parts[name]) for name, each in whole.items())


def test_the_average_follows_its_formula():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    average = MovingAverage({"weight": weight}, decay=0.5)
    expected = 1.0
    for step in range(1, 20):
        with torch.no_grad():
            weight.add_(1)
        average.update(step)
        share = min(0.5, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * weight.item()
        assert average.tensors["average.weight"].item() == pytest.approx(expected, rel=1e-5)
    with average.in_place():
        assert weight.item() == pytest.approx(expected, rel=1e-5)
    assert weight.item() == 20


@pytest.mark.parametrize("loss", ["dice-ce", "dice-focal"])
def test_other_losses_train(folder: Path, loss):
    settings = Settings(epochs=4, batch_size=4, learning_rate=3e-3, loss=loss)
    history = trained(adapted(), dataset(folder), settings)
    assert history[-1].loss < history[0].loss


@pytest.mark.parametrize("cache", [0, 3 * 4 * 64 * 64, 10**9])
def test_workers_and_memory_make_no_difference(folder: Path, cache: int):
    alone, shared = adapted(), adapted()
    history = trained(alone, dataset(folder, augmented=True))
    assert trained(shared, dataset(folder, cache, augmented=True), workers=2) == history
    weights = dict(shared.named_parameters())
    assert all(torch.equal(each, weights[name]) for name, each in alone.named_parameters())


def test_images_are_kept_as_far_as_the_budget_goes():
    kept = DecodedImages(count=5, side=8, budget=3 * 4 * 8 * 8)
    image, labels = torch.full((1, 8, 8), 7, dtype=torch.uint8), torch.ones(1, 8, 8).byte()
    for index in range(5):
        assert kept.get(index) is None
        kept.put(index, image, index * labels)
    for index in range(3):
        found = kept.get(index)
        assert found is not None
        assert torch.equal(found[0], image)
        assert torch.equal(found[1], index * labels)
    assert kept.get(3) is kept.get(4) is None
    colour = torch.arange(3 * 64).view(3, 8, 8).byte()
    kept.put(0, colour, labels)
    found = kept.get(0)
    assert found is not None
    assert torch.equal(found[0], colour)


@pytest.mark.parametrize(
    ("text", "amount"), [("4GB", 4 * 10**9), ("500 mb", 5 * 10**8), ("1.5k", 1500), ("0", 0)]
)
def test_amounts_of_memory_are_read(text: str, amount: int):
    assert bytes_in_words(text) == amount


def test_what_is_no_amount_of_memory_is_refused():
    with pytest.raises(ValueError, match="--cache much: expected an amount of memory, 4GB or"):
        bytes_in_words("much")
