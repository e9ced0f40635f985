"""The comparison in miniature, run as a user runs it, and what its conclusions rest on."""

import contextlib
import csv
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import adapterkit as ak
from adapterkit.data.collections import open_collection
from adapterkit.data.image_file import DataError
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.evaluation.evaluation import Evaluation
from adapterkit.system.command_line import run
from adapterkit.training import runner
from benchmarks.compare import __main__ as command
from benchmarks.compare import engines, results, runs, tables
from benchmarks.compare.__main__ import Config, main
from benchmarks.compare.domains import trained_on
from benchmarks.compare.figures import binary_entropy
from benchmarks.compare.subjects import subject_of
from benchmarks.compare.systems import SYSTEMS, Base, System
from benchmarks.compare.tables import TABLES
from tests.in_small import performed_here
from tests.models import ECHO
from tests.transformers_models import MODELS

FIGURES = {"masks.png", "prompts.png", "accuracy_and_parameters.png"}
FILES = {"comparison.json", "tables.md", "results.csv", *FIGURES}
RUN_FILES = {"cases.safetensors", "metrics.json", "per_image.csv", "report.html"}
RUN_FILES |= {"segmentations.png", "table.md", "patients.csv"}
TRAINED_FILES = {*RUN_FILES, "adapter.safetensors", "batch.png", "curves.png"}
NETWORK_FILES = {*RUN_FILES, "batch.png", "curves.png", "network.safetensors"}
STRUCTURES = ["left ventricle", "myocardium", "left atrium", "mean"]
IF_MEASURED = {"agreement.png"}
"""What is missing where a hardly trained model finds no ventricle."""


@dataclass
class Done:
    status: int
    output: str
    errors: str


Compare = Callable[..., Done]


@pytest.fixture
def compare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Compare:
    """The command, in this process and an empty folder, with a tiny base."""
    monkeypatch.setattr(ak, "mini_sam", lambda: ak.build_sam(ECHO, seed=0))
    monkeypatch.setattr(engines, "on_this_machine", performed_here)
    monkeypatch.setattr(runner, "keep_freed_memory", lambda: True)

    def call(*arguments: object, program: Any = command) -> Done:
        monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
        status, message = 0, ""
        with contextlib.chdir(tmp_path):
            try:
                run(program.main, program.Config)
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
                message = f"{end.code}\n" if isinstance(end.code, str) else ""
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err + message)

    return call


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data") / "echo", patients=4, image_size=64)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "results.csv").read_text().splitlines()))


# The command


@pytest.mark.usefixtures("blank_figures")
def test_runs_tables_and_figures(tmp_path: Path, echo: Path, compare: Compare):
    chosen = "--data", echo, "--epochs", "1", "--out", "out"
    methods = "--methods", "sam", "samus-2-entropy", "unet"
    done = compare(*chosen, *methods, "--seeds", "0", "1")
    assert done.status == 0, done.errors
    assert "6 runs in" in done.output
    assert "run 6 of 6: U-Net, seed 1, finished" in done.output
    folder = tmp_path / "out"
    assert content(folder).keys() == FILES
    assert content(folder / "unet" / "seed_1").keys() - IF_MEASURED == NETWORK_FILES
    assert content(folder / "sam" / "seed_0").keys() - IF_MEASURED == RUN_FILES

    rows = rows_of(folder)
    assert [row["structure"] for row in rows] == 6 * STRUCTURES
    for row in rows:
        evaluation = Evaluation.read_csv(
            folder / row["system"] / f"seed_{row['seed']}" / "per_image.csv"
        )
        summary = evaluation.summary()[row["structure"]]
        assert float(row["dice"]) == pytest.approx(summary["dice"]["mean"], abs=1e-5)
        # Measured at half the base's 256 pixels, reported in pixels of 256.
        assert float(row["hausdorff_px"]) == pytest.approx(
            2 * summary["hausdorff_px"]["mean"], rel=1e-4
        )
    by_system = {row["system"]: row for row in rows}
    assert by_system["sam"]["trained_parameters"] == by_system["sam"]["file_bytes"] == "0"
    small_unet = subject_of(SYSTEMS["unet"], Base(None, 256), STRUCTURES[:3]).build()
    assert int(by_system["unet"]["trained_parameters"]) == sum(
        each.numel() for each in small_unet.parameters()
    )
    assert int(by_system["sam"]["flops"]) > 0
    means = [float(row["dice"]) for row in rows if row["structure"] == "mean"]
    text = (folder / "tables.md").read_text()
    dice = np.array(means[-2:]) * 100
    assert f"{dice.mean():.2f} ± {dice.std(ddof=1):.2f}" in text
    for words in (
        "all structures are found in it",
        "with a click that a structure",
        "Epochs: 1",
        "adapterkit's small SAM; small networks",
    ):
        assert words in text
    assert "trained and tested with its own strategy" not in text
    assert "2 train (8 images), 1 validation (4 images), 1 test (4 images)" in text
    assert "paper |" not in text

    # Anew, from the folders alone.
    before = content(folder)
    assert compare("--table", "--out", "out").status == 0
    assert content(folder) == before


