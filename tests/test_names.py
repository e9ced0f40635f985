"""What documents and docstrings name is there."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREES = ("adapterkit", "recipes", "benchmarks")
PACKAGES = sorted(path.parent.name for path in ROOT.glob("adapterkit/*/__init__.py"))
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(path for tree in TREES for path in (ROOT / tree).rglob("*.py")),
]

DOTTED = re.compile(rf"(?<![\w./])(?:{'|'.join(TREES)})(?:\.\w+)+(?![\w/])")
"""A module, or what is in it, by its whole name."""
SHORT = re.compile(rf"`((?:{'|'.join(PACKAGES)})(?:\.\w+)+)(?:\(.*?\))?`")
"""One within adapterkit, as its docstrings have it."""
FILE = re.compile(rf"(?<![\w./])(?:{'|'.join((*TREES, 'tests', *PACKAGES))})/[\w/]+\.(?:py|md)\b")


def resolves(name: str) -> bool:
    """Whether a name is that of a module, or of something in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            if find_spec(".".join(parts[:count])) is None:
                continue
        except ModuleNotFoundError:
            continue
        found = import_module(".".join(parts[:count]))
        for part in parts[count:]:
            if not hasattr(found, part) and part not in getattr(found, "__annotations__", {}):
                return False
            found = getattr(found, part, None)
        return True
    return False


def missing(text: str) -> Iterator[str]:
    for name in {match[0] for match in DOTTED.finditer(text)}:
        if not resolves(name):
            yield name
    for name in {match[1] for match in SHORT.finditer(text)}:
        if not resolves(f"adapterkit.{name}"):
            yield name
    for path in {match[0] for match in FILE.finditer(text)}:
        if not any((folder / path).exists() for folder in (ROOT, ROOT / "adapterkit")):
            yield path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_it_names_is_there(document: Path):
    assert not [*missing(document.read_text())]


def test_what_is_not_there_is_found():
    text = "`training.loop.no_such`, adapterkit.data.nothing and parts/none.py; `parts.LoRA`"
    assert sorted(missing(text)) == [
        "adapterkit.data.nothing",
        "parts/none.py",
        "training.loop.no_such",
    ]


@pytest.mark.parametrize("package", sorted((ROOT / "adapterkit").rglob("__init__.py*")), ids=str)
def test_a_package_binds_no_other_thing_to_the_name_of_a_module_in_it(package: Path):
    """Else `import package.module as m` gives that thing."""
    modules = {path.stem for path in package.parent.glob("*.py")} - {"__init__"}
    modules |= {path.parent.name for path in package.parent.glob("*/__init__.py")}
    bound = {
        (alias.asname or alias.name)
        for node in ast.walk(ast.parse(package.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module not in (None, _name(package))
        for alias in node.names
    }
    assert not bound & modules


def _name(package: Path) -> str:
    return ".".join(package.parent.relative_to(ROOT).parts)
