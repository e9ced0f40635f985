"""The benchmark of speed, on the smallest work that it has, as a user runs it."""

import csv
import subprocess
import sys
from pathlib import Path


def test_it_leaves_a_table_all_times_and_a_plot(tmp_path: Path):
    out = tmp_path / "speed"
    options = ["--only", "SAMUS on small Sam, 128x128, embedding, batch 1", "--rounds", "2"]
    command = [sys.executable, "-m", "benchmarks.speed", *options, "--out", str(out)]
    done = subprocess.run(
        [*command, "--device", "cpu"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((out / "times.csv").read_text().splitlines()))
    ways = ["stock", "fast"]
    if "bf16 is slower than float32 on this cpu: left out" not in done.stdout:
        ways.append("fast, bf16")
    assert [(row["how"], row["round"]) for row in rows] == [
        (how, turn) for how in ways for turn in ("1", "2")
    ]
    assert all(float(row["seconds"]) > 0 and int(row["peak_bytes"]) > 2**20 for row in rows)
    assert all(int(row["flop"]) > 1e9 for row in rows)
    table = (out / "table.md").read_text()
    assert table.splitlines()[-1] in done.stdout
    assert "1.00 (1.00 to 1.00)" in table
    assert (out / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_a_group_that_is_not_there_is_one_line():
    command = [sys.executable, "-m", "benchmarks.speed", "--only", "nothing of the kind"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "error: --only 'nothing of the kind': no group's description contains that\n"
    )