@pytest.mark.usefixtures("blank_figures")
def test_out_of_domain_images_have_rows_of_their_own(tmp_path: Path, echo: Path, compare: Compare):
    chosen = "--data", echo, "--epochs", "1", "--methods", "unet", "dynunet", "--out", "out"
    done = compare(*chosen, "--trained-on", "view=2CH")
    assert done.status == 0, done.errors
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "2 train (4 images), 1 validation (2 images), 1 test (4 images)" in text
    assert "Trained and validated on the images of view 2CH alone" in text
    folder = tmp_path / "out" / "unet" / "seed_0"
    by_view = Evaluation.read_csv(folder / "per_image.csv").summary_by("view")
    dice = {view: f"{100 * each['mean']['dice']['mean']:.2f}" for view, each in by_view.items()}
    heads = "Dice (%), view 2CH, as trained on | Dice (%), view 4CH, not trained on"
    assert f"| system | {heads} |" in text
    assert f"| U-Net | {dice['2CH']} | {dice['4CH']} |" in text
    assert "Of the test images that are of another kind" in text
    assert compare(*chosen).status == 1

    for kind, error in {
        "view=3CH": "no image for training is of it; view is one of 2CH, 4CH",
        "colour=red": "does not state its colour; it has patient, view, phase",
        "2CH": "expected ATTRIBUTE=VALUE, view=2CH or quality=Good say",
    }.items():
        done = compare(*chosen[:-1], "other", "--trained-on", kind)
        assert error in done.errors


def test_images_of_one_quality_are_trained_on_and_all_are_tested(release: Path):
    split = open_collection(release).random_split()
    for part, quality in (("train", "Good"), ("validation", "Good"), ("test", "Poor")):
        for patient in getattr(split, part):
            for path in release.rglob(f"{patient}/Info_*.cfg"):
                text = re.sub("ImageQuality: .*", f"ImageQuality: {quality}", path.read_text())
                path.write_text(text)
    collection = open_collection(release)
    found, kept = trained_on(collection, split, "quality=Good")
    assert kept == split
    assert {each.attributes["quality"] for each in found.of_groups(kept.test)} == {"Poor"}
    assert {each.attributes["quality"] for each in found.of_groups(kept.train)} == {"Good"}
    with pytest.raises(DataError, match="quality=Poor: no image for training is of it; quality is"):
        trained_on(collection, split, "quality=Poor")
    for path in release.rglob("Info_*.cfg"):
        path.unlink()
    with pytest.raises(DataError, match="does not state its quality; it has patient, view, phase"):
        trained_on(open_collection(release), split, "quality=Good")


