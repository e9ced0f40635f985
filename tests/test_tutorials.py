"""The tutorials' scripts, at small size, as a reader runs them."""

import re
from pathlib import Path

import pytest

from tests.processes import Process, run

PROJECT = Path(__file__).parents[1]
TUTORIALS = PROJECT / "docs" / "tutorials"
SMALLER: dict[str, dict[str, str]] = {
    "first_adapter": {"PATIENTS, EPOCHS = 48, 8": "PATIENTS, EPOCHS = 5, 1"},
    "own_folder": {"PATIENTS, EPOCHS = 30, 12": "PATIENTS, EPOCHS = 4, 1"},
    "choosing_a_method": {"PATIENTS, EPOCHS = 50, 3": "PATIENTS, EPOCHS = 10, 1"},
    "ablation": {"PATIENTS, EPOCHS = 30, 8": "PATIENTS, EPOCHS = 3, 1"},
    "extending": {"PATIENTS, EPOCHS = 24, 10": "PATIENTS, EPOCHS = 3, 1"},
    "export_and_run": {"PATIENTS, EPOCHS = 24, 10": "PATIENTS, EPOCHS = 3, 1"},
    "ejection_fraction": {"PATIENTS, EPOCHS, NEW = 24, 8, 6": "PATIENTS, EPOCHS, NEW = 3, 1, 1"},
    "from_other_tools": {},
    "annotate_and_train": {
        "PATIENTS, EPOCHS = 12, 30": "PATIENTS, EPOCHS = 4, 1",
        "ANNOTATED, MOST = 32, 6": "ANNOTATED, MOST = 12, 1",
    },
    "classification": {"PATIENTS, EPOCHS, SIDE = 80, 20": "PATIENTS, EPOCHS, SIDE = 4, 1"},
    "sam2": {"PATIENTS, EPOCHS, SIDE = 20, 10": "PATIENTS, EPOCHS, SIDE = 3, 1"},
    "several_processes": {"PATIENTS, EPOCHS, NEW = 30, 6, 4": "PATIENTS, EPOCHS, NEW = 3, 2, 1"},
    "add_an_encoder": {"PATIENTS, STEPS = 80, 200": "PATIENTS, STEPS = 4, 3"},
}
"""What is written in each script, and what stands there in the test."""
AS_A_READER = {
    "first_adapter",
    "own_folder",
    "extending",
    "from_other_tools",
    "annotate_and_train",
    "several_processes",
}
"""Those that run on the small Sam, with all processes that they start; the others as
`tests.in_small` runs them."""
SLOW = {"choosing_a_method", "export_and_run", "several_processes"}
"""Several trainings, and an export: what `.ci/run` runs after the suite."""


def scripts_of(name: str) -> dict[str, str]:
    """A tutorial's script and those that it starts, whose names begin with its own."""
    return {path.name: path.read_text() for path in TUTORIALS.glob(f"{name}*.py")}


def test_every_script_is_tested_and_has_a_page():
    tested = {file for name in SMALLER for file in scripts_of(name)}
    assert tested == {path.name for path in TUTORIALS.glob("*.py")}
    assert SMALLER.keys() <= {path.stem for path in TUTORIALS.glob("*.md")}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in SMALLER]
)
def test_the_script_runs_and_leaves_its_figures(name: str, tmp_path: Path):
    for file, code in scripts_of(name).items():
        (tmp_path / file).write_text(code)
    script = tmp_path / f"{name}.py"
    for written, smaller in SMALLER[name].items():
        code = script.read_text()
        assert written in code
        script.write_text(code.replace(written, smaller))
    options = {
        "folder": tmp_path,
        "environment": {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
    }
    if name in AS_A_READER:
        run(Process.of_file(script, **options))
    else:
        run(Process.of_module("tests.in_small", script.name, **options))
    figures = {path.name for path in TUTORIALS.glob(f"{name}*.png")}
    assert figures <= {path.name for path in tmp_path.glob("*.png")}


@pytest.mark.parametrize("name", SMALLER)
def test_the_page_shows_all_of_the_script(name: str):
    page = (TUTORIALS / f"{name}.md").read_text()
    for file, code in scripts_of(name).items():
        sections = re.findall(r"# --8<-- \[start:(\w+)\]", code)
        assert sections
        for section in sections:
            assert f'--8<-- "docs/tutorials/{file}:{section}"' in page
