"""Tables of runs' folders in the pages of results."""

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from adapterkit.system.command_line import run
from benchmarks.page import Config, folded, main, with_block

DOCS = Path(__file__).parents[2] / "docs"
PAGE = """# Results

## Ten systems

Words.

<!-- made of comparison -->
what was here
<!-- end of comparison -->

More words.
"""


def table(rows: int) -> str:
    return "| system | Dice (%) |\n|---|---|\n" + "".join(f"| {k} | {k}.5 |\n" for k in range(rows))


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    folder = tmp_path / "compare"
    folder.mkdir()
    text = f"# Comparison\n\nSeeds: 0.\n\n## Table 1\n\n{table(3)}\n## All\n\n{table(11)}\nDone.\n"
    (folder / "tables.md").write_text(text)
    return folder


def test_a_block_has_the_tables_of_a_run_and_the_rest_stays(comparison: Path):
    page = with_block(PAGE, "comparison", [comparison])
    assert page.startswith(PAGE.partition("what was here")[0])
    assert page.endswith("\n<!-- end of comparison -->\n\nMore words.\n")
    assert "what was here" not in page
    assert "# Comparison" not in page
    assert f"Seeds: 0.\n\n### Table 1\n\n{table(3)}\n" in page
    fold = '<details markdown="1">\n<summary>All: 11 rows</summary>\n\n'
    assert f"### All\n\n{fold}{table(11)}\n</details>\n\nDone.\n" in page
    assert with_block(page, "comparison", [comparison]) == page


def test_of_a_training_the_table_of_all_is_taken_and_folders_follow_each_other(tmp_path: Path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        (folder / "table.md").write_text(
            f"Of {folder.name}.\n\n{table(6)}\n## A view\n\n{table(2)}"
        )
    metrics = {"seconds": {"training": 90}, "peak_memory_bytes": {"process": 1.5e9}}
    (folders[0] / "metrics.json").write_text(json.dumps(metrics))
    page = with_block(PAGE, "comparison", folders)
    one, two = page.index("Of one."), page.index("Of two.")
    took = page.index("Training took 1.5 minutes; peak memory was 1.5 GB.")
    assert one < took < two < page.index("### A view")
    assert page.count("### A view") == 1
    assert "<details" not in page


def test_the_command_writes_page_and_pictures(
    comparison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    page = tmp_path / "results.md"
    page.write_text(PAGE)
    shown = tmp_path / "comparison_masks.png"
    for path, grey in ((shown, 0), (comparison / "masks.png", 9), (comparison / "else.png", 9)):
        Image.new("L", (1, 1), grey).save(path)
    monkeypatch.setattr(sys, "argv", ["page", str(page), f"comparison={comparison}"])
    run(main, Config)
    assert page.read_text() == with_block(PAGE, "comparison", [comparison])
    assert shown.read_bytes() == (comparison / "masks.png").read_bytes()
    assert not (tmp_path / "comparison_else.png").exists()


def test_what_is_not_there_is_named(comparison: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="the page has no block x: expected one of comparison"):
        with_block(PAGE, "x", [comparison])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no tables: expected tables\.md, table\.md or"):
        with_block(PAGE, "comparison", [tmp_path / "empty"])
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    with pytest.raises(ValueError, match="comparison=there: expected NAME=FOLDER, with the folder"):
        main(Config(page, ("comparison=there",)))
    assert page.read_text() == PAGE


@pytest.mark.parametrize("name", ["results.md", "speed.md"])
def test_the_blocks_of_the_pages_are_as_the_command_writes_them(name: str):
    page = (DOCS / name).read_text()
    command = re.findall(r"([\w-]+)=runs/", page)
    blocks = re.findall(r"<!-- made of (\S+) -->\n(.*?)<!-- end of \1 -->", page, re.DOTALL)
    assert {block for block, _ in blocks} == {*command}
    for block, text in blocks:
        before = page.partition(f"<!-- made of {block} -->")[0]
        heading = re.findall(r"^#+ (.*)$", before, re.MULTILINE)[-1]
        plain = re.sub(r"<details.*>\n<summary>.*</summary>\n\n|\n</details>\n", "", text)
        assert folded(plain, heading).strip() == text.strip()
