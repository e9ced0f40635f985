"""The code in README and documentation: Python runs, command lines are understood."""

import ast
import importlib
import inspect
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import nibabel
import numpy as np
import pytest
import torch
import tyro
from markdown.extensions.toc import slugify

import adapterkit as ak
from adapterkit import __main__ as cli
from adapterkit.system import command_line
from adapterkit.system.pages import see
from adapterkit.training.options import TrainingOptions
from tests.models import ECHO
from tests.transformers_models import sam2_model

PROJECT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(PROJECT).as_posix(): path.read_text(encoding="utf-8")
    for path in [
        PROJECT / "README.md",
        PROJECT / "CONTRIBUTING.md",
        *sorted((PROJECT / "docs").rglob("*.md")),
    ]
}
FLAGS = re.MULTILINE | re.DOTALL
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", FLAGS)
each_page = pytest.mark.parametrize("page", PAGES)


def blocks(page: str, language: str) -> list[str]:
    """What is fenced as of this language, in order."""
    return [text for kind, text in FENCED.findall(PAGES[page]) if kind == language]


def commands(page: str) -> list[str]:
    """The lines of the shell, those that go on joined, and the commands within sentences."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`((?:python -m|adapterkit|accelerate|pip) [^`]+)`", PAGES[page])
    return [line for line in [*lines, *inline] if line.strip()]


@each_page
def test_every_block_says_what_it_is(page: str):
    """And is found: one that is indented, quoted or of tildes would be in no test."""
    lines = re.findall(r"^[ \t>*-]*(?:```|~~~)", PAGES[page], re.MULTILINE)
    assert len(lines) == 2 * len(FENCED.findall(PAGES[page]))
    assert not re.search(r"<pre|<code", PAGES[page])
    assert {kind for kind, _ in FENCED.findall(PAGES[page])} <= {"python", "sh", "text"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small files of the names that the pages use."""
    folder = tmp_path_factory.mktemp("readme")
    # Exports take as long as there are blocks.
    sam = ak.build_sam(replace(ECHO, depth=2, global_blocks=(1,)), seed=0)
    torch.save(sam.state_dict(), folder / "sam_vit_b_01ec64.pth")
    torch.manual_seed(0)
    ak.save_adapter(ak.inject_samus(sam), folder / "echo.safetensors")
    sam2_model().save_pretrained(folder / "facebook/sam2.1-hiera-tiny")
    image = np.random.default_rng(0).integers(0, 256, (200, 300), dtype=np.uint8)
    nibabel.save(nibabel.Nifti1Image(image.T, np.eye(4)), folder / "patient.nii.gz")
    return folder


@each_page
def test_python_runs_from_top_to_bottom(page: str, files: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(files)
    names: dict[str, Any] = {
        "images": torch.rand(2, 3, 256, 256) * 255,
        "points": torch.full((2, 1, 1, 2), 100.0),
        "labels": torch.ones(2, 1, 1, dtype=torch.int64),
    }
    for number, block in enumerate(blocks(page, "python")):
        if block.startswith("--8<--"):
            continue  # Of a tutorial's script, which has a test of its own.
        exec(compile(block, f"<Python block {number} of {page}>", "exec"), names)


@each_page
def test_command_lines_are_understood(page: str, monkeypatch: pytest.MonkeyPatch):
    """Each is parsed by what parses it when it runs, and then not run."""

    def parsed_alone(name: str) -> Callable[..., None]:
        @wraps(found := command(name))
        def understood(*arguments: Any, **options: Any) -> None:
            done.append(found.__name__)

        return understood

    command, done = cli.command, []
    monkeypatch.setattr(cli, "command", parsed_alone)
    monkeypatch.setattr(command_line, "run", lambda main, config: done.append(tyro.cli(config)))
    lines = commands(page)
    for line in lines:
        words = shlex.split(line)
        if words[:2] == ["accelerate", "launch"]:
            words = ["python", *words[words.index("-m") :]]
        if words[:3] == ["python", "-m", "adapterkit"]:
            words = words[2:]
        if words[:2] == ["adapterkit", "--plugin"]:  # Not run, lest other tests know its names.
            words[1:3] = []
        try:
            if words[0] == "adapterkit" and words[1:] in [[name] for name in cli.COMMANDS]:
                done.append(line)  # Named, in a sentence.
            elif words[0] == "adapterkit":
                monkeypatch.setattr(sys, "argv", words)
                cli.main()
            elif words[:2] == ["python", "-m"]:
                monkeypatch.setattr(sys, "argv", words[2:])
                with warnings.catch_warnings():
                    # Another test may have imported it.
                    warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
                    runpy.run_module(words[2], run_name="__main__")
            else:
                assert shutil.which(words[0]), f"{line}: there is no such program"
                if words[0] == "python":
                    assert (PROJECT / words[1]).is_file(), line
                done.append(line)
        except SystemExit as end:
            if end.code or "--help" not in words:
                raise AssertionError(f"{line}: {end}") from end
            done.append(line)
    assert len(done) == len(lines)


@each_page
def test_the_extras_that_are_installed_exist(page: str):
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r'pip install[^`\n]*"[^\["]*\[([a-z,]+)\]"', PAGES[page]):
        assert {*extras.split(",")} <= project["optional-dependencies"].keys()


@each_page
def test_pictures_and_pages_that_it_links_are_there(page: str):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page]):
        assert link.startswith("https://") or (PROJECT / page).parent.joinpath(link).exists(), link


