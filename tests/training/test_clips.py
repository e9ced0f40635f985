"""Training on clips of sequences: of what is learned, and that it repeats and goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

import adapterkit as ak
from adapterkit.data.augmentation import MedicalAugmentation
from adapterkit.data.collections import open_collection
from adapterkit.data.dataset import SegmentationDataset
from adapterkit.data.synthetic.beat import Beat
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.evaluation.evaluation import dice_of_images, predict
from adapterkit.promptable.protocol import Embedding
from adapterkit.training.accelerator import make_accelerator
from adapterkit.training.loop import train
from adapterkit.training.settings import Settings
from adapterkit.training.state import Epoch
from tests.models import ECHO

STRUCTURES = ("left ventricle", "myocardium", "left atrium")


@pytest.fixture(scope="module")
def beating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips") / "echo"
    return write_phantom(folder, 1, image_size=64, beat=Beat())


def sequences(beating: Path, labelled: str = "ed-es", **options: Any) -> SegmentationDataset:
    records = open_collection(beating, "camus_sequences", labelled=labelled).records
    return SegmentationDataset(records, 64, **options)


class OverTime(ak.Segmenter):
    """Each frame's embedding is the mean of its own and those beside it in its sequence."""

    @property
    def reach(self) -> int:
        return 1

    def _encode(self, images: Tensor) -> Embedding:
        own = super()._encode(images)
        frames = self.frames
        of_sequences = own.image.unflatten(0, (-1, frames))
        padded = torch.cat([of_sequences[:, :1], of_sequences, of_sequences[:, -1:]], dim=1)
        mean = (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3
        return Embedding(mean.flatten(0, 1), own.image_size, own.maps)

    def encode(self, images: Tensor, frames: int = 1) -> Embedding:
        self.frames = frames
        return super().encode(images, frames)


def adapted(kind: type[ak.Segmenter] = OverTime) -> ak.Segmenter:
    torch.manual_seed(0)
    sam = ak.build_sam(ECHO, seed=0)
    # Without batch norms, through which images of a batch would know of each other.
    parts = ak.parts
    ak.inject(sam, [parts.Resize(64), parts.ClassPrompts(STRUCTURES), parts.Train("mask_decoder")])
    return kind(sam)


def run(
    segmenter: ak.Segmenter,
    data: SegmentationDataset,
    state_file: Path | None = None,
    **changes: Any,
) -> list[Epoch]:
    AcceleratorState._reset_state()
    settings = {"epochs": 2, "batch_size": 1, "frames": 4, "points": "class", **changes}
    return train(
        segmenter, data, data, Settings(**settings), accelerator=make_accelerator(),
        on_improvement=lambda epoch: None, state_file=state_file, state_minutes=0,
    )  # fmt: skip


def test_only_labelled_frames_are_asked_about(beating: Path, monkeypatch: pytest.MonkeyPatch):
    data, segmenter = sequences(beating), adapted()
    seen, asked = [], []
    encode, decode = segmenter.encode, segmenter.decode
    monkeypatch.setattr(
        segmenter,
        "encode",
        lambda images, frames=1: seen.append((len(images), frames)) or encode(images, frames),
    )
    monkeypatch.setattr(
        segmenter,
        "decode",
        lambda embedding, prompts: asked.append(len(embedding)) or decode(embedding, prompts),
    )
    monkeypatch.setattr(
        "adapterkit.training.loop.dice_of_images", lambda *_, **__: torch.ones(1, 3)
    )
    run(segmenter, data, epochs=3, batch_size=2)
    assert seen == [(8, 4)] * 3
    # Each of the two clips has one of the two labelled frames, or both.
    assert set(asked) <= {2, 3, 4}


def test_what_an_unlabelled_frame_shows_reaches_the_loss(beating: Path):
    """Through the frames beside it, and in no other way."""
    losses = []
    for kind in (ak.Segmenter, OverTime):
        for change in (0, 40):
            data = sequences(beating)

            def changed(image, labels, generator, change=change, data=data):
                # Frames whose label map is all background have none.
                return (image, labels) if labels.any() else ((image + change).clamp(0, 255), labels)

            data.augmentation = changed
            losses.append(run(adapted(kind), data, epochs=1, learning_rate=1e-6)[0].loss)
    alone, alone_changed, together, together_changed = losses
    assert alone == alone_changed
    assert together != together_changed


def test_training_on_clips_repeats_and_goes_on(
    beating: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = sequences(beating, augmentation=MedicalAugmentation(64))
    whole = adapted()
    history = run(whole, data, epochs=3)
    state, interrupted = tmp_path / "state.safetensors", adapted()
    encode, steps = interrupted.encode, []

    def fails_in_the_fourth(images: Tensor, frames: int = 1) -> Embedding:
        if interrupted.training:
            steps.append(frames)
            if len(steps) == 4:
                raise RuntimeError("the machine is gone")
        return encode(images, frames)

    monkeypatch.setattr(interrupted, "encode", fails_in_the_fourth)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        run(interrupted, data, state, epochs=3)
    again = adapted()
    assert run(again, data, state, epochs=3) == history
    other = again.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in whole.state_dict().items())


def test_sequences_are_evaluated_whole(beating: Path):
    """In pieces to the same result, frame by frame to another."""
    data, segmenter = sequences(beating, "all"), adapted()
    pieces = {
        size: torch.cat([each.logits for each in predict(segmenter, data, seed=0, points="class",
                                                          batch_size=size)])
        for size in (3, 100)
    }  # fmt: skip
    torch.testing.assert_close(pieces[3], pieces[100], rtol=1e-4, atol=1e-4)
    alone = predict(adapted(ak.Segmenter), data, seed=0, points="class")
    assert not torch.allclose(torch.cat([each.logits for each in alone]), pieces[3], atol=1e-2)


def test_unlabelled_frames_are_not_scored(beating: Path):
    sparse = sequences(beating)
    dice = dice_of_images(adapted(), sparse, seed=0, points="class")
    everything = dice_of_images(adapted(), sequences(beating, "all"), seed=0, points="class")
    assert len(dice) == sum(sparse.labelled) == 4
    torch.testing.assert_close(dice, everything[sparse.labelled])
