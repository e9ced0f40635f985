"""The tables that the command prints are those of the documentation."""

from collections.abc import Callable
from pathlib import Path

import pytest

from adapterkit.commands import methods
from adapterkit.encoders.examples import EXAMPLES, PROMPTED
from adapterkit.promptable.families import all_families
from tests.conftest import Done
from tests.transformers_models import edgetam_model

PROJECT = Path(__file__).parents[2]
Run = Callable[..., Done]


def test_the_families_are_listed_as_the_documentation_lists_them(run: Run):
    done = run("methods", "--families")
    assert done.status == 0
    assert done.output.strip() in (PROJECT / "docs" / "encoders.md").read_text()


def test_what_is_supported_is_the_table_of_the_readme(run: Run):
    readme = (PROJECT / "README.md").read_text()
    supported = readme.partition("## Supported\n\n")[2].partition("\n\n")[0]
    done = run("methods", "--families", "--short")
    assert done.status == 0
    assert done.output.strip() == supported


def test_encoders_that_are_not_installed_are_said_to_be(run: Run, monkeypatch: pytest.MonkeyPatch):
    def missing() -> None:
        raise ImportError

    for name in EXAMPLES:
        monkeypatch.setitem(EXAMPLES, name, missing)
    monkeypatch.setattr(methods, "_tried", methods._tried.__wrapped__)
    assert "| transformers ViTModel | not installed |" in run("methods", "--families").output


def test_the_promptable_models_are_those_of_the_families():
    titles = {each.title.split()[-1] for each in all_families()}
    assert {*PROMPTED.values()} == titles
    assert PROMPTED.keys() <= EXAMPLES.keys()


def test_a_method_that_a_base_has_no_place_for_is_said_to_be_refused(tmp_path: Path, run: Run):
    edgetam_model().save_pretrained(tmp_path / "edgetam")
    done = run("methods", "--checkpoint", tmp_path / "edgetam", "--image-size", "32")
    assert done.status == 0
    assert [line.split()[3] for line in done.output.splitlines() if "| samed " in line] == [
        "refused"
    ]
    assert "samed: LoRA: block 0 of this transformers_edgetam encoder has no" in done.output
    assert "| samus_plus | 2," in " ".join(done.output.split())
