"""What is imported, and when: in fresh processes, without a clock."""

import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from adapterkit import __main__ as cli
from tests.processes import Process, run

PROJECT = Path(__file__).parents[1]

EXTRAS = {
    "accelerate", "contourpy", "fastapi", "highdicom", "matplotlib", "monai", "nibabel", "onnx",
    "onnxruntime", "onnxscript", "pandas", "pyarrow", "pydicom", "ray", "scipy",
    "SimpleITK", "sklearn", "statsmodels", "uvicorn",
}  # fmt: skip
"""Packages that come with extras alone, as they are imported."""

BESIDE_TORCH = {
    "adapterkit", "einops", "jaxtyping", "lazy_loader", "markdown_it", "mdurl", "pygments", "rich",
    "safetensors", "wadler_lindig",
}  # fmt: skip
"""What the core imports of its own accord, with what these import."""


def in_a_new_process(code: str) -> list[str]:
    """The lines that Python prints when it runs `code` on its own."""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


TOP_LEVEL = "sorted({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
CORE = f"""
import sys, torch, timm, segment_anything
base = {{*{TOP_LEVEL}}}
for name in {sorted(EXTRAS)}:
    sys.modules[name] = None
import adapterkit as ak
from adapterkit.system.extras import MissingExtraError
for name in ak.__all__:
    try:
        getattr(ak, name)
    except MissingExtraError as error:
        print(name, error, sep=": ")
print(*{{*{TOP_LEVEL}}} - base, sep="\\n")
"""


def test_importing_adapterkit_imports_nothing_else():
    before = in_a_new_process(f"import sys; print(*{TOP_LEVEL}, sep='\\n')")
    after = in_a_new_process(f"import adapterkit, sys; print(*{TOP_LEVEL}, sep='\\n')")
    assert {*after} - {*before} == {"adapterkit", "lazy_loader"}


def test_the_core_imports_little_more_than_its_base_and_other_names_say_their_extra():
    lines = in_a_new_process(CORE)
    missing = dict(line.split(": ", 1) for line in lines if ": " in line)
    imported = {line for line in lines if ": " not in line}
    assert imported - EXTRAS <= BESIDE_TORCH
    assert {"read_image", "write_masks", "train"} <= missing.keys()
    assert not {"inject", "load_adapter", "Segmenter", "Predictor", "summary"} & missing.keys()
    for message in missing.values():
        assert message.startswith("this needs ")
        assert 'pip install "adapterkit[' in message


def programs() -> list[str]:
    """What `python -m` runs: the modules with a main part, those of packages by the package."""
    modules = [
        ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__main__")
        for package in ("adapterkit", "benchmarks", "recipes")
        for path in sorted((PROJECT / package).rglob("*.py"))
        if 'if __name__ == "__main__":' in path.read_text()
    ]
    return [*modules, *(f"adapterkit {command}" for command in cli.COMMANDS)]


@cache
def imported_by_help() -> dict[str, set[str]]:
    """What each program's `--help` imports that those before it have not: of all in one process,
    which each of them passes over if it imports no more than it needs."""
    code = f"""
import runpy, sys
for program in {programs()}:
    before = {{*{TOP_LEVEL}}}
    module, *options = program.split()
    sys.argv = [module, *options, "--help"]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, program
    print("IMPORTED", program, *{{*{TOP_LEVEL}}} - before, sep=",")
"""
    lines = in_a_new_process(code)
    assert sum(line.startswith("usage: ") for line in lines) == len(programs())
    found = [line.split(",")[1:] for line in lines if line.startswith("IMPORTED,")]
    return {program: {*names} for program, *names in found}


def test_there_are_programs_in_every_package():
    assert {"adapterkit", "benchmarks.compare", "recipes.minisam"} <= {*programs()}


@pytest.mark.parametrize("program", programs())
def test_help_imports_no_torch(program: str):
    heavy = {"torch", "huggingface_hub", *EXTRAS}
    if program.startswith("adapterkit"):
        heavy.add("numpy")
    assert not imported_by_help()[program] & heavy


def test_all_that_the_extras_are_asked_for_is_in_them():
    """What `require` names is what pyproject.toml installs."""
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]

    def packages(extra: str) -> set[str]:
        found = set()
        for each in extras[extra]:
            name, _, rest = each.partition("[")
            if name == "adapterkit":
                found |= {p for part in rest.rstrip("]").split(",") for p in packages(part)}
            else:
                found.add(each.partition(">")[0].partition("[")[0].lower())
        return found

    distributions = {
        "PIL": "pillow",
        "sklearn": "scikit-learn",
        "pyarrow": "ray",
        "python_multipart": "python-multipart",
    }  # Ray Data brings pyarrow.
    calls = in_a_new_process(
        "import ast, pathlib\n"
        "for path in pathlib.Path('adapterkit').rglob('*.py'):\n"
        "    for node in ast.walk(ast.parse(path.read_text())):\n"
        "        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'require':\n"
        "            print(*(argument.value for argument in node.args))"
    )
    assert len(calls) >= 7
    for call in calls:
        extra, *names = call.split()
        for name in names:
            assert {name.lower(), distributions.get(name)} & packages(extra), call


def test_a_process_of_the_tests_begins_without_adapterkit_and_shape_checks():
    run(Process("import sys; assert not {'adapterkit', 'jaxtyping', 'tests'} & {*sys.modules}"))
