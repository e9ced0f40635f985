"""The recipe, run as a user runs it."""

import contextlib
import csv
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import adapterkit as ak
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.system.command_line import run
from adapterkit.training import loop
from recipes.samus_camus import Config, main
from tests.models import ECHO
from tests.processes import ROOT, Process

FILES = {
    "adapter.safetensors",
    "config.json",
    "curves.png",
    "metrics.json",
    "per_image.csv",
    "batch.png",
    "report.html",
    "per_image_zero_shot.csv",
    "segmentations.png",
    "table.md",
    "patients.csv",
}
IF_MEASURED = {"agreement.png"}
"""What is missing where a hardly trained model finds no ventricle."""
STRUCTURES = ["left ventricle", "myocardium", "left atrium"]


@dataclass
class Done:
    status: int
    output: str
    errors: str


@pytest.fixture
def recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """The recipe in this process and an empty folder, which takes a fraction of the time."""

    def call(*arguments: str | Path) -> Done:
        AcceleratorState._reset_state()
        monkeypatch.setattr(sys, "argv", ["samus_camus", *map(str, arguments)])
        status, message = 0, ""
        with contextlib.chdir(tmp_path):
            try:
                run(main, Config)
            except SystemExit as end:
                # As Python does: text goes to the errors and is a failure.
                status, message = (
                    (1, end.code) if isinstance(end.code, str) else (end.code or 0, "")
                )
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err + (message and f"{message}\n"))

    return call


ON_THE_CPU = {"ACCELERATE_USE_CPU": "true"}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data") / "echo", patients=4, image_size=64)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a Sam that trains within seconds."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(ak.build_sam(ECHO, seed=0).state_dict(), path)
    return path


def test_it_leaves_adapter_metrics_table_and_figures(
    tmp_path: Path, phantom: Path, checkpoint: Path, recipe
):
    arguments = "--data", phantom, "--checkpoint", checkpoint, "--no-samus-plus"
    done = recipe(*arguments, "--epochs", "2", "--out", "run")
    assert done.status == 0, done.errors
    folder = tmp_path / "run"
    assert {each.name for each in folder.iterdir()} - IF_MEASURED == FILES
    config = json.loads((folder / "config.json").read_text())
    assert (config["learning_rate"], config["train_decoder"]) == (1e-4, False)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert len(metrics["history"]) == 2
    patients = metrics["patients"]
    assert sorted(map(len, patients.values())) == [1, 1, 2]
    assert len({name for names in patients.values() for name in names}) == 4
    assert list(metrics["test"]) == ["zero-shot", "SAMUS"]
    for results in metrics["test"].values():
        assert list(results) == ["images", "patients", "view", "phase"]
        assert list(results["images"]) == [*STRUCTURES, "mean"]
        assert list(results["view"]) == ["2CH", "4CH"]
        assert list(results["phase"]["ED"]) == [*STRUCTURES, "mean"]
        assert "hausdorff_mm" in results["patients"]["mean"]
    assert f"<title>SAMUS on {phantom}</title>" in (folder / "report.html").read_text()
    table = (folder / "table.md").read_text()
    for word in ("tiny.pth", "1 patients, 4 images", "## view 4CH", "## phase ES", "HD (mm)"):
        assert word in table
    assert "## Ejection fraction and volumes, against the reference masks" in table
    hearts = metrics["hearts"]["SAMUS"]
    with (folder / "patients.csv").open() as file:
        (heart,) = csv.DictReader(file)
    assert [heart["patient"]] == patients["test"]
    assert 0 < float(heart["ef_reference"]) < 100
    if "ef" in hearts:
        off = float(heart["ef"]) - float(heart["ef_reference"])
        assert hearts["ef"]["bias"]["value"] == pytest.approx(off, abs=1e-3)
        assert hearts["ef"]["bias"]["low"] is None  # Of one patient.
    for line in ("| zero-shot | left atrium |", "| SAMUS | mean |"):
        assert line in done.output
        assert line in table

    rows = list(csv.DictReader((folder / "per_image.csv").read_text().splitlines()))
    assert len(rows) == 4 * 3
    assert {row["patient"] for row in rows} == set(patients["test"])
    mean = sum(float(row["dice"]) for row in rows) / len(rows)
    found = metrics["test"]["SAMUS"]["images"]["mean"]["dice"]["mean"]
    assert found == pytest.approx(mean, abs=1e-5)

    sam = ak.load_adapter(ak.load_sam(checkpoint), folder / "adapter.safetensors")
    assert sam.image_encoder.img_size == 64
    header = ak.inspect_adapter(folder / "adapter.safetensors")
    assert list(header.classes) == STRUCTURES
    assert header.training["epoch"] in (1, 2)

    finished = recipe("--resume", "run")
    assert finished.errors == ("error: --resume run: this run is finished; its results are there\n")