def named_in_errors() -> list[tuple[str, str]]:
    """The page and the heading in each call of `see` in adapterkit."""
    found: list[tuple[str, str]] = []
    for file in sorted((PROJECT / "adapterkit").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == see.__name__:
                page, heading = (*map(ast.literal_eval, node.args), "")[:2]
                found.append((page, heading))
    return found


def headings(page: str) -> set[str]:
    """The anchors of its headings, as mkdocs makes them."""
    code = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", code, re.MULTILINE)
    return {slugify(title.replace("`", ""), "-") for title in titles}


def test_pages_that_errors_name_are_there():
    assert see("own_data.md", "folders") == "see docs/own_data.md#folders"
    named = named_in_errors()
    assert len({page for page, _ in named}) >= 9
    for page, heading in named:
        assert f"docs/{page}" in PAGES
        assert not heading or heading in headings(f"docs/{page}"), f"{page}#{heading}"


def test_the_job_for_slurm_is_a_script_with_a_command_that_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Run with stand-ins for SLURM's programs, new and again."""
    (tmp_path / "bin").mkdir()
    for name, does in (("scontrol", "echo node1"), ("srun", '"$@"'), ("accelerate", 'echo "$@"')):
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/bash\n{does}\n")
        program.chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "node[1-2]",
             "SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_NODEID": "1",
             "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}  # fmt: skip
    trained: list[Any] = []
    monkeypatch.setattr(cli, "command", lambda name: trained_with)

    def trained_with(options: Annotated[TrainingOptions, tyro.conf.arg(name="")]) -> None:
        trained.append(options)

    run = tmp_path / "runs" / "thyroid"
    for _ in range(2):
        done = subprocess.run(
            ["bash", PROJECT / "docs" / "train.sbatch"],
            env=slurm, check=True, capture_output=True, text=True,
        )  # fmt: skip
        launch, _, train = done.stdout.partition(" -m adapterkit ")
        assert "--machine_rank 1 --main_process_ip node1 --main_process_port 20007" in launch
        assert "--num_machines 2 --num_processes 8" in launch
        monkeypatch.setattr(sys, "argv", ["adapterkit", *shlex.split(train)])
        cli.main()
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.json").touch()
    checkpoint = tmp_path / "sam_vit_b_01ec64.pth"
    assert trained == [
        TrainingOptions(data=tmp_path / "thyroid", checkpoint=checkpoint, out=run),
        TrainingOptions(resume=run),
    ]


# The reference


def directives(page: str) -> set[str]:
    return {*re.findall(r"^::: (\S+)", PAGES[f"docs/reference/{page}.md"], re.MULTILINE)}


def test_the_reference_has_every_public_name():
    assert {f"adapterkit.{name}" for name in dir(ak)} - directives("python") == {
        "adapterkit.methods",
        "adapterkit.parts",
    }


def test_the_reference_has_every_part_with_its_drawing():
    parts = {
        name for name, part in ak.parts.PARTS.items() if part.__module__.startswith("adapterkit.")
    }
    assert {f"adapterkit.parts.{name}" for name in parts} <= directives("parts")
    drawn = runpy.run_path(str(PROJECT / "docs/reference/draw_parts.py"))
    assert drawn["PARTS"].keys() == parts
    for name, part in drawn["PARTS"].items():
        assert (drawn["FOLDER"] / f"{name}.svg").read_text() == drawn["draw"](part)


@pytest.mark.parametrize("name", sorted(ak.parts.PARTS))
def test_the_reference_has_every_parts_equation_and_paper(name: str):
    page = PAGES["docs/reference/parts.md"]
    section = re.search(rf"^### {name}$(.*?)^::: adapterkit.parts.{name}$", page, FLAGS)
    assert section is not None
    _, _, below = section[1].partition(f"![Where it attaches](parts/{name}.svg)")
    says, _, source = below.partition("\nSource: ")
    assert says.strip()
    assert source.strip()


def test_the_concepts_have_their_drawings():
    drawn = runpy.run_path(str(PROJECT / "docs/concepts/draw.py"))
    for name, draw in drawn["DRAWINGS"].items():
        assert (drawn["FOLDER"] / f"{name}.svg").read_text() == draw()
    page = "\n".join(text for name, text in PAGES.items() if name.startswith("docs/concepts/"))
    drawings = {path.name for path in drawn["FOLDER"].glob("*.svg")}
    assert drawings == {*re.findall(r"\]\((\w+\.svg)\)", page)}


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_the_reference_has_every_method():
    page = directives("methods")
    assert {f"adapterkit.methods.{name}" for name in ak.methods.method_names()} <= page


@pytest.mark.parametrize("page", ["python", "parts", "methods", "data"])
def test_what_the_reference_shows_is_documented(page: str):
    """Else the site would leave it out without a word."""
    for name in directives(page):
        module, _, last = name.rpartition(".")
        found = getattr(importlib.import_module(module), last)
        assert found.__doc__, name
        for key, member in vars(found).items() if isinstance(found, type) else ():
            shown = callable(member) or isinstance(member, property | classmethod)
            # What a part attaches, and a module computes, its class says.
            said = {"attach", "forward", *inspect.get_annotations(found)}
            if shown and not key.startswith("_") and key not in said:
                assert member.__doc__, f"{name}.{key}"
