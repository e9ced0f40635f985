"""Training learns, repeats itself from a seed, and goes on from where it was interrupted."""

import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors import SafetensorError, safe_open
from segment_anything.modeling import Sam
from torch import Tensor
from torch.utils.data import Dataset, Subset

import adapterkit as ak
from adapterkit.attach.attachment import Part
from adapterkit.data.collections.camus import CamusDataset, find_frames
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.evaluation.evaluation import dice_of_images
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Embedding, Masks, Promptable
from adapterkit.training.accelerator import make_accelerator
from adapterkit.training.checkpointing import checkpointed_blocks
from adapterkit.training.loop import train
from adapterkit.training.losses import LOSSES
from adapterkit.training.settings import Settings, enough_epochs, short_warmup
from adapterkit.training.state import Epoch, save_state
from tests.models import ECHO


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> CamusDataset:
    """Synthetic echo of two patients, eight images of 64x64 pixels."""
    folder = write_phantom(tmp_path_factory.mktemp("phantom") / "echo", patients=2, image_size=64)
    return CamusDataset(find_frames(folder), image_size=64)


def adapted(seed: int = 0) -> ak.Segmenter:
    torch.manual_seed(seed)
    sam = ak.build_sam(ECHO, seed=0)
    ak.inject(sam, [*ak.methods.parts_of("samus", image_size=64), ak.parts.Train("mask_decoder")])
    return ak.Segmenter(sam)


def run(
    segmenter: Promptable,
    training: Dataset,
    validation: Dataset,
    state_file: Path | None = None,
    mixed_precision: Any = None,
    **changes: Any,
) -> tuple[list[Epoch], list[Epoch]]:
    """The history, and the improvements."""
    AcceleratorState._reset_state()  # Which keeps the first precision that it was given.
    best: list[Epoch] = []
    settings = {"epochs": 2, "batch_size": 2, "learning_rate": 1e-3, "seed": 0, **changes}
    history = train(
        segmenter,
        training,
        validation,
        Settings(**settings),
        accelerator=make_accelerator(mixed_precision),
        on_improvement=best.append,
        state_file=state_file,
        state_minutes=0,
    )
    return history, best


def assert_equal_weights(first: ak.Segmenter, second: ak.Segmenter) -> None:
    other = second.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in first.state_dict().items())


def test_it_learns_to_segment(echo: CamusDataset):
    segmenter, one = adapted(), Subset(echo, [0, 1])
    before = dice_of_images(segmenter, one, seed=0).mean().item()
    history, _ = run(segmenter, one, one, epochs=50)
    assert [each.epoch for each in history] == list(range(1, 51))
    assert history[-1].loss < 0.6 * history[0].loss
    after = dice_of_images(segmenter, one, seed=0).mean().item()
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


# Options


def test_the_learning_rate_rises_and_falls():
    settings = Settings(learning_rate=1.0, warmup_steps=3, schedule="cosine")
    rates = settings.learning_rates(13)
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert settings.learning_rates(2) == [0.25, 0.5]
    assert rates[8] == pytest.approx(0.5)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] == pytest.approx((1 - math.cos(math.pi / 10)) / 2)
    polynomial = dataclasses.replace(settings, schedule="polynomial")
    falling = polynomial.learning_rates(13)
    assert falling[3] == 1
    assert falling[8] == pytest.approx(0.5**0.9)
    constant = dataclasses.replace(settings, schedule="constant")
    assert constant.learning_rates(13) == [0.25, 0.5, 0.75, *[1.0] * 10]


def test_few_images_take_more_epochs():
    assert enough_epochs(12, images=280, images_per_step=8) == 12
    assert enough_epochs(12, images=9, images_per_step=8) == 160
    assert enough_epochs(50, images=9, images_per_step=8) == 160
    assert enough_epochs(12, images=6, images_per_step=8) == 320