@pytest.mark.usefixtures("blank_figures")
def test_without_data_and_checkpoint_it_says_what_it_uses(
    tmp_path: Path, recipe, monkeypatch: pytest.MonkeyPatch
):
    def small(folder: Path, patients: int) -> Path:
        return write_phantom(folder, patients=patients, image_size=32)

    monkeypatch.setattr("adapterkit.data.synthetic.phantom.write_phantom", small)
    done = recipe("--epochs", "1", "--patients", "3", "--no-zero-shot")
    assert done.status == 0, done.errors
    (folder,) = (tmp_path / "runs" / "samus_camus").iterdir()
    table = (folder / "table.md").read_text()
    for word in ("SYNTHETIC", "adapterkit's small SAM"):
        assert word in done.output
        assert word in table
    rows = [line.split(" | ")[0][2:] for line in done.output.splitlines() if " | mean | " in line]
    assert rows == ["SAMUS+", "SAMUS", "SAMUS+, by name"]
    assert "| SAMUS+, by name | mean |" in table
    for adapter in (folder / "adapter.safetensors", folder / "samus_plus" / "adapter.safetensors"):
        assert ak.load_adapter(ak.mini_sam(), adapter).image_encoder.img_size == 128


@pytest.mark.usefixtures("blank_figures")
def test_samus_plus_beside_it_is_not_trained_again(
    tmp_path: Path, phantom: Path, checkpoint: Path, recipe, monkeypatch: pytest.MonkeyPatch
):
    arguments = "--data", phantom, "--checkpoint", checkpoint, "--epochs", "1"
    trained: list[Path] = []
    interrupted_in = "samus_plus"

    def save_state(path: Path, *rest: Any, _save: Any = loop.save_state, **options: Any) -> None:
        _save(path, *rest, **options)
        trained.append(path.parent)
        if path.parent.name == interrupted_in:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_state", save_state)
    told = "interrupted; go on with --resume run\n"
    assert recipe(*arguments, "--out", "run").errors == told
    interrupted_in = "run"
    assert recipe("--resume", "run").errors == told
    monkeypatch.undo()
    done = recipe("--resume", "run")
    assert done.status == 0, done.errors
    assert trained == [Path("run") / "samus_plus", Path("run")]
    assert recipe(*arguments, "--out", "whole").status == 0
    for file in ("table.md", "per_image.csv", "samus_plus/per_image.csv"):
        assert (tmp_path / "run" / file).read_text() == (tmp_path / "whole" / file).read_text()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(metrics["test"]) == ["zero-shot", "SAMUS", "SAMUS+, by name"]


