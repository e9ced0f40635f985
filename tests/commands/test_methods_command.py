"""The table of families that the command prints is that of the documentation."""

from collections.abc import Callable
from pathlib import Path

import pytest

from adapterkit.encoders.examples import EXAMPLES
from tests.conftest import Done

PROJECT = Path(__file__).parents[2]


def test_the_families_are_listed_as_the_documentation_lists_them(run: Callable[..., Done]):
    done = run("methods", "--families")
    assert done.status == 0
    assert done.output.strip() in (PROJECT / "docs" / "encoders.md").read_text()


def test_encoders_that_are_not_installed_are_said_to_be(
    run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
):
    def missing() -> None:
        raise ImportError

    for name in EXAMPLES:
        monkeypatch.setitem(EXAMPLES, name, missing)
    assert "| transformers ViTModel | not installed |" in run("methods", "--families").output


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_class_is_in_the_readme(example: str):
    readme = (PROJECT / "README.md").read_text()
    library, name = example.split(" ")[:2]
    supported = readme.partition("## What can be adapted")[2].partition("\n## ")[0]
    assert f"`{name}`" in supported or library == "segment_anything's"
