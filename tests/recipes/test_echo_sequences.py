"""The recipe of sequences, run as a user runs it, in miniature."""

import contextlib
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState

import adapterkit as ak
from adapterkit.data.synthetic.beat import Beat
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.system.command_line import run
from recipes.echo_sequences import METHODS, Config, comparison, differences, main
from tests.models import ECHO


def recipe(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    AcceleratorState._reset_state()
    monkeypatch.setattr(sys, "argv", ["echo_sequences", *arguments])
    with contextlib.chdir(folder):
        try:
            run(main, Config)
        except SystemExit as end:
            return end.code
    return 0


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Options for three patients and a Sam that trains within seconds."""
    write_phantom(tmp_path / "echo", 3, image_size=64, beat=Beat(irregular=0))
    torch.save(ak.build_sam(ECHO, seed=0).state_dict(), tmp_path / "tiny.pth")
    said = "--data echo --checkpoint tiny.pth --image-size 64 --epochs 2 --frames 3 --batch-size 4"
    return [*said.split(), "--learning-rate", "0.1", "--labelled", "ed-es", "--out", "out"]


@pytest.mark.usefixtures("blank_figures")
def test_both_methods_are_measured_on_the_same_patients_and_a_run_goes_on(
    tmp_path: Path,
    given: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert recipe(tmp_path, monkeypatch, *given) == 0, capsys.readouterr().err
    out = tmp_path / "out"
    tables = {name: out / f"{name}_seed_0" / "patients.csv" for name in METHODS.values()}
    first, second = (pd.read_csv(path) for path in tables.values())
    assert first["patient"].to_list() == second["patient"].to_list()
    assert len(first) == 1
    assert list(first)[:5] == ["patient", "dice", "left ventricle", "myocardium", "left atrium"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics) == list(METHODS)
    text = (out / "table.md").read_text()
    assert f"| frame by frame | {100 * first['dice'][0]:.2f} |" in text
    assert text.splitlines()[0] in capsys.readouterr().out
    assert (out / f"{first['patient'][0]}.png").exists()

    (out / "metrics.json").unlink()
    kept = tables["samus_plus"].stat().st_mtime_ns
    tables["samus_plus_video"].unlink()
    (out / "samus_plus_video_seed_0" / "metrics.json").unlink()
    assert recipe(tmp_path, monkeypatch, "--resume", "out") == 0, capsys.readouterr().err
    assert tables["samus_plus"].stat().st_mtime_ns == kept
    pd.testing.assert_frame_equal(pd.read_csv(tables["samus_plus_video"]), second)
    assert (out / "table.md").read_text() == text


@pytest.mark.usefixtures("blank_figures")
def test_clicks_in_one_frame_are_compared_with_names_alone(
    tmp_path: Path,
    given: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert recipe(tmp_path, monkeypatch, *given, "--clicks") == 0, capsys.readouterr().err
    rows = pd.read_csv(tmp_path / "out" / "samus_plus_seed_0" / "patients.csv").set_index("method")
    assert list(rows.index) == ["frame by frame", "frame by frame, from clicks in one frame"]
    assert len({*rows["dice"]}) == 2
    # What is measured are all frames, though two of each sequence were learned from.
    assert (rows["jitter of the reference"].to_numpy() > 0).all()
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| over time, from clicks in one frame |" in text
    assert "Dice over time, beside frame by frame, from clicks in one frame: " in text


def test_the_comparison_pairs_patients_over_seeds():
    rows = [
        {"patient": f"p{patient}", "seed": seed, "method": method, "jitter of the reference": 0.02,
         "dice": 0.8 + 0.001 * patient + 0.01 * seed + gain, "jitter": jitter + 0.001 * patient,
         "ef": 50 + patient + error, "true ef": 50.0 + patient}
        for method, gain, jitter, error in (
            ("frame by frame", 0, 0.2, 6),
            ("over time", 0.01, 0.1, -2),
        )
        for seed in (0, 1)
        for patient in range(8)
    ]  # fmt: skip
    text = comparison(pd.DataFrame(rows))
    head, _, alone, over_time, _, dice, jitter, *_ = text.splitlines()
    assert head.startswith("|  | Dice (%) | jitter (%) | EF MAE (points) | EF bias (points)")
    assert alone.startswith("| frame by frame | 80.85 ± 0.71 | 20.35 ± 0.00 | 6.00 ± 0.00 | 6.00")
    assert over_time.startswith("| over time | 81.85 ± 0.71 | 10.35 ± 0.00 | 2.00 ± 0.00 | -2.00")
    assert dice == "Dice over time, beside frame by frame: +1.00 points, p = 0.0078"
    assert jitter == "Jitter over time, beside frame by frame: -49.1 %, p = 0.0078"
    assert "Over 8 patients, each with the mean of 2 trainings" in text


def test_where_nothing_is_found_the_rest_is_compared():
    methods = ["over time", "frame by frame"]
    found = {"patient": "patient0001", "method": methods, "dice": [0.5, 0.0]}
    nothing = pd.DataFrame({**found, "jitter": [0.1, float("nan")]})
    dice, jitter = differences(nothing, *methods)
    assert dice.endswith(": +50.00 points")
    assert jitter.endswith(": not known, as nothing was found")
    other = pd.DataFrame({**found, "patient": "patient0002", "jitter": [0.1, 0.2]})
    dice, jitter = differences(pd.concat([nothing, other]), *methods)
    assert jitter.endswith(": -50.0 %")
