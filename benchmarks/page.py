"""Put what runs left in their folders into the marked blocks of a page.

    python -m benchmarks.page docs/results.md comparison=runs/compare/camus224
    python -m benchmarks.page docs/speed.md stock-and-fast=runs/speed stock-and-fast=runs/speed_2

A block of the page lies between two comments of its name:

    <!-- made of comparison -->
    <!-- end of comparison -->

It is given the tables that the run has written, those of more than ten rows folded; of a training
the one of all test images, without those of their kinds; of several folders of one name, one after
another. Pictures of the page that are called after the block and a picture of the run,
`comparison_masks.png` after `masks.png`, are replaced too.
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from adapterkit.system.command_line import console, run

WRITTEN = ("tables.md", "table.md", "report.md")
"""What runs call their tables: a comparison, a training or benchmark, a benchmark on a GPU."""
LONGEST = 10
"""Rows of a table that is not folded."""

_TABLE = re.compile(r"^\|.*\|\n\|[-|]+\|\n(?:\|.*\|(?:\n|\Z))+", re.MULTILINE)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Config:
    page: tyro.conf.Positional[Path]
    """A page with marked blocks."""
    runs: tyro.conf.Positional[tuple[str, ...]]
    """NAME=FOLDER: for a block of this name, the folder of a run."""


def main(config: Config) -> None:
    from adapterkit.system.files import atomic_write

    page = config.page.read_text(encoding="utf-8")
    for name, folders in _by_name(config.runs).items():
        page = with_block(page, name, folders)
        for folder in folders:
            for picture in folder.glob("*.png"):
                there = config.page.with_name(f"{name}_{picture.name}")
                if there.exists():
                    shutil.copyfile(picture, there)
    with atomic_write(config.page) as temporary:
        temporary.write_text(page, encoding="utf-8")
    console.print(f"made anew in {config.page}: {', '.join(_by_name(config.runs))}")


def _by_name(runs: Sequence[str]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for given in runs or [""]:
        name, equals, folder = given.partition("=")
        if not (name and equals and Path(folder).is_dir()):
            raise ValueError(f"{given or 'no run'}: expected NAME=FOLDER, with the folder of a run")
        found.setdefault(name, []).append(Path(folder))
    return found


def with_block(page: str, name: str, folders: Sequence[Path]) -> str:
    """The page with what these runs left in its block.

    Raises:
        ValueError: it has not one block of this name, or a folder has no tables.
    """
    begin, end = f"<!-- made of {name} -->\n", f"<!-- end of {name} -->\n"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(end) < page.index(begin):
        known = ", ".join(re.findall(r"<!-- made of (\S+) -->", page)) or "none"
        raise ValueError(f"the page has no block {name}: expected one of {known}")
    before, _, rest = page.partition(begin)
    text = "\n\n".join(of_run(folder) for folder in folders)
    above = _HEADING.findall(before)
    return (
        f"{before}{begin}\n{folded(text, above[-1] if above else name)}\n\n{end}"
        + (rest.partition(end)[2])
    )


def of_run(folder: Path) -> str:
    """The tables of a run, below the page's headings; and what its training took.

    Raises:
        ValueError: the folder has none.
    """
    files = [folder / name for name in WRITTEN if (folder / name).is_file()]
    if not files:
        raise ValueError(f"{folder} has no tables: expected {', '.join(WRITTEN[:-1])} or report.md")
    text = re.sub(r"^# .*\n+", "", files[0].read_text(encoding="utf-8").strip())
    metrics = folder / "metrics.json"
    took = json.loads(metrics.read_text()) if metrics.is_file() else {}
    if "training" in took.get("seconds", {}) and "peak_memory_bytes" in took:
        text = text.partition("\n## ")[0].rstrip()
        minutes, peak = took["seconds"]["training"] / 60, max(took["peak_memory_bytes"].values())
        text += f"\n\nTraining took {minutes:.1f} minutes; peak memory was {peak / 1e9:.1f} GB."
    return re.sub(r"^(#+ )", r"#\1", text, flags=re.MULTILINE)


def folded(text: str, above: str) -> str:
    """Its long tables behind a line that says what they are: the heading above each."""

    def fold(found: re.Match[str]) -> str:
        table = found[0].rstrip("\n")
        rows = table.count("\n") - 1
        if rows <= LONGEST:
            return found[0]
        heading = [above, *_HEADING.findall(text[: found.start()])][-1]
        return (
            f'<details markdown="1">\n<summary>{heading}: {rows} rows</summary>\n\n{table}\n\n'
            "</details>\n"
        )

    return _TABLE.sub(fold, text).rstrip("\n")


if __name__ == "__main__":
    run(main, Config)