@pytest.mark.usefixtures("blank_figures")
def test_a_failed_run_is_shown_and_tried_again(
    tmp_path: Path, echo: Path, compare: Compare, monkeypatch: pytest.MonkeyPatch
):
    def broken(system: System, *of: Any) -> Any:
        if system is SYSTEMS["medsam"]:
            raise ValueError("no such part")
        return subject_of(system, *of)

    chosen = "--data", echo, "--epochs", "1", "--methods", "medsam", "swin-unet"
    with monkeypatch.context() as patch:
        patch.setattr(runs, "subject_of", broken)
        done = compare(*chosen, "--out", "out")
    assert done.status == 0
    assert "MedSAM, seed 0, FAILED, see" in done.output
    assert "Swin-Unet, seed 0, finished" in done.output
    folder = tmp_path / "out"
    assert "Traceback" in (folder / "medsam" / "seed_0" / "error.txt").read_text()
    text = (folder / "tables.md").read_text()
    assert "| MedSAM | 1 failed | 1 failed |" in text
    assert "- MedSAM, seed 0: ValueError: no such part" in text
    assert [row["status"] for row in rows_of(folder)] == ["failed", *4 * ["finished"]]

    done = compare(*chosen, "--out", "out")
    assert "2 runs in" in done.output
    assert "1 of them to do" in done.output
    assert "failed" not in (folder / "tables.md").read_text()
    assert content(folder / "medsam" / "seed_0").keys() - IF_MEASURED == TRAINED_FILES
    assert not (folder / "medsam" / "seed_0" / "embeddings").exists()

    # Another setting is not mixed with it.
    done = compare("--data", echo, "--epochs", "2", "--methods", "medsam", "--out", "out")
    assert done.status == 1
    assert "comparison with epochs 1, and this one has 2; name another folder" in done.errors


@pytest.mark.usefixtures("blank_figures")
def test_an_interrupted_comparison_goes_on_to_the_same_result(
    tmp_path: Path, echo: Path, compare: Compare, monkeypatch: pytest.MonkeyPatch
):
    chosen = "--data", echo, "--epochs", "2", "--methods", "samus-adapters", "ce-net"
    assert compare(*chosen, "--out", "whole").status == 0
    train, epochs = runner.train, []

    def interrupted(*arguments, on_improvement, **options):
        def count(epoch):
            on_improvement(epoch)
            epochs.append(epoch)
            if len(epochs) == 1:
                os.kill(os.getpid(), signal.SIGINT)

        return train(*arguments, on_improvement=count, **options)

    # A process that a script starts in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "train", interrupted)
        done = compare(*chosen, "--out", "parts")
    signal.signal(signal.SIGINT, before)
    assert done.status == 130
    assert done.errors.endswith("interrupted; the same command goes on from here\n")
    begun = tmp_path / "parts" / "samus-adapters" / "seed_0"
    assert content(begun).keys() == {
        "adapter.safetensors",
        "batch.png",
        "training_state.safetensors",
    }
    assert compare("--table", "--out", "parts").status == 0
    assert "1 not finished" in (tmp_path / "parts" / "tables.md").read_text()

    assert compare(*chosen, "--out", "parts").status == 0
    for system, files in {"samus-adapters": TRAINED_FILES, "ce-net": NETWORK_FILES}.items():
        parts, whole = (tmp_path / out / system / "seed_0" for out in ("parts", "whole"))
        for name in files - {"metrics.json", "report.html"}:
            assert _read(parts / name) == _read(whole / name), name


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--epochs", "0"], "--epochs 0: expected a positive number"),
        (["--seeds", "1", "1"], "--seeds 1 1: expected some, each once"),
        (["--methods", "sam", "sam"], "--methods sam sam: expected some, each once"),
        (["--ray", "--epochs", "0"], "--epochs 0: expected a positive number"),
        (["--ray", "a", "b"], "--ray a b: expected one address, or none"),
        (["--paper"], "--paper is on CAMUS and SAM: give --data and --checkpoint too"),
        (
            ["--paper", "--data", "a", "--checkpoint", "b", "--epochs", "3"],
            "--paper sets what --epochs does; give one of the two",
        ),
        (["--table", "--epochs", "3"], "--table takes all from the comparison's folder; give"),
        (["--table"], "--table: there is no comparison in runs/compare; give its folder"),
        (["--table", "--out", "here"], "here holds no comparison: expected a comparison.json"),
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--checkpoint", "none.pth", "--data", "."], "no checkpoint at none.pth"),
    ],
)
def test_bad_arguments_give_one_line(tmp_path: Path, compare: Compare, arguments, error: str):
    done = compare(*arguments)
    assert done.status == 1
    (line,) = done.errors.splitlines()
    assert line.startswith("error: ")
    assert error in line
    assert not any(tmp_path.iterdir())


