"""The table of method sizes in the README is the one that the command prints."""

from pathlib import Path

import pytest

from benchmarks.method_sizes import main


def test_the_readme_s_table_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]):
    main()
    table = capsys.readouterr().out
    assert "| SAMUS | 39,653,120 |" in table
    assert table in (Path(__file__).parents[1] / "README.md").read_text()
