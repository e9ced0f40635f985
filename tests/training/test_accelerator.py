"""Who is told of a training: trackers."""

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from torch.utils.data import Subset

from adapterkit.data.collections.camus import CamusDataset, find_frames
from adapterkit.training.accelerator import log_to, make_accelerator
from adapterkit.training.loop import train
from adapterkit.training.settings import Settings
from tests.training.test_training import adapted


def test_tensorboard_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "adapterkit.training.accelerator._INSTALLED", {"tensorboard": lambda: False}
    )
    with pytest.raises(ValueError, match="pip install tensorboard"):
        make_accelerator(track=["tensorboard"])


def test_tensorboard_gets_loss_and_dice(tmp_path: Path, phantom: Path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    AcceleratorState._reset_state()  # Which keeps the first precision that it was given.
    accelerator = make_accelerator(track=["tensorboard"])
    one = Subset(CamusDataset(find_frames(phantom), image_size=64), [0, 1])
    log_to(tmp_path, accelerator, "echo", {"seed": 0, "clip": None})
    history = train(
        adapted(),
        one,
        one,
        Settings(epochs=2, batch_size=1),
        accelerator=accelerator,
        on_improvement=lambda _: None,
    )
    accelerator.end_training()
    written = events.EventAccumulator(str(tmp_path / "adapterkit")).Reload()
    losses = [event.value for event in written.Scalars("loss")]
    assert len(losses) == 4
    assert sum(losses[:2]) / 2 == pytest.approx(history[0].loss)
    dices = {event.step: event.value for event in written.Scalars("validation Dice")}
    assert dices == {
        i * 2: pytest.approx(each.validation_dice) for i, each in enumerate(history, 1)
    }
