"""The command `adapterkit train`, on a folder of a user's own images."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import adapterkit as ak
from adapterkit.system.lock import locked_folder
from adapterkit.training import own_data
from adapterkit.training.experiment import Experiment
from tests.conftest import Done

Command = Callable[..., Done]


def write_discs(folder: Path, images: int = 10, values: tuple[int, ...] = (255,)) -> Path:
    """Synthetic images of a bright disc, one in five empty, and their masks."""
    draw = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for i in range(images):
        rows, columns = np.mgrid[:48, :56]
        y, x = draw.uniform(14, 34, 2)
        inside = (np.hypot(rows - y, columns - x) < 9) & (i % 5 > 0)
        grey = 90 + 90 * inside + draw.normal(0, 10, inside.shape)
        mask = values[i % len(values)] * inside
        for kind, array in (("images", grey.clip(0, 255)), ("masks", mask)):
            Image.fromarray(array.astype(np.uint8)).save(folder / kind / f"scan{i}.png")
    return folder


SHORT = ("--epochs", "1", "--image-size", "64", "--batch-size", "4")


def test_a_folder_of_images_and_masks_becomes_an_adapter(tmp_path: Path, run: Command):
    data = write_discs(tmp_path / "discs")
    done = run("train", data, *SHORT, "--out", tmp_path / "run")
    assert done.status == 0, done.output
    assert "discs is of the format folders" in done.output
    assert "train: 7 groups, 7 images" in done.output
    for model in ("SAMUS+, class", "SAMUS+, 1 click", "SAMUS+, class and 1 click"):
        assert model in done.output
    folder = tmp_path / "run"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "adapter.safetensors",
        "batch.png",
        "config.json",
        "curves.png",
        "metrics.json",
        "per_image.csv",
        "per_image_1.csv",
        "per_image_3.csv",
        "per_image_box.csv",
        "per_image_class+1.csv",
        "report.html",
        "segmentations.png",
        "table.md",
    }
    config = json.loads((folder / "config.json").read_text())
    assert (config["prompts"], config["epochs"]) == ("mixed", 1)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert sorted(map(len, metrics["groups"].values())) == [1, 2, 7]
    sam = ak.load_adapter(ak.mini_sam(), folder / "adapter.safetensors")
    assert ak.Segmenter(sam).structures == ("foreground",)
    assert ak.inspect_adapter(folder / "adapter.safetensors").classes == ("foreground",)

    again = run("train", "--resume", folder)
    assert "this run is finished" in str(again.status)


@pytest.mark.usefixtures("blank_figures")
def test_in_python_and_by_a_method_with_clicks(tmp_path: Path):
    data = write_discs(tmp_path / "discs", images=6, values=(1, 2))
    run = ak.train(
        data,
        method="samed",
        options={"rank": 2},
        structures={1: "disc", 2: "disc"},
        epochs=1,
        image_size=64,
        batch_size=4,
        out=tmp_path / "run",
    )
    assert run is not None
    assert (run.folder, run.adapter) == (tmp_path / "run", tmp_path / "run" / "adapter.safetensors")
    assert list(run.metrics["test"]) == ["SAMed"]
    assert run.adapter is not None
    header = ak.inspect_adapter(run.adapter)
    assert ak.parts.LoRA(2, targets=("q", "v")) in header.parts
    assert header.classes == ("disc",)


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("set", "; did you mean options?"),
        ("epoch", "; did you mean epochs?"),
        ("of_mine", ";"),
    ],
)
def test_an_unknown_option_in_python_is_refused(option: str, meant: str):
    with pytest.raises(
        ValueError, match=re.escape(f"train has no option {option}{meant} `adapter")
    ):
        ak.train("discs", **{option: 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "samuss"), "method 'samuss': expected one of"),
        (("--method", "samed", "--prompts", "class"), "cannot be asked for a structure by name"),
        (("--set", "rank"), "--set rank: expected NAME=VALUE"),
        (("--set", "rank=2"), "method 'samus_plus' has no option 'rank'"),
        (("--method", "samed", "--set", "rank=big"), "rank='big', expected int"),
        (("--set", "image_size=64"), "--set image_size=64: the training gives the method this one"),
        (("--set", "structures=disc"), "give --structures, or leave it out"),
        (("--structures", "nodule"), "--structures nodule: expected LABEL=NAME"),
        (("--group", "patient"), "--group 'patient' finds nothing in the name"),
        (("--patients", "99"), "99 groups are asked for: discs has 10"),
        (("--epochs", "0"), "--epochs 0: expected a positive number"),
        (("--flips", "horizontal"), "--flips belongs to --augment medical"),
        (("--format", "dicoms"), "format 'dicoms': expected one of"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(
    tmp_path: Path, run: Command, options: tuple[str, ...], message: str
):
    data = write_discs(tmp_path / "discs")
    done = run("train", data, *options, "--out", tmp_path / "run")
    line = str(done.status)
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "run").exists()


def test_data_that_check_refuses_are_not_trained_on(tmp_path: Path, run: Command):
    data = write_discs(tmp_path / "discs")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(data / "masks" / "scan3.png")
    done = run("train", data, *SHORT, "--out", tmp_path / "run")
    assert "scan3.png is 5 x 5" in str(done.status)
    assert "adapterkit check" in str(done.status)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("blank_figures")
def test_results_are_summed_up_over_groups(tmp_path: Path, run: Command):
    data = write_discs(tmp_path / "discs")
    for kind in ("images", "masks"):
        for path in sorted((data / kind).iterdir()):
            patient = int(path.stem.removeprefix("scan")) // 2
            path.rename(path.with_name(f"p{patient}_{path.name}"))
    done = run("train", data, *SHORT, "--method", "samed", "--group", "p.", "--out", tmp_path / "r")
    assert done.status == 0, done
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert sorted(map(len, metrics["patients"].values())) == [1, 1, 3]
    test = metrics["test"]["SAMed"]
    assert test["groups"]["foreground"]["dice"]["std"] == 0
    assert test["groups"]["foreground"]["dice"]["mean"] == pytest.approx(
        test["images"]["foreground"]["dice"]["mean"]
    )
    rows = (tmp_path / "r" / "per_image.csv").read_text().splitlines()
    assert rows[0].startswith("image,group,structure,")
    assert [row.split(",")[1] for row in rows[1:]] == metrics["patients"]["test"] * 2


@pytest.mark.usefixtures("blank_figures")
def test_a_run_that_is_alive_is_left_alone_and_one_that_had_not_begun_says_so(
    tmp_path: Path, run: Command
):
    data, folder = write_discs(tmp_path / "discs"), tmp_path / "run"
    assert run("train", data, *SHORT, "--out", folder).status == 0
    (folder / "metrics.json").unlink()
    half_written = folder / ".table.md.part-1"
    half_written.touch()
    with locked_folder(folder):
        done = run("train", "--resume", folder)
        assert half_written.exists()
    assert f"{folder} is in use by process {os.getpid()} on the machine" in str(done.status)
    (tmp_path / "empty").mkdir()
    done = run("train", "--resume", tmp_path / "empty")
    assert "the run there had not begun when it was stopped; start it anew" in str(done.status)


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 20), (2, 10)])
def test_the_warm_up_is_a_twentieth_of_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int, steps: int
):
    planned: list[Experiment] = []
    monkeypatch.setattr(own_data, "perform", lambda experiment, *_: planned.append(experiment))
    data = write_discs(tmp_path / "discs")  # 7 of the 10 images are for training.
    ak.train(data, epochs=100, batch_size=2, accumulate=accumulate, image_size=64)
    assert planned[0].settings.warmup_steps == steps


def test_options_of_the_training_are_taken(tmp_path: Path, run: Command):
    data = write_discs(tmp_path / "discs")
    options = "--ema 0.9 --loss dice-ce --augment medical --flips horizontal --accumulate 2"
    more = "--optimizer adamw --weight-decay 0.01 --workers 1 --cache 1MB --track tensorboard"
    out = tmp_path / "run"
    done = run("train", data, *SHORT, *options.split(), *more.split(), "--out", out)
    assert done.status == 0, done.errors
    settings = json.loads((out / "metrics.json").read_text())["settings"]
    assert (settings["ema"], settings["loss"], settings["optimizer"]) == (0.9, "dice-ce", "adamw")
    assert list((out / "adapterkit").glob("events*"))
    assert (out / "batch.png").stat().st_size > 10_000
