"""The recipe that pretrains the small Sam, in miniature, as a user runs it."""

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from adapterkit.promptable.stock_sam import MINI, SamConfig, load_sam
from recipes import minisam, minisam_training
from tests.processes import Process


@pytest.fixture(scope="module", autouse=True)
def precision():
    """Which accelerate keeps as it was first given in a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def short(precision):
    stages = (
        minisam_training.Stage(3, 64, 4, prompts=2, rounds=2, learning_rate=1e-3),
        minisam_training.Stage(1, 512, 1, prompts=2, rounds=3, learning_rate=1e-3),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minisam_training, "STAGES", stages)
        patch.setattr(minisam_training, "SAVE_EVERY", 1)
        yield


@pytest.fixture(scope="module")
def whole(short, tmp_path_factory):
    """The folder of a training that was not interrupted, not to be changed."""
    folder = tmp_path_factory.mktemp("minisam") / "whole"
    minisam.main(minisam.Config(out=folder))
    return folder


def test_leaves_weights_of_the_mini_sam(whole):
    sam = load_sam(whole / "mini_sam.safetensors")
    assert SamConfig.of(sam.state_dict()) == MINI
    tensors = load_file(whole / "mini_sam.safetensors").values()
    assert {each.dtype for each in tensors} == {torch.float16}


@pytest.mark.parametrize("step", [3, 4])
def test_a_resumed_training_equals_an_uninterrupted_one(whole, tmp_path, monkeypatch, step):
    cut = minisam.Config(out=tmp_path / "cut")
    step_loss, calls = minisam_training.step_loss, []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == step:
            raise KeyboardInterrupt
        return step_loss(*arguments)

    monkeypatch.setattr(minisam_training, "step_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        minisam.main(cut)
    monkeypatch.setattr(minisam_training, "step_loss", step_loss)
    minisam.main(minisam.Config(out=tmp_path / "cut", resume=True))

    expected, found = (
        load_file(folder / "mini_sam.safetensors") for folder in (whole, tmp_path / "cut")
    )
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_stages_of_one_size_draw_other_images(tmp_path, monkeypatch):
    drawn = []

    class Batches(minisam_training.Batches):
        def __init__(self, stage, numbers, *arguments):
            super().__init__(stage, numbers, *arguments)
            drawn.append(numbers)

    stage = minisam_training.Stage(2, 64, 1, prompts=1, rounds=1, learning_rate=1e-3)
    stages = (stage, replace(stage, image_size=128), replace(stage, steps=3))
    monkeypatch.setattr(minisam_training, "STAGES", stages)
    monkeypatch.setattr(minisam_training, "Batches", Batches)
    minisam.main(minisam.Config(out=tmp_path))
    assert drawn == [range(2), range(2), range(2, 5)]


def test_a_finished_folder_is_not_overwritten(whole, tmp_path):
    config = minisam.Config(out=tmp_path / "run")
    shutil.copytree(whole, config.out)
    with pytest.raises(ValueError, match="this pretraining is finished"):
        minisam.main(config)
    (config.out / "mini_sam.safetensors").unlink()
    with pytest.raises(ValueError, match="holds a pretraining: give --resume"):
        minisam.main(config)
    with pytest.raises(ValueError, match="a run with seed 0, and this one has 1"):
        minisam.main(replace(config, seed=1, resume=True))


def test_a_mistake_is_one_line(tmp_path):
    done = Process.of_module("recipes.minisam", "--resume", "--out", tmp_path)
    assert done.wait() == 1
    assert done.errors == f"error: --resume, but there is no {tmp_path / 'stage_1.safetensors'}\n"


def test_clicks_lie_in_the_region_and_know_their_side():
    generator = torch.Generator().manual_seed(0)
    target = torch.zeros(1, 3, 16, 16, dtype=torch.bool)
    target[0, :2, 2:7, 3:9] = True
    region = torch.stack([target[0, 0], ~target[0, 1], torch.zeros(16, 16, dtype=torch.bool)])[None]
    for _ in range(20):
        points, labels = minisam_training.clicks(region, target, 64, generator)
        assert labels.flatten().tolist() == [1, 0, -1]
        x, y = ((points[0, :, 0] + 0.5) / 4 - 0.5).long().unbind(-1)
        assert region[0, 0, y[0], x[0]]
        assert region[0, 1, y[1], x[1]]


def test_losses_of_planted_masks():
    target = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    target[..., :4] = True
    right = torch.where(target, 20.0, -20.0)
    logits = torch.stack([right, -right, torch.full_like(right, 20.0)], dim=2)
    losses = minisam_training.mask_losses(logits, target)[0, 0]
    assert losses[0] == pytest.approx(0, abs=1e-6)
    assert losses[1] > losses[2] > 1
    assert minisam_training.mask_iou(logits, target)[0, 0].tolist() == [1, 0, 0.5]


def test_the_learning_rate_rises_and_falls_to_zero():
    stage = minisam_training.Stage(1000, 64, 4, prompts=1, rounds=1, learning_rate=0.5)
    rates = minisam_training.learning_rates(stage)
    peak = int(np.argmax(rates))
    assert (len(rates), peak) == (1000, 20)
    assert rates[peak] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0, abs=1e-5)
    assert all(np.diff(rates[peak:]) <= 0)


@pytest.mark.slow
def test_two_processes_share_the_batches_and_resume(tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "recipes.minisam", "--length", "0.0001", "--out", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("weights in") == 1
    expected = load_file(tmp_path / "mini_sam.safetensors")
    for name in ("mini_sam", "stage_4", "stage_3", "stage_2"):
        (tmp_path / f"{name}.safetensors").unlink()
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    found = load_file(tmp_path / "mini_sam.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