@pytest.mark.usefixtures("blank_figures")
def test_the_releases_own_split_is_used(tmp_path: Path, checkpoint: Path, recipe):
    data = write_phantom(tmp_path / "echo", patients=4, image_size=64)
    parts = {"training": [3, 1, 9], "validation": [4], "testing": [2, 8]}
    (data / "database_split").mkdir(exist_ok=True)
    for name, numbers in parts.items():
        listed = "".join(f"patient{number:04d}\n" for number in numbers)
        (data / "database_split" / f"subgroup_{name}.txt").write_text(listed)
    arguments = "--data", data, "--checkpoint", checkpoint, "--split", "release", "--no-zero-shot"
    done = recipe(*arguments, "--no-samus-plus", "--epochs", "1", "--out", "run")
    assert done.status == 0, done.errors
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["patients"] == {
        "train": ["patient0001", "patient0003"],
        "validation": ["patient0004"],
        "test": ["patient0002"],
    }


# Interruptions

TRAINING = [
    "--epochs", "10", "--batch-size", "2", "--learning-rate", "1e-3", "--train-decoder",
    "--augment", "--points", "2-max-distance", "--schedule", "cosine", "--no-samus-plus",
]  # fmt: skip


INTERRUPTING = """
import os, random, runpy, threading, time
from adapterkit.training import loop

saved_at = []

def save(*arguments, _save=loop.save_state, **options):
    _save(*arguments, **options)
    saved_at.append(time.monotonic())
    if len(saved_at) == 2:
        after = random.uniform(0, saved_at[1] - saved_at[0])
        threading.Timer(after, os.kill, (os.getpid(), {number})).start()

loop.save_state = save
runpy.run_module("recipes.samus_camus", run_name="__main__", alter_sys=True)
"""


def interrupted(number: signal.Signals, folder: Path, *arguments: str | Path) -> tuple[int, str]:
    """Start the recipe, and end it at a random moment of its second or third epoch."""
    code = INTERRUPTING.format(number=int(number))
    process = Process(code, *arguments, folder=folder.parent, environment=ON_THE_CPU)
    status = process.wait()
    assert not (folder / "metrics.json").exists(), "it was faster than this test"
    return status, process.errors


@pytest.mark.usefixtures("blank_figures")
def test_a_run_interrupted_and_killed_goes_on_to_the_same_result(
    tmp_path: Path, phantom: Path, checkpoint: Path, recipe
):
    arguments = ["--data", phantom, "--checkpoint", checkpoint, *TRAINING]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    told = interrupted(signal.SIGINT, stopped, *arguments, "--out", "stopped")
    assert told == (130, "interrupted; go on with --resume stopped\n")
    assert interrupted(signal.SIGKILL, stopped, "--resume", "stopped") == (-signal.SIGKILL, "")
    # What a kill in the midst of writing leaves.
    (stopped / ".training_state.part-x3d").mkdir()
    (stopped / ".training_state.part-x3d" / ".tmpCf3Woj").write_text("half")
    (stopped / ".mine").write_text("kept")

    assert recipe(*arguments, "--out", "whole").status == 0
    done = recipe("--resume", "stopped")
    assert done.status == 0, done.errors
    assert {each.name for each in stopped.iterdir()} - IF_MEASURED == {*FILES, ".mine"}
    for name in ("per_image.csv", "per_image_zero_shot.csv", "table.md"):
        assert (stopped / name).read_text() == (whole / name).read_text()
    expected, found = (load_file(each / "adapter.safetensors") for each in (whole, stopped))
    assert list(expected) == list(found)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    expected, found = (json.loads((each / "metrics.json").read_text()) for each in (whole, stopped))
    assert expected["history"] == found["history"]
    assert expected["test"] == found["test"]


@pytest.mark.slow
def test_it_runs_in_two_processes(tmp_path: Path, phantom: Path, checkpoint: Path):
    # accelerate has no way of its own to start processes on one machine without GPUs.
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "0")  # fmt: skip
    arguments = "--data", phantom, "--checkpoint", checkpoint, "--epochs", "2", "--batch-size", "2"
    arguments = *arguments, "--out", "run"
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "recipes.samus_camus", *map(str, arguments)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **ON_THE_CPU},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = {each.name for each in (tmp_path / "run").iterdir()}
    assert found - IF_MEASURED == {*FILES, "samus_plus"}
    assert done.stdout.count("results in run\n") == 1
    assert (
        len(list(csv.DictReader((tmp_path / "run" / "per_image.csv").read_text().splitlines())))
        == 4 * 3
    )
    ak.load_adapter(ak.load_sam(checkpoint), tmp_path / "run" / "adapter.safetensors")


