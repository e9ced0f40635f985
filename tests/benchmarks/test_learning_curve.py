"""The learning curve in miniature, run as a user runs it."""

import csv
from pathlib import Path

import pytest

from benchmarks import learning_curve
from benchmarks.compare.results import read_results
from benchmarks.compare.setting import data_of, read_setting
from benchmarks.compare.systems import SYSTEMS
from tests.benchmarks.test_compare import Compare, compare, content, echo

__all__ = ["compare", "echo"]  # Fixtures.


@pytest.mark.usefixtures("blank_figures")
def test_each_number_of_patients_has_as_many_steps_and_runs_go_on(
    tmp_path: Path,
    echo: Path,
    compare: Compare,
):
    options = "--data", echo, "--methods", "unet", "--steps", "2", "--epochs", "1"
    options = *options, "--training-patients", "1", "2", "315", "--out", "out"
    done = compare(*options, program=learning_curve)
    assert done.status == 0, done.errors
    # Two of four patients are for training; 315 becomes all of them.
    folders = sorted(path.name for path in (tmp_path / "out").glob("patients_*"))
    assert folders == ["patients_1", "patients_2"]
    assert "2 runs to do" in done.output
    rows = [line.split(" | ") for line in done.output.splitlines() if line[:4] in ("| 1 ", "| 2 ")]
    assert [row[1] for row in rows] == ["2", "2"]
    for count, row in zip((1, 2), rows, strict=True):
        folder = tmp_path / "out" / f"patients_{count}"
        setting = read_setting(folder)
        collection, split = data_of(setting)
        assert len(split.train) == count
        assert setting.repeats * count == 4
        assert setting.prompts_of(SYSTEMS["samus-plus"]) == ("class",)
        assert len({record.name for record in collection.records}) == len(collection.records)
        (found,) = read_results(folder, setting)
        assert found.finished[0].metrics["images"]["train"] == 16
        assert row[2].rstrip(" |") == f"{100 * found.over_seeds('dice')[0]:.2f}"
        tests = csv.DictReader((folder / "results.csv").read_text().splitlines())
        assert {each["system"] for each in tests} == {"unet"}
    assert (tmp_path / "out" / "learning_curve.png").stat().st_size > 5_000

    before = content(tmp_path / "out")
    again = compare(*options, program=learning_curve)
    assert "0 runs to do" in again.output
    assert compare("--table", "--out", "out", program=learning_curve).status == 0
    assert content(tmp_path / "out") == before


def test_passes_are_as_many_steps_as_asked_for():
    for images in (20, 40, 80, 200, 400, 1260, 9000):
        epochs, repeats = learning_curve.passes(images, steps=640, epochs=4, batch_size=8)
        taken = epochs * repeats * images / 8
        assert taken == pytest.approx(640, rel=0.2) or (epochs, repeats) == (1, 1)
        assert epochs <= 4 or repeats == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--steps", "0"], "--steps 0: expected a positive number"),
        (["--training-patients", "5", "5"], "--training-patients 5 5: expected some, each once"),
        (["--training-patients", "0"], "--training-patients: expected positive numbers"),
        (["--table"], "--table: there is no learning curve in runs/learning_curve; give its"),
    ],
)
def test_bad_arguments_give_one_line(
    compare: Compare,
    arguments: list[str],
    error: str,
):
    done = compare(*arguments, program=learning_curve)
    assert done.status == 1
    (line,) = done.errors.splitlines()
    assert error in line