# Slow: all of it, in processes of its own


@pytest.mark.slow
def test_every_system_in_miniature(tmp_path: Path, echo: Path, compare: Compare):
    done = compare("--data", echo, "--epochs", "2", "--out", "out")
    assert done.status == 0, done.errors
    folder = tmp_path / "out"
    assert content(folder).keys() == FILES
    rows = rows_of(folder)
    tested = [(name, each) for name, of in SYSTEMS.items() for each in of.tested_with]
    assert [(row["system"], row["prompts"]) for row in rows[::4]] == tested
    assert {row["status"] for row in rows} == {"finished"}
    text = (folder / "tables.md").read_text()
    for number, table in enumerate(TABLES, start=1):
        assert f"## Table {number}: {table.subject}" in text
        rows = text.split(f"## Table {number}")[1].split("\n\n")[1].splitlines()[2:]
        assert len(rows) == len(table.entries)
    validation = text.split("## On the validation patients")[1].split("## ")[0]
    # A head, and a row for all but SAM, which is not trained.
    assert validation.count("\n| ") == len(SYSTEMS)
    for table in TABLES[:2]:
        assert f"for the {len(table.entries) - 1} comparisons" in text
    for name in FIGURES:
        assert (folder / name).stat().st_size > 20_000


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--ray",)], ids=["processes", "ray"])
def test_runs_in_processes_of_their_own(
    tmp_path: Path, echo: Path, capfd: pytest.CaptureFixture[str], options: tuple[str, ...]
):
    """With a process that is killed, which costs no other run."""
    checkpoint = tmp_path / "tiny.pth"
    torch.save(ak.build_sam(ECHO, seed=0).state_dict(), checkpoint)
    folder = tmp_path / "out"
    ray = pytest.importorskip("ray") if options else None
    if ray is not None:
        ray.init(num_cpus=2)
    try:
        main(
            Config(
                data=echo,
                checkpoint=checkpoint,
                epochs=1,
                methods=("sam", "samed", "msa", "samus-plus"),
                out=folder,
                ray=() if options else None,
            )
        )
    finally:
        if ray is not None:
            ray.shutdown()
    statuses = {row["system"]: row["status"] for row in rows_of(folder)}
    assert statuses == dict.fromkeys(("sam", "samus-plus", "samed", "msa"), "finished")
    assert "run 4 of 4" in capfd.readouterr().out


