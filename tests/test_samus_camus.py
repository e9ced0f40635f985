"""The recipe, run as a user runs it."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from segment_anything import build_sam_vit_b

import adapterkit as ak
from adapterkit.data.phantom import write_phantom
from adapterkit.sam import SMALL

ROOT = Path(__file__).parents[1]


def recipe(cwd: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "recipes.samus_camus", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data") / "echo", patients=4, image_size=64)


def test_it_leaves_adapter_metrics_table_and_figures(tmp_path: Path, phantom: Path):
    done = recipe(tmp_path, "--data", phantom, "--epochs", "2", "--out", "run")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert {each.name for each in run.iterdir()} == {
        "adapter.safetensors",
        "config.json",
        "curves.png",
        "metrics.json",
        "per_image.csv",
        "per_image_zero_shot.csv",
        "segmentations.png",
        "table.md",
    }
    metrics = json.loads((run / "metrics.json").read_text())
    assert len(metrics["history"]) == 2
    patients = metrics["patients"]
    assert sorted(map(len, patients.values())) == [1, 1, 2]
    assert len({name for names in patients.values() for name in names}) == 4
    for results in metrics["test"].values():
        assert list(results) == ["left ventricle", "myocardium", "left atrium", "mean"]
    table = (run / "table.md").read_text()
    assert table.splitlines()[0] in done.stdout
    for word in ("zero-shot", "RANDOM weights", "trained mask decoder", "left atrium"):
        assert word in table

    rows = list(csv.DictReader((run / "per_image.csv").open()))
    assert len(rows) == 4 * 3
    test_patient = patients["test"][0]
    assert all(row["image"].startswith(test_patient) for row in rows)
    mean = sum(float(row["dice"]) for row in rows) / len(rows)
    method = list(metrics["test"])[-1]
    assert metrics["test"][method]["mean"]["dice"]["mean"] == pytest.approx(mean, abs=1e-5)

    sam = ak.load_adapter(ak.build_sam(SMALL, seed=0), run / "adapter.safetensors")
    assert sam.image_encoder.img_size == 128
    header = ak.inspect_adapter(run / "adapter.safetensors")
    assert header.classes == ("left ventricle", "myocardium", "left atrium")
    assert header.training["epoch"] in (1, 2)


def test_without_data_it_makes_its_own(tmp_path: Path):
    done = recipe(tmp_path, "--epochs", "1", "--patients", "3", "--no-zero-shot")
    assert done.returncode == 0, done.stderr
    assert "SYNTHETIC" in done.stdout
    (run,) = (tmp_path / "runs" / "samus_camus").iterdir()
    assert "SYNTHETIC" in (run / "table.md").read_text()


def test_a_vit_b_checkpoint_becomes_samus_as_published(tmp_path: Path, phantom: Path):
    torch.save(build_sam_vit_b().state_dict(), tmp_path / "sam_vit_b_01ec64.pth")
    done = recipe(
        tmp_path, "--data", phantom, "--checkpoint", "sam_vit_b_01ec64.pth", "--image-size", "64",
        "--epochs", "1", "--batch-size", "4", "--no-zero-shot", "--out", "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["learning_rate"], config["train_decoder"]) == (1e-4, False)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(metrics["test"]) == ["SAMUS"]
    # The tables of relative positions are shorter on the 8x8 tokens of 64 pixels.
    assert metrics["trained_parameters"] == 39_653_120 - 32_256 + 4 * 2 * 15 * 64 + 2 * 5_309_952


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda folder: ["--data", "absent"], "absent"),
        (empty_folder, "empty"),
        (lambda folder: ["--checkpoint", "absent.pth"], "no checkpoint at absent.pth"),
        (no_sam, "resnet.pth is not a checkpoint of a segment_anything Sam"),
        (full_folder, "--out run exists and is not an empty folder"),
        (lambda folder: ["--epochs", "-1"], "--epochs -1: expected a positive number"),
        (lambda folder: ["--patients", "2"], "3"),
        (lambda folder: ["--image-size", "100"], "multiple of the patch stride"),
    ],
)
def test_a_mistake_is_one_line_and_a_failure(
    tmp_path: Path, phantom: Path, arguments, message: str
):
    given = arguments(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    data = [] if "--data" in given else ["--data", phantom]
    done = recipe(tmp_path, *data, *given, "--no-zero-shot")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    written = [each for each in sorted(tmp_path.rglob("*")) if each.is_file()]
    assert written == [each for each in before if each.is_file()]


def test_help_fits_a_screen():
    done = recipe(ROOT, "--help")
    assert done.returncode == 0
    assert "--checkpoint" in done.stdout
    assert done.stdout.count("\n") < 80
