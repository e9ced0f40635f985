"""A hook of mkdocs: the page of the command line shows what each `--help` prints."""

import os
import subprocess
import sys
from typing import Any

from adapterkit.__main__ import COMMANDS

PAGE = "reference/command_line.md"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page's text, with a section for each command at its end."""
    if page.file.src_uri != PAGE:
        return markdown
    return markdown + "".join(
        f"\n## {name}\n\n{summary}\n\n```text\n{_help(name)}```\n"
        for name, summary in COMMANDS.items()
    )


def _help(command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "adapterkit", command, "--help"],
        env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout
