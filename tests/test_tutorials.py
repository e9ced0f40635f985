"""The tutorials' scripts, at small size, as a reader runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
TUTORIALS = PROJECT / "docs" / "tutorials"
SMALLER: dict[str, dict[str, str]] = {
    "first_adapter": {"PATIENTS, EPOCHS = 48, 8": "PATIENTS, EPOCHS = 5, 1"},
}
"""What is written in each script, and what stands there in the test."""


def test_every_script_is_tested_and_has_a_page():
    scripts = {path.stem for path in TUTORIALS.glob("*.py")}
    assert scripts == SMALLER.keys()
    assert scripts <= {path.stem for path in TUTORIALS.glob("*.md")}


@pytest.mark.parametrize("name", SMALLER)
def test_the_script_runs_and_leaves_its_figures(name: str, tmp_path: Path):
    code = (TUTORIALS / f"{name}.py").read_text()
    for written, smaller in SMALLER[name].items():
        assert written in code
        code = code.replace(written, smaller)
    (tmp_path / f"{name}.py").write_text(code)
    done = subprocess.run(
        [sys.executable, f"{name}.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    figures = {path.name for path in TUTORIALS.glob(f"{name}*.png")}
    assert figures <= {path.name for path in tmp_path.glob("*.png")}


@pytest.mark.parametrize("name", SMALLER)
def test_the_page_shows_all_of_the_script(name: str):
    page, code = ((TUTORIALS / f"{name}.{ending}").read_text() for ending in ("md", "py"))
    sections = {line.split(":")[1].rstrip("]") for line in code.splitlines() if "[start:" in line}
    assert sections
    for section in sections:
        assert f'--8<-- "docs/tutorials/{name}.py:{section}"' in page