def test_a_short_warm_up_is_a_twentieth_of_the_steps():
    assert short_warmup(images=80, epochs=10, images_per_step=8) == 5
    assert short_warmup(images=81, epochs=20, images_per_step=8) == 11
    assert short_warmup(images=81, epochs=20, images_per_step=8 * 2 * 2) == 3
    assert short_warmup(images=5, epochs=9, images_per_step=8) == 0


@pytest.mark.parametrize(
    ("name", "kind", "momentum"),
    [("adam", torch.optim.Adam, None), ("adamw", torch.optim.AdamW, None),
     ("sgd", torch.optim.SGD, 0.9)],
)  # fmt: skip
def test_the_optimiser_is_the_one_that_is_named(name: Any, kind: type, momentum: float | None):
    settings = Settings(optimizer=name, learning_rate=0.25, weight_decay=0.5)
    optimizer = settings.make_optimizer([torch.nn.Parameter(torch.ones(1))])
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group.get("momentum")) == (0.25, 0.5, momentum)


class Threshold(Promptable):
    """Needs no prompt: bright is foreground, by a trained threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = torch.nn.Parameter(torch.tensor(60.0))

    @property
    def model(self) -> torch.nn.Module:
        return self

    def encoder_tensors(self) -> dict[str, Tensor]:
        return {"threshold": self.threshold}

    def _encode(self, images: Tensor) -> Embedding:
        return Embedding(images, images.shape[-1])

    def _decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        assert prompts.shape is not None
        bright = (embedding.image[:, :1] - self.threshold).expand(-1, prompts.shape[1], -1, -1) / 10
        return Masks(bright[:, :, None], bright.mean(dim=(2, 3))[..., None], embedding.image_size)


def test_any_promptable_model_is_trained(tmp_path: Path, echo: CamusDataset):
    state = tmp_path / "state.safetensors"
    options = {"optimizer": "sgd", "learning_rate": 1e-2, "batch_size": 4}
    whole, parts = Threshold(), Threshold()
    history, _ = run(whole, echo, echo, epochs=2, **options)
    assert whole.threshold != 60
    kill = Changed(echo, kill_at(13, die))
    with pytest.raises(Killed):
        run(parts, kill, echo, state, epochs=2, **options)
    resumed = Threshold()
    again, _ = run(resumed, echo, echo, state, epochs=2, **options)
    assert torch.equal(resumed.threshold, whole.threshold)
    assert [epoch.validation_dice for epoch in again] == [
        epoch.validation_dice for epoch in history
    ]


def test_activation_checkpointing_needs_a_vision_transformer(echo: CamusDataset):
    with pytest.raises(ValueError, match="is for vision transformers; train without"):
        run(Threshold(), echo, echo, activation_checkpointing=True)


def test_a_learning_rate_of_nearly_zero_is_used(echo: CamusDataset):
    segmenter, before = adapted(), adapted()
    # The whole run is warm-up, to a rate that it would reach after a million steps.
    run(segmenter, echo, Subset(echo, [0]), epochs=1, warmup_steps=10**6)
    after = segmenter.state_dict()
    for name, value in before.state_dict().items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-7)


def test_batches_accumulate(echo: CamusDataset):
    """One batch of two images and two of one image, of which the loss is a mean of means."""
    ones = adapted()
    history, _ = run(ones, Subset(echo, [0, 0]), Subset(echo, [0]), batch_size=1, accumulate=2)
    twos = adapted()
    other, _ = run(twos, Subset(echo, [0, 0]), Subset(echo, [0]), batch_size=2)
    # The same image from the same point twice: the two are the same but for rounding.
    for mine, theirs in zip(history, other, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-3)
    assert history[0].loss == pytest.approx(other[0].loss, rel=1e-6)


@pytest.mark.parametrize(("points", "times"), [("1", 1), ("5", 2)])
def test_an_image_is_encoded_once_for_its_loss_and_once_for_all_points_that_correct(
    echo: CamusDataset, points: Any, times: int
):
    segmenter, one, in_training = adapted(), Subset(echo, [0]), []
    encode = segmenter.encode

    def noted(images: Tensor, frames: int = 1) -> Embedding:
        in_training.append(segmenter.training)
        return encode(images, frames)

    segmenter.encode = noted
    run(segmenter, one, one, epochs=1, points=points)
    assert in_training.count(True) == times


def test_gradients_are_clipped(echo: CamusDataset):
    segmenter = adapted()
    run(segmenter, echo, Subset(echo, [0]), epochs=1, clip_norm=1e-3)
    gradients = [each.grad for each in segmenter.parameters() if each.grad is not None]
    assert torch.nn.utils.get_total_norm(gradients) == pytest.approx(1e-3, rel=1e-3)


def test_checkpointed_blocks_give_equal_results(echo: CamusDataset):
    plain, checkpointed = adapted(), adapted()
    one = Subset(echo, [0])
    assert run(plain, echo, one, epochs=1) == run(
        checkpointed, echo, one, epochs=1, activation_checkpointing=True
    )
    assert_equal_weights(plain, checkpointed)
    assert all("forward" not in vars(block) for block in checkpointed.sam.image_encoder.blocks)


@pytest.mark.parametrize("part", [ak.parts.FeatureAdapter(at="tokens"), ak.parts.CNNBranch()])
def test_checkpointed_blocks_keep_less(part: Part):
    sam = ak.build_sam(ECHO, seed=0)
    segmenter = ak.Segmenter(ak.inject(sam, [ak.parts.Resize(64, patch_stride=8), part]))

    def kept() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            segmenter.encode(torch.zeros(2, 3, 64, 64))
        return sum(sizes)

    whole = kept()
    with checkpointed_blocks(segmenter):
        assert kept() < 0.5 * whole


def test_it_stops_when_nothing_improves(echo: CamusDataset, monkeypatch: pytest.MonkeyPatch):
    dices = iter([0.2, 0.5, 0.4, 0.5, 0.3, 0.4, 0.9])
    monkeypatch.setattr(
        "adapterkit.training.loop.dice_of_images", lambda *_, **__: torch.tensor([[next(dices)]])
    )
    one = Subset(echo, [0])
    history, best = run(adapted(), one, one, epochs=7, patience=2)
    # As good as the best counts as better: the later adapter has seen more.
    assert [round(each.validation_dice, 6) for each in history] == [0.2, 0.5, 0.4, 0.5, 0.3, 0.4]
    assert [each.epoch for each in best] == [1, 2, 4]


@pytest.mark.parametrize("points", ["2-random", "2-entropy", "2-max-distance"])
def test_two_points_train_too(echo: CamusDataset, points: str):
    two = Subset(echo, [0, 1])
    segmenter, with_one = adapted(), adapted()
    history, _ = run(segmenter, two, two, points=points)
    other, _ = run(with_one, two, two)
    assert history[0].loss != other[0].loss
    assert all(math.isfinite(each.loss) for each in history)


def test_mixed_precision_leaves_the_model_as_it_was(echo: CamusDataset):
    segmenter, two = adapted(), Subset(echo, [0, 1])
    history, _ = run(segmenter, two, two, mixed_precision="bf16")
    whole, _ = run(adapted(), two, two)
    assert history[0].loss == pytest.approx(whole[0].loss, rel=0.05)
    assert history[0].loss != whole[0].loss
    assert "forward" not in vars(segmenter)
    assert all(each.dtype == torch.float32 for each in segmenter.parameters())


class Changed(Dataset):
    """The samples of another data set, changed by a function of the index and the sample."""

    def __init__(self, samples: Dataset, change: Any):
        self.samples, self.change = samples, change

    def __len__(self) -> int:
        return len(self.samples)  # pyright: ignore[reportArgumentType]

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = dict(self.samples[index])
        self.change(index, sample)
        return sample


def test_a_loss_that_is_not_finite_stops_with_the_images_named(
    echo: CamusDataset, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(LOSSES, "samus", lambda logits, target: logits.sum() * torch.nan)
    with pytest.raises(FloatingPointError, match=rf"the loss is nan .*\['{echo[3]['name']}'\]"):
        run(adapted(), Subset(echo, [3]), Subset(echo, [0]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("accumulate", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("clip_norm", -1.0),
        ("patience", 0),
        ("warmup_steps", -1),
        ("weight_decay", -0.1),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, value: Any):
    with pytest.raises(ValueError, match=f"{name}={value}: expected"):
        Settings(**{name: value})


# Interruptions


class Killed(Exception):
    """Stands for what leaves no time to save anything."""


def kill_at(visit: int, how: Any) -> Any:
    visits = iter(range(10**6))

    def change(index: int, sample: dict[str, Any]) -> None:
        if next(visits) == visit:
            how()

    return change


def die() -> None:
    raise Killed


SETTINGS = {"epochs": 2, "batch_size": 1, "accumulate": 2, "schedule": "cosine"}


@pytest.fixture(scope="module")
def four(echo: CamusDataset) -> Dataset:
    return Subset(echo, range(4))


@pytest.fixture(scope="module")
def uninterrupted(four: Dataset) -> tuple[list[Epoch], list[Epoch], ak.Segmenter]:
    segmenter = adapted()
    return *run(segmenter, four, four, **SETTINGS), segmenter


# Eight visits, two to a step, four to an epoch. Before the first step nothing has happened.
@pytest.mark.parametrize("visit", [2, 3, 4, 7])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, four: Dataset, uninterrupted: Any, visit: int
):
    history, _, segmenter = uninterrupted
    state = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        run(adapted(), Changed(four, kill_at(visit, die)), four, state, **SETTINGS)
    # What the weights were initialised with and the generator's state make no difference.
    resumed = adapted(seed=1)
    assert run(resumed, four, four, state, **SETTINGS)[0] == history
    assert_equal_weights(resumed, segmenter)


def test_a_run_killed_in_validation_validates_again(
    tmp_path: Path, four: Dataset, uninterrupted: Any
):
    state = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        run(adapted(), four, Changed(four, kill_at(6, die)), state, **SETTINGS)
    resumed = adapted(seed=1)
    history, best = run(resumed, four, four, state, **SETTINGS)
    assert history == uninterrupted[0]
    assert best == [each for each in uninterrupted[1] if each.epoch == 2]
    assert_equal_weights(resumed, uninterrupted[2])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_where_it_is(
    tmp_path: Path, four: Dataset, uninterrupted: Any, number: signal.Signals
):
    state, handler = tmp_path / "state.safetensors", signal.getsignal(number)
    interrupt = kill_at(5, lambda: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt):
        train(
            adapted(),
            Changed(four, interrupt),
            four,
            Settings(learning_rate=1e-3, **SETTINGS),
            accelerator=make_accelerator(),
            on_improvement=lambda _: None,
            state_file=state,
            state_minutes=60,
        )
    assert signal.getsignal(number) == handler
    with safe_open(state, framework="pt") as file:
        progress = json.loads(file.metadata()["adapterkit training state"])["progress"]
    assert (progress["epoch"], progress["step"]) == (2, 1)
    resumed = adapted(seed=1)
    assert run(resumed, four, four, state, **SETTINGS)[0] == uninterrupted[0]
    assert_equal_weights(resumed, uninterrupted[2])


def test_a_finished_run_is_not_trained_again(tmp_path: Path, echo: CamusDataset):
    two, state = Subset(echo, [0, 1]), tmp_path / "state.safetensors"
    segmenter, resumed = adapted(), adapted(seed=1)
    history, _ = run(segmenter, echo, two, state)
    assert run(resumed, Changed(echo, kill_at(0, die)), two, state)[0] == history
    assert_equal_weights(resumed, segmenter)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed 0, and this one has 1"),
        ({"learning_rate": 1e-4}, "learning_rate 0.001"),
        ({"mixed_precision": "bf16"}, 'mixed precision "no"'),
    ],
)
def test_the_state_of_another_run_is_refused(
    tmp_path: Path, echo: CamusDataset, changes: dict[str, Any], message: str
):
    two, state = Subset(echo, [0, 1]), tmp_path / "state.safetensors"
    run(adapted(), two, two, state, epochs=1)
    segmenter, untouched = adapted(seed=1), adapted(seed=1)
    with pytest.raises(ValueError, match=message):
        run(segmenter, two, two, state, **{"epochs": 1, **changes})
    assert_equal_weights(segmenter, untouched)
    with pytest.raises(ValueError, match="training images 2, and this one has 8"):
        run(segmenter, echo, two, state, epochs=1)


def test_the_state_of_another_model_is_refused(tmp_path: Path, echo: CamusDataset):
    two, state = Subset(echo, [0, 1]), tmp_path / "state.safetensors"
    run(adapted(), two, two, state, epochs=1)
    without_decoder = ak.Segmenter(ak.inject_samus(ak.build_sam(ECHO, seed=0), 64))
    with pytest.raises(ValueError, match=r"another model: .*mask_decoder"):
        run(without_decoder, two, two, state, epochs=1)
    other_base = ak.build_sam(ECHO, seed=1)
    samus = ak.methods.parts_of("samus", image_size=64)
    ak.inject(other_base, [*samus, ak.parts.Train("mask_decoder")])
    with pytest.raises(ValueError, match="a run with base"):
        run(ak.Segmenter(other_base), two, two, state, epochs=1)


@pytest.mark.parametrize("damage", ["cut", "foreign", "text"])
def test_a_damaged_state_is_refused(tmp_path: Path, echo: CamusDataset, damage: str):
    two, state = Subset(echo, [0, 1]), tmp_path / "state.safetensors"
    run(adapted(), two, two, state, epochs=1)
    if damage == "cut":
        state.write_bytes(state.read_bytes()[:-100])
    elif damage == "text":
        state.write_text("nothing of the kind")
    else:
        ak.save_adapter(adapted().sam, state)
    with pytest.raises(ValueError, match="not a whole training state"):
        run(adapted(), two, two, state, epochs=1)


def test_a_full_disk_stops_with_the_file_named(
    tmp_path: Path, echo: CamusDataset, monkeypatch: pytest.MonkeyPatch
):
    two, state = Subset(echo, [0, 1]), tmp_path / "state.safetensors"

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("adapterkit.system.files.save_file", full)
    with pytest.raises(OSError, match=r"cannot write .*state.safetensors.*No space left"):
        run(adapted(), two, two, state)
    assert list(tmp_path.iterdir()) == []


def test_an_epoch_is_plain_data(tmp_path: Path, sam: Sam):
    ak.inject_samus(sam)
    epoch = dataclasses.asdict(Epoch(3, 0.5, 0.9, {"ventricle": 0.9}))
    ak.save_adapter(sam, tmp_path / "a.safetensors", training=epoch)
    assert ak.inspect_adapter(tmp_path / "a.safetensors").training == epoch


def test_an_interruption_while_an_epoch_is_saved_is_not_lost(
    tmp_path: Path, four: Dataset, uninterrupted: Any, monkeypatch: pytest.MonkeyPatch
):
    state, steps = tmp_path / "state.safetensors", iter([1, 2])

    def interrupted_saving(*arguments: Any) -> None:
        save_state(*arguments)
        if next(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("adapterkit.training.loop.save_state", interrupted_saving)
        with pytest.raises(KeyboardInterrupt):
            run(adapted(), four, four, state, **SETTINGS)
    resumed = adapted(seed=1)
    assert run(resumed, four, four, state, **SETTINGS)[0] == uninterrupted[0]
    assert_equal_weights(resumed, uninterrupted[2])


def test_the_dice_of_each_structure_is_in_the_history(echo: CamusDataset):
    history, _ = run(adapted(), echo, echo, epochs=1)
    (epoch,) = history
    assert list(epoch.structures) == list(echo.structures)
    mean = sum(epoch.structures.values()) / len(epoch.structures)
    assert epoch.validation_dice == pytest.approx(mean)
    assert f"({echo.structures[0]} {epoch.structures[echo.structures[0]]:.4f}, " in str(epoch)
