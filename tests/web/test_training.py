"""Tests of training on what was accepted: really, and with a program that stands in for it."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import adapterkit as ak
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.web import rle, training_job
from adapterkit.web.model import Model
from adapterkit.web.training_job import TrainingJob, load_trained
from adapterkit.web.training_record import Job, TrainingWish, write_job
from adapterkit.web.worklist import WorkList
from adapterkit.web.workspace import Workspace
from tests.models import ECHO
from tests.web.served import PIXELS, make_model, write_images

STAND_IN = """
import json, signal, sys, time
from pathlib import Path
from adapterkit.system.lock import locked_folder
options = sys.argv[1:]
folder = Path(options[options.index("--resume" if "--resume" in options else "--out") + 1])
folder.mkdir(exist_ok=True)
print("it begins", flush=True)
with locked_folder(folder):
    (folder / "training_state.safetensors").touch()
    while not (folder / "go on").exists():
        time.sleep(0.05)
    if (folder / "go on").read_text():
        sys.exit((folder / "go on").read_text())
    (folder / "metrics.json").write_text(json.dumps({"history": [
        {"epoch": 1, "loss": 0.5, "validation_dice": 0.25}]}))
"""
"""Trains until there is a file "go on"; what is in it, is its last word."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    make_model(folder)
    return folder


@pytest.fixture
def model(files: Path) -> Model:
    """It knows structures by name by the adapter in use, "named"."""
    predictor = ak.Predictor(ak.build_sam(ECHO, seed=0))
    name = predictor.load(files / "named.safetensors")
    return Model(predictor, {name: files / "named.safetensors"})


@pytest.fixture
def work(tmp_path: Path, model: Model) -> Workspace:
    """Of three pictures, all accepted: a part of each as they are bright."""
    work = Workspace(WorkList(write_images(tmp_path / "scans")), model, "anna")
    for k in range(3):
        mask = rle.encode(np.roll(PIXELS, k) > 128)
        work.frames.paint(f"scan{k}", 0, 1, mask, 0)
        work.accept(f"scan{k}", 1)
    return work


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder of a first training by the program that stands in."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    command = [sys.executable, str(tmp_path / "stand_in.py")]
    monkeypatch.setattr(training_job, "_command", lambda: command)
    return tmp_path / "scans/.adapterkit/runs/001"


@pytest.fixture
def job(work: Workspace, model: Model) -> Iterator[TrainingJob]:
    job = TrainingJob(work, model)
    yield job
    job.close()


