"""The script for a GPU, rehearsed on the CPU."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import measuring
from benchmarks.on_a_gpu import Config, Report, groups, main, run_module


def test_every_work_is_timed_stock_and_fast_and_then_compiled():
    chosen = list(groups(rehearse=False))
    assert len({each[0].work for each in chosen}) == 8
    plain, compiled = chosen[:8], chosen[8:]
    for group in plain:
        assert list(map(str, group)) == ["stock", "fast", "stock, bf16", "fast, bf16"]
    for group in compiled:
        assert [each.compiled for each in group] == [False, True, True, True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_how_to_rehearse(tmp_path: Path):
    with pytest.raises(ValueError, match="no GPU here; --rehearse runs all of it on the CPU"):
        main(Config(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_rehearsal_leaves_a_report_of_every_step(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.on_a_gpu", "--out", str(tmp_path / "out")]
    command += ["--rehearse", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "out" / "report.md").read_text()
    tests, epoch, speed = report.split("\n## ")[1:]
    assert " passed" in tests
    assert "failed" not in tests
    assert "(complete)" in epoch
    assert "epoch 1/1  loss" in epoch
    assert "SAMUS on toy Sam, 64x64, training step, batch 1 | fast |" in speed
    assert (tmp_path / "out" / "times.csv").read_text().count("\n") > 8


def test_what_no_time_is_left_for_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measuring, "CEILING_SECONDS", 0.01)
    main(Config(out=tmp_path / "out", rehearse=True, only=("speed",), minutes=0.1))
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.count("left out, no time") == 8


def test_a_step_finds_the_packages_of_the_callers_python_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    site = tmp_path / "site"
    site.mkdir()
    (site / "only_on_this_path.py").write_text("import benchmarks\nprint('found')\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    report = Report(tmp_path, time.monotonic() + 60)
    assert run_module(["only_on_this_path"], report, "log.txt") == ("complete", "found\n")
