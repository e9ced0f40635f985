"""The public names: how many, typed, documented, printed."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from docstring_parser import parse
from jaxtyping import AbstractArray

import adapterkit as ak

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "adapterkit"
NAMES = [name for name in dir(ak) if not isinstance(getattr(ak, name), ModuleType)]


def test_there_are_at_most_45_and_training_and_evaluation_are_among_them():
    assert len(dir(ak)) <= 45
    assert {"inject", "save_adapter", "load_adapter", "Predictor", "train"} <= {*dir(ak)}


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def documented(name: str) -> list[tuple[str, Callable[..., Any]]]:
    """A function; a class and the methods of its own that do not begin with an underscore."""
    found = getattr(ak, name)
    if not inspect.isclass(found):
        return [(name, found)]
    own = [
        (f"{name}.{key}", value)
        for key in vars(found)
        if not key.startswith("_") and callable(value := getattr(found, key))
    ]
    return [(name, found), *own]


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_explain_each_argument(name: str):
    """In their sections; those of methods may be one sentence that names it."""
    for place, each in documented(name):
        assert each.__doc__, place
        if dataclasses.is_dataclass(each):
            expected = {field.name for field in dataclasses.fields(each)}
        elif inspect.isclass(each) and issubclass(each, Exception):
            expected = set()
        else:
            expected = {*inspect.signature(each).parameters} - {"self", "cls"}
        names = [key for one in parse(each.__doc__).params for key in one.arg_name.split(", ")]
        described = {key.lstrip("*") for key in names}
        if place != name:
            described |= {*re.findall(r"\w+", each.__doc__)}
        assert not expected - described, place


@pytest.mark.parametrize("name", [name for name in NAMES if inspect.isfunction(getattr(ak, name))])
def test_docstrings_of_functions_say_what_is_returned_and_raised(name: str):
    function = getattr(ak, name)
    docstring = parse(function.__doc__)
    returned = inspect.signature(function).return_annotation
    assert docstring.returns or returned in (None, "None")
    raised = re.findall(r"raise (\w+)", inspect.getsource(function))
    assert docstring.raises or not raised


def carries_arrays(annotation: Any) -> bool:
    if inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        return True
    return any(map(carries_arrays, get_args(annotation)))


@pytest.mark.parametrize("name", NAMES)
def test_what_holds_arrays_does_not_print_them(name: str):
    each = getattr(ak, name)
    if not dataclasses.is_dataclass(each):
        return
    if any(carries_arrays(field.type) for field in dataclasses.fields(each)):
        assert "pformat" in inspect.getsource(each.__repr__)


# How long code may be


SOURCES = [
    path
    for folder in ("adapterkit", "recipes", "benchmarks")
    for path in sorted((PROJECT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_files_and_functions_are_short(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, node.name