def _read(path: Path) -> object:
    """The bytes of a file; of a safetensors file, whose metadata have no order, its content."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with safe_open(path, framework="np") as file:
        return file.metadata(), {key: file.get_tensor(key).tobytes() for key in file.keys()}  # noqa: SIM118


@pytest.mark.slow
def test_a_killed_process_is_a_failed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engines, "perform", _die)
    run = tmp_path, "samus", 0
    (ended,) = engines.on_this_machine([run])
    assert ended == (run, "the process ended with exit code -9, killed; out of memory?")


def _die(*run: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# What the conclusions rest on


def test_the_paired_test_s_extremes():
    ten = np.linspace(0.01, 0.02, 10)
    assert results.paired_p(ten) == pytest.approx(results.smallest_p(10)) == 2 / 1024
    assert results.paired_p(np.zeros(10)) == 1
    assert results.paired_p(np.array([1.0, -1.1, 2.0, -2.1])) > 0.5


def planted(name: str, dice: Sequence[float], seeds: Sequence[int]) -> results.SystemResults:
    """Two images of each patient, one of them of one Dice and the other of twice that."""
    attributes = [{"patient": f"patient{i // 2:04d}"} for i in range(2 * len(dice))]
    values = torch.tensor(dice).repeat_interleave(2) * torch.tensor([1.0, 2.0]).repeat(len(dice))
    evaluation = Evaluation(
        ["wall"], [f"image {i}" for i in range(len(values))], attributes, {"dice": values[:, None]}
    )
    finished = [results.Finished(seed, evaluation, {"history": []}) for seed in seeds]
    return results.SystemResults(name, SYSTEMS[name].tested_with[0], finished, {}, [])


def test_differences_are_paired_by_patient_and_seed():
    dice = np.linspace(0.2, 0.4, 10)
    worse = planted("samus", dice.tolist(), [0, 1])
    better = planted("unet", (dice + 0.02 + np.linspace(0, 0.01, 10)).tolist(), [1])
    other = planted("sam", (dice + 0.5).tolist(), [7])
    # Of some of the test images, a system is another object, and still not compared with itself.
    (found,) = results.differences([replace(worse), better, other], worse)
    assert found.system is better
    assert found.patients == 10
    assert found.mean == pytest.approx(1.5 * 0.025, abs=1e-6)
    assert found.p == found.adjusted_p == pytest.approx(2 / 1024)
    assert found.is_real


def test_of_few_patients_no_difference_is_called_real_and_it_says_why():
    few = [planted(name, [0.2, dice], [0]) for name, dice in (("unet", 0.3), ("ce-net", 0.4))]
    text = tables.differences_in_words(few, few[0])
    assert "| CE-Net | +7.50 |" in text
    assert 'a "no" here says nothing' in text


def test_systems_are_compared_by_the_ejection_fraction_where_there_are_hearts():
    unet, samus = (planted(name, [0.2, 0.3], [0, 1]) for name in ("unet", "samus"))
    assert tables.errors_of_hearts([unet, samus]) == {}
    errors = [
        {"hearts": {unet.full_title: {"ef": {"mae": {"value": value}}}}} for value in (4.0, 5.0)
    ]
    runs_of = [replace(run, metrics=of) for run, of in zip(unet.finished, errors, strict=True)]
    found = tables.errors_of_hearts([replace(unet, finished=runs_of), samus])
    assert found == {"EF MAE (points)": ["4.50 ± 0.71", "–"]}


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize(
    "base", ["Sam2Model", pytest.param("Sam3TrackerModel", marks=pytest.mark.slow)]
)
def test_models_of_transformers_are_compared(
    tmp_path: Path, echo: Path, compare: Compare, base: str
):
    MODELS[base]().save_pretrained(tmp_path / "base")
    chosen = "--data", echo, "--epochs", "1", "--out", "out", "--checkpoint", tmp_path / "base"
    done = compare(*chosen, "--methods", "sam", "samed")
    assert done.status == 0, done.errors
    rows = rows_of(tmp_path / "out")
    assert [row["structure"] for row in rows] == 2 * STRUCTURES
    header = ak.inspect_adapter(tmp_path / "out" / "samed" / "seed_0" / "adapter.safetensors")
    assert header.family == ak.view(MODELS[base]()).family
    assert header.image_size == 32


def test_entropy_is_highest_where_nothing_is_known():
    entropy = binary_entropy(np.array([[0.0, 0.5, 1.0, 0.25]]))
    assert entropy[0, 1] == 1
    assert entropy[0, ::2] == pytest.approx([0, 0], abs=1e-9)
    assert entropy[0, 3] == pytest.approx(2 - 0.75 * math.log2(3))


def test_comparison_json_is_read_as_it_was_written(tmp_path: Path):
    (tmp_path / "comparison.json").write_text(json.dumps({"data": "x"}))
    with pytest.raises(ValueError, match=r"comparison.json is not of a comparison"):
        runs.read_setting(tmp_path)