def wait(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def told(job: TrainingJob) -> dict:
    found = job.told()
    assert found is not None
    return found


@pytest.mark.slow
def test_accepted_images_become_an_adapter_that_is_offered(
    work: Workspace, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Really, as `adapterkit train` does it, from a checkpoint."""
    torch.save(ak.build_sam(ECHO, seed=0).state_dict(), tmp_path / "echo.pth")
    job = TrainingJob(work, model, tmp_path / "echo.pth")
    # What was accepted is not what any adapter says; the new one counts as better all the same.
    dices = iter([0.5, 0.25])
    measure = training_job.dice_of
    measured = []
    monkeypatch.setattr(
        training_job, "dice_of", lambda *given: measured.append(measure(*given)) or next(dices)
    )
    job.start(TrainingWish(epochs=1, image_size=64, learning_rate=1e-3))
    assert told(job)["status"] == "running"
    with pytest.raises(ValueError, match="a training runs already"):
        job.start(TrainingWish())
    wait(lambda: told(job)["status"] != "running")
    done = told(job)
    assert done["status"] == "done", done["log_tail"]
    assert (done["dice"], done["dice_before"], done["offer"]) == (0.5, 0.25, True)
    assert all(0 <= dice <= 1 for dice in measured)
    assert (done["epoch"], done["epochs"], done["images"]) == (1, 1, 3)
    assert done["curve"][0].keys() == {"epoch", "loss", "dice"}
    assert work.adapter == "named"
    job.use()
    assert (work.adapter, model.names) == ("trained_001", ("named", "trained_001"))
    assert model.classes("trained_001") == ("atrium", "wall")
    # Another server has it too, and uses it.
    folder = work.worklist.own
    again = Model(ak.Predictor(ak.build_sam(ECHO, seed=0)))
    assert load_trained(folder, again) == []
    assert Workspace(WorkList(work.worklist.folder), again).adapter == "trained_001"
    config = json.loads((folder / "runs/001/config.json").read_text())
    assert (config["format"], config["method"]) == ("annotated", "samus_plus")
    assert not read_label_map(work.worklist.images["scan0"].mask or "").frames.max() > 2


def test_a_training_is_stopped_and_goes_on(job: TrainingJob, stand_in: Path, files: Path):
    job.start(TrainingWish())
    wait(lambda: (stand_in / "training_state.safetensors").exists())
    assert "it begins" in told(job)["log_tail"]
    job.stop()
    assert told(job)["message"] == "The training was stopped and can go on."
    assert told(job)["status"] == "stopped"
    with pytest.raises(ValueError, match="no training runs"):
        job.stop()
    job.resume()
    assert told(job)["status"] == "running"
    shutil.copy(files / "named.safetensors", stand_in / "adapter.safetensors")
    (stand_in / "go on").touch()
    wait(lambda: told(job)["status"] != "running")
    # It is the adapter in use itself, and so not better.
    assert told(job)["status"] == "done"
    assert told(job)["dice"] == told(job)["dice_before"]
    assert not told(job)["offer"]
    assert "not better, so nothing changes" in told(job)["message"]
    assert job._model.names == ("named",)
    assert not [*(stand_in.parents[1] / "adapters").iterdir()]


def test_a_failure_says_why(job: TrainingJob, stand_in: Path):
    job.start(TrainingWish())
    wait(lambda: stand_in.exists())
    (stand_in / "go on").write_text("the loss is not finite")
    wait(lambda: told(job)["status"] != "running")
    assert (told(job)["status"], told(job)["message"]) == ("failed", "the loss is not finite")


def test_a_measurement_that_breaks_ends_the_training(
    job: TrainingJob, stand_in: Path, files: Path, monkeypatch: pytest.MonkeyPatch
):
    def dice_of(*given: object) -> float:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(training_job, "dice_of", dice_of)
    printed: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda each: printed.append(str(each.exc_value)))
    job.start(TrainingWish())
    wait(lambda: (stand_in / "training_state.safetensors").exists())
    shutil.copy(files / "named.safetensors", stand_in / "adapter.safetensors")
    (stand_in / "go on").touch()
    wait(lambda: told(job)["status"] != "running")
    assert told(job)["status"] == "failed"
    assert "could not be measured" in told(job)["message"]
    wait(lambda: printed == ["a fault of ours"])


def test_a_server_finds_the_training_of_one_that_was_killed(
    work: Workspace, model: Model, stand_in: Path, files: Path
):
    stand_in.parent.mkdir(parents=True)
    command = [*training_job._command(), "--out", str(stand_in)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        wait(lambda: (stand_in / "training_state.safetensors").exists())
        own = work.worklist.own
        running = Job(1, "running", 3, 1, ("scan0",), "named", process.pid)
        write_job(own, running)
        found = TrainingJob(work, model)
        assert told(found)["status"] == "running"
        shutil.copy(files / "named.safetensors", stand_in / "adapter.safetensors")
        (stand_in / "go on").touch()
        wait(lambda: told(found)["status"] == "done")
    # One that has ended with its server can go on.
    (stand_in / "metrics.json").unlink()
    write_job(own, running)
    ended = TrainingJob(work, model)
    wait(lambda: told(ended)["status"] != "running")
    assert told(ended)["message"] == "The training was stopped and can go on."


def test_the_end_of_the_server_stops_the_training(job: TrainingJob, stand_in: Path):
    job.start(TrainingWish())
    wait(lambda: (stand_in / "training_state.safetensors").exists())
    job.close()
    assert told(job)["status"] == "stopped"


def test_what_is_offered_can_be_dismissed(
    job: TrainingJob, stand_in: Path, files: Path, monkeypatch: pytest.MonkeyPatch
):
    dices = iter([0.5, None])
    monkeypatch.setattr(training_job, "dice_of", lambda *given: next(dices))
    stand_in.mkdir(parents=True)
    shutil.copy(files / "named.safetensors", stand_in / "adapter.safetensors")
    (stand_in / "go on").touch()
    job.start(TrainingWish())
    # The folder was there: the next number is taken.
    wait(lambda: (stand_in.parent / "002").exists())
    shutil.copy(files / "named.safetensors", stand_in.parent / "002/adapter.safetensors")
    (stand_in.parent / "002/go on").touch()
    wait(lambda: told(job)["status"] != "running")
    assert told(job)["offer"]
    job.dismiss()
    assert told(job)["message"] == "trained_002 was dismissed."
    assert job._model.names == ("named",)
    with pytest.raises(ValueError, match="no adapter is offered"):
        job.use()
