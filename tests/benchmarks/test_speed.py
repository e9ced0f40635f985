"""The benchmark of speed, on the smallest work that it has."""

import csv
import multiprocessing
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import adapterkit as ak
from adapterkit.system.command_line import run
from benchmarks import measuring, profile, speed, work


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements that are worth nothing, in processes that share what they import."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["benchmarks.measuring"])
    monkeypatch.setattr(measuring, "PROCESSES", forks)
    monkeypatch.setattr(measuring, "CEILING_SECONDS", 0.01)
    monkeypatch.setitem(measuring.CEILING_SIDES, "cpu", 256)


Call = Callable[..., str]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """A program of the benchmarks in this process; what it prints."""

    def called(program: Any, *arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, arguments)])
        run(program.main, program.Config)
        return capsys.readouterr().out

    return called


def test_it_leaves_a_table_all_times_and_a_plot(call: Call, tmp_path: Path):
    out = tmp_path / "speed"
    options = ["--only", "SAMUS on small Sam, 128x128, embedding, batch 1", "--rounds", "2"]
    printed = call(speed, *options, "--out", out, "--device", "cpu")
    rows = list(csv.DictReader((out / "times.csv").read_text().splitlines()))
    ways = ["stock", "fast"]
    if "bf16 is slower than float32 on this cpu: left out" not in printed:
        ways.append("fast, bf16")
    assert [(row["how"], row["round"]) for row in rows] == [
        (how, turn) for how in ways for turn in ("1", "2")
    ]
    assert all(float(row["seconds"]) > 0 and int(row["peak_bytes"]) > 2**20 for row in rows)
    assert all(int(row["flop"]) > 1e9 for row in rows)
    table = (out / "table.md").read_text()
    assert table.splitlines()[-1] in printed
    assert "1.00 (1.00 to 1.00)" in table
    assert (out / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_what_it_costs_to_answer_is_a_table_of_its_own(call: Call, tmp_path: Path):
    only = "SAMUS+ on small Sam, 128x128, further prompt"
    printed = call(speed, "--only", only, "--rounds", "1", "--out", tmp_path / "speed")
    head = "| SAMUS+ on small Sam, 128x128 |"
    (row,) = [line for line in printed.splitlines() if line.startswith(head)]
    trained, flop, operations, time = (each.strip() for each in row.strip("| ").split("|")[1:])
    sam = ak.inject(ak.build_sam(work.BASES["small Sam"], seed=0), "samus_plus", image_size=128,
                    structures=["a", "b", "c"])  # fmt: skip
    assert trained == f"{ak.summary(sam).trained_parameters / 1e6:.2f} M"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ak.Segmenter(sam)(torch.rand(1, 3, 128, 128) * 255)
    assert flop == f"{counter.get_total_flops() / 1e9:,.1f}"
    assert 0 < float(operations.rstrip("%")) < 30
    assert float(time.rstrip("%")) > 0
    assert row in (tmp_path / "speed" / "table.md").read_text()


def test_large_work_has_a_process_for_each_turn(monkeypatch: pytest.MonkeyPatch):
    contestant = work.Contestant(work.Work("small Sam", "SAM", "embedding", 128, 1), fast=True)
    monkeypatch.setattr(measuring, "is_large", lambda _: True)
    started: list[int] = []
    start = measuring.PROCESSES.Process.start
    monkeypatch.setattr(
        measuring.PROCESSES.Process,
        "start",
        lambda process: start(process) or started.append(process.pid),
    )
    (measured,) = measuring.measure([contestant], rounds=2, device="cpu")
    assert len(set(started)) == 3  # The last counts.
    assert len(measured.seconds) == 2
    assert measured.flop > 1e8
    assert measured.peak_bytes > measured.library_bytes > 2**20


@pytest.mark.parametrize("method", work.METHODS)
def test_the_work_is_where_it_is_measured(method: str):
    done = work.Work("small Sam", method, "embedding", 128, 1)
    with ExitStack() as kept:
        # Of meta's tensors there is no data, but the device is checked.
        work.prepared(work.Contestant(done, fast=True), "meta", kept)()


@pytest.mark.parametrize(
    ("program", "options"), [(speed, ["--only", "batch 5"]), (profile, ["batch 5"])]
)
def test_work_that_is_not_there_is_refused_with_an_example(
    call: Call, program: Any, options: list[str]
):
    with pytest.raises(SystemExit) as ended:
        call(program, *options)
    message = str(ended.value.code)
    assert message.startswith("error: ")
    assert "'batch 5': expected words of a description such as 'SAM on ViT-B" in message
    assert "\n" not in message


def test_a_profile_has_every_kind_of_operation_of_each_way(call: Call):
    work = "SAMed on small Sam, 128x128, training step, batch 1"
    printed = call(profile, work.lower())
    for way in ("stock", "fast", "fast, checkpointed"):
        assert f"| {work}, {way} |" in printed
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| products")]
    seconds, flop = zip(
        *((float(row[1]), float(row[3].replace(",", ""))) for row in rows), strict=True
    )
    assert len(rows) in (3, 4)  # With bf16, where the processor has it.
    assert min(seconds) > 0
    # Checkpointing computes the blocks of the image encoder twice.
    assert flop[-1] > flop[1] > 0
