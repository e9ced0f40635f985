"""Who is told of a training: trackers."""

from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils.data import Subset

from adapterkit.data.collections.camus import CamusDataset, find_frames
from adapterkit.training.accelerator import log_to, make_accelerator
from adapterkit.training.choices import Tracker
from adapterkit.training.loop import Epoch, train
from adapterkit.training.settings import Settings
from tests.training.test_training import adapted


def test_tensorboard_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "adapterkit.training.accelerator._INSTALLED", {"tensorboard": lambda: False}
    )
    with pytest.raises(ValueError, match="pip install tensorboard"):
        make_accelerator(track=["tensorboard"])


@pytest.fixture
def images(phantom: Path) -> Subset:
    return Subset(CamusDataset(find_frames(phantom), image_size=64), [0, 1])


def trained(images: Subset, folder: Path, tracker: Tracker) -> tuple[Accelerator, list[Epoch]]:
    """What tells a tracker of two epochs of two steps, and these."""
    AcceleratorState._reset_state()  # Which keeps the first precision that it was given.
    accelerator = make_accelerator(track=[tracker])
    log_to(folder, accelerator, "echo", {"seed": 0, "clip": None})
    history = train(
        adapted(),
        images,
        images,
        Settings(epochs=2, batch_size=1),
        accelerator=accelerator,
        on_improvement=lambda _: None,
    )
    return accelerator, history


def check(losses: list[float], dices: dict[int, float], history: list[Epoch]) -> None:
    assert len(losses) == 4
    assert sum(losses[:2]) / 2 == pytest.approx(history[0].loss)
    assert dices == {
        i * 2: pytest.approx(each.validation_dice) for i, each in enumerate(history, 1)
    }


def test_tensorboard_gets_loss_and_dice(tmp_path: Path, images: Subset):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accelerator, history = trained(images, tmp_path, "tensorboard")
    accelerator.end_training()
    written = events.EventAccumulator(str(tmp_path / "adapterkit")).Reload()
    dices = {event.step: event.value for event in written.Scalars("validation Dice")}
    check([event.value for event in written.Scalars("loss")], dices, history)


def test_mlflow_gets_loss_and_dice(tmp_path: Path, images: Subset, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    accelerator, history = trained(images, tmp_path, "mlflow")
    accelerator.end_training()
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'adapterkit'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "echo"
    assert run.data.params["seed"] == "0"
    losses, dices = (
        client.get_metric_history(run.info.run_id, name) for name in ("loss", "validation Dice")
    )
    check([each.value for each in losses], {each.step: each.value for each in dices}, history)


def test_wandb_gets_loss_and_dice_offline(
    tmp_path: Path, images: Subset, monkeypatch: pytest.MonkeyPatch
):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    accelerator, history = trained(images, tmp_path, "wandb")
    run: Any = accelerator.get_tracker("wandb", unwrap=True)
    assert run.name == "echo"
    assert run.config["seed"] == 0
    accelerator.end_training()
    wandb.teardown()  # Its own process writes the file.
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    written = file.read_bytes()
    for epoch in history:
        assert str(epoch.validation_dice).encode() in written
        assert str(epoch.loss)[:6].encode() in written