# Mistakes


def no_sam(folder: Path) -> list[str]:
    torch.save({"weight": torch.zeros(2)}, folder / "resnet.pth")
    return ["--checkpoint", "resnet.pth"]


def full_folder(folder: Path) -> list[str]:
    (folder / "run").mkdir()
    (folder / "run" / "notes.txt").write_text("mine")
    return ["--out", "run"]


def empty_folder(folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    return ["--data", "empty"]


def another_recipes_run(folder: Path) -> list[str]:
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text('{"colour": "red"}')
    return ["--resume", "other"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda folder: ["--data", "absent"], "absent"),
        (empty_folder, "empty"),
        (lambda folder: ["--checkpoint", "absent.pth"], "no checkpoint at absent.pth"),
        (no_sam, "resnet.pth is not a checkpoint of a segment_anything Sam"),
        (full_folder, "--out run exists and is not an empty folder"),
        (lambda folder: ["--epochs", "-1"], "--epochs -1: expected a positive number"),
        (lambda folder: ["--patience", "0"], "patience=0: expected a positive number"),
        (lambda folder: ["--patients", "2"], "3"),
        (lambda folder: ["--image-size", "100"], "multiple of the patch stride"),
        (
            lambda folder: ["--split", "release"],
            "states no split of its own: expected a random one",
        ),
        (lambda folder: ["--resume", "absent"], "--resume absent: expected the folder of a run"),
        (another_recipes_run, "config.json is not this recipe's configuration: 'colour'"),
    ],
)
def test_a_mistake_is_one_line_and_a_failure(
    tmp_path: Path, phantom: Path, recipe, arguments: Any, message: str
):
    given = arguments(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    data = [] if {"--data", "--resume"} & set(given) else ["--data", phantom]
    done = recipe(*data, *given)
    assert done.status == 1
    assert done.errors.startswith("error: ")
    assert message in done.errors
    assert done.errors.count("\n") == 1
    written = [each for each in sorted(tmp_path.rglob("*")) if each.is_file()]
    assert written == [each for each in before if each.is_file()]


def test_resume_takes_no_other_option(recipe):
    done = recipe("--resume", "run", "--epochs", "3")
    assert done.errors == (
        "error: --resume goes on as the run was configured; drop the other options\n"
    )


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    tmp_path: Path, phantom: Path, checkpoint: Path, recipe
):
    arguments = "--data", phantom, "--checkpoint", checkpoint, "--epochs", "1", "--no-samus-plus"
    arguments = *arguments, "--out", "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        done = recipe(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert done.status == 1
    assert done.errors.startswith("error: cannot write run/batch.png: ")
    assert done.errors.count("\n") == 1
    left = {each.name for each in (tmp_path / "run").iterdir()}
    assert left == {"config.json", "per_image_zero_shot.csv"}
    # With room again, it goes on.
    assert recipe("--resume", "run").status == 0
    assert {each.name for each in (tmp_path / "run").iterdir()} - IF_MEASURED == FILES


def test_a_failure_has_no_traceback(tmp_path: Path):
    process = Process.of_module("recipes.samus_camus", "--data", "absent", folder=tmp_path)
    assert process.wait() == 1
    assert process.errors.startswith("error: absent does not exist")
    assert process.errors.count("\n") == 1


def test_help_names_every_option(recipe):
    done = recipe("--help")
    assert done.status == 0
    for name in Config.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in done.output
    assert done.output.count("\n") < 120
