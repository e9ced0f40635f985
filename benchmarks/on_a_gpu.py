"""What there is to know on a GPU, within minutes: tests, an epoch of training, and times.

    python -m benchmarks.on_a_gpu --out DIR
    python -m benchmarks.on_a_gpu --out DIR --data CAMUS_public --minutes 8
    python -m benchmarks.on_a_gpu --out DIR --rehearse          on the CPU, at toy size

It runs the tests that are marked `gpu`; trains one epoch by the recipe, on CAMUS or synthetic echo;
and times SAMUS and SAMed on ViT-B and ViT-H, embedding and training step, stock against fast, in
float32 and bf16, and then against `torch.compile`. All weights are random, which times do not
depend on. After each step `report.md` has what is known, so an interruption loses one step at most;
what no time is left for is named there.
"""

import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

import adapterkit as ak
from adapterkit.system.command_line import check_positive, run

if TYPE_CHECKING:
    from benchmarks.measuring import Measured
    from benchmarks.work import Contestant

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "timm", "segment-anything", "transformers", "peft", "accelerate", "monai")
TASKS: tuple[Literal["embedding", "training step"], ...] = ("embedding", "training step")
RESERVE = 20
"""Seconds that stay for writing the report."""


@dataclass(frozen=True)
class Config:
    out: Path
    """Folder for the report, the times and what each step printed; new or empty."""
    data: Path | None = None
    """CAMUS as it is unpacked, for the epoch. Without it, synthetic echo is made and used."""
    patients: int | None = None
    """Use only so many of its patients."""
    minutes: float = 8
    """After which nothing more is begun, and what is under way is ended."""
    rounds: int = 10
    """Turns of each contestant, after one that does not count."""
    only: tuple[Literal["tests", "epoch", "speed"], ...] = ("tests", "epoch", "speed")
    """The steps to take."""
    rehearse: bool = False
    """On the CPU and at toy size: whether it runs, not how fast."""


@dataclass
class Report:
    """What is known so far, written anew after each addition.

    Attributes:
        folder: of `report.md`.
        deadline: on `time.monotonic`'s clock.
        sections: in order.
    """

    folder: Path
    deadline: float
    console: Console = field(default_factory=Console)
    sections: list[str] = field(default_factory=list)

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic() - RESERVE

    def add(self, text: str) -> None:
        self.sections.append(text.rstrip())
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._write()

    def replace_last(self, text: str) -> None:
        self.sections[-1] = text.rstrip()
        self._write()

    def _write(self) -> None:
        from adapterkit.training.run_folder import write_text

        write_text(self.folder / "report.md", "\n\n".join(self.sections) + "\n")


def main(config: Config) -> None:
    import torch

    from benchmarks.measuring import machine

    start = time.monotonic()
    check_positive(config, "minutes", "rounds", "patients")
    if not config.rehearse and not torch.cuda.is_available():
        raise ValueError("there is no GPU here; --rehearse runs all of it on the CPU, at toy size")
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise ValueError(f"--out {config.out} exists and is not an empty folder; name another")
    config.out.mkdir(parents=True, exist_ok=True)
    report = Report(config.out.resolve(), start + 60 * config.minutes)
    report.add(f"# On {machine(device(config))}\n\n{versions()}")
    steps = {"tests": run_tests, "epoch": train_an_epoch, "speed": measure_speed}
    for name in dict.fromkeys(config.only):
        steps[name](config, report)
    report.add(f"{time.monotonic() - start:.0f} s in all.")


def device(config: Config) -> str:
    return "cpu" if config.rehearse else "cuda"


def versions() -> str:
    import torch

    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} absent")
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    described = [f"{each.name}, {each.total_memory / 2**30:.0f} GiB" for each in gpus]
    return ", ".join([f"Python {platform.python_version()}", *found, *described])


def run_tests(config: Config, report: Report) -> None:
    """The suite's tests for a GPU."""
    command = ["pytest", "-m", "gpu", "tests/gpu", "-q", "-p", "no:cacheprovider", "--durations=5"]
    # A machine that is lent for minutes has the versions that it has, with their warnings.
    command += ["-W", "default"]
    environment = {"ADAPTERKIT_REHEARSE": "1"} if config.rehearse else {}
    ended, output = run_module(command, report, "tests.txt", environment)
    lines = [
        line for line in output.splitlines() if line.startswith(("FAILED", "ERROR", "SKIPPED"))
    ]
    counts = re.findall(r"^.*\d+ (?:passed|failed|skipped|error).*$", output, re.MULTILINE)
    summary = counts[-1].strip("= ") if counts else "no result"
    report.add("\n".join(["## Tests", "", f"{summary} ({ended})", "", *lines]))


def train_an_epoch(config: Config, report: Report) -> None:
    """One epoch by the recipe, on a ViT-B of random weights."""
    from adapterkit.data.synthetic.phantom import write_phantom
    from adapterkit.promptable.stock_sam import save_sam
    from benchmarks.work import BASES

    checkpoint, data = report.folder / "base.safetensors", config.data
    base = "toy Sam" if config.rehearse else "ViT-B"
    save_sam(ak.build_sam(BASES[base], seed=0), checkpoint)
    if data is None:
        patients, side = (4, 64) if config.rehearse else (20, 256)
        data = write_phantom(report.folder / "echo", patients=patients, image_size=side)
    options = ["--data", str(data.resolve()), "--checkpoint", str(checkpoint)]
    options += ["--epochs", "1", "--no-zero-shot", "--out", str(report.folder / "epoch")]
    options += ["--patients", str(config.patients)] if config.patients else []
    start = time.monotonic()
    ended, output = run_module(["recipes.samus_camus", *options], report, "epoch.txt")
    checkpoint.unlink()
    kept = ("train:", "validation:", "test:", "epoch 1/1", "trained in", "peak memory")
    lines = [line.strip() for line in output.splitlines() if any(each in line for each in kept)]
    took = f"{time.monotonic() - start:.0f} s with imports, reading and evaluation ({ended})"
    what = "synthetic echo" if config.data is None else "CAMUS"
    report.add("\n".join([f"## An epoch of SAMUS on {base}, {what}", "", took, "", *lines]))


def run_module(
    command: list[str], report: Report, log: str, environment: dict[str, str] | None = None
) -> tuple[str, str]:
    """Run a Python module until it ends or no time is left: how it ended, and what it printed."""
    path = report.folder / log
    # The project first, then wherever the caller keeps its packages.
    places = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with path.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": places, "COLUMNS": "200", **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(max(1, report.seconds_left))
            ended = "complete" if status == 0 else f"exit status {status}, see {log}"
        except subprocess.TimeoutExpired:
            # Its children too, which would go on with the GPU.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ended = f"no time was left, see {log}"
    return ended, path.read_text(errors="replace")


def measure_speed(config: Config, report: Report) -> None:
    """Times of what is adapted: the most important first."""
    from adapterkit.training.run_folder import write_text
    from benchmarks.contests import describe, table, times
    from benchmarks.measuring import ceilings, in_words, measure

    where = device(config)
    rates = ceilings(where)
    head = f"## Speed\n\n{in_words(rates, where)}; {config.rounds} rounds."
    report.add(head)
    results: list[list[Measured]] = []
    failures: list[str] = []
    for group in groups(config.rehearse):
        chosen = [each for each in group if each.precision in rates]
        if report.seconds_left < 20:
            failures.append(f"- {describe(chosen)}: left out, no time")
        else:
            try:
                results.append(measure(chosen, config.rounds, where, report.seconds_left))
                report.console.print(table(results[-1:], rates), highlight=False, soft_wrap=True)
            except ValueError as error:
                failures.append(f"- {error}")
        shown = [head, table(results, rates) if results else "", "\n".join(failures)]
        report.replace_last("\n\n".join(filter(None, shown)))
        write_text(report.folder / "times.csv", times(results))


def groups(rehearse: bool) -> "Iterator[list[Contestant]]":
    """Who competes with whom; the first of each group is what the others are compared with."""
    from benchmarks.work import Contestant, Work

    # Batches of an embedding and of a training step, such that all ways fit into 80 GB.
    bases = {"toy Sam": (1, 1)} if rehearse else {"ViT-B": (8, 4), "ViT-H": (4, 2)}
    sizes = {"SAMUS": 64, "SAMed": 64} if rehearse else {"SAMUS": 256, "SAMed": 512}
    works = [
        Work(base, method, task, size, batch)
        for base, batches in bases.items()
        for method, size in sizes.items()
        for task, batch in zip(TASKS, batches, strict=True)
    ]
    for work in works:
        ways = [(fast, bf16) for bf16 in (False, True) for fast in (False, True)]
        yield [Contestant(work, fast=fast, bf16=bf16) for fast, bf16 in ways]
    for work in works:
        yield [
            Contestant(work),
            Contestant(work, compiled=True),
            Contestant(work, fast=True, compiled=True),
            Contestant(work, bf16=True, compiled=True),
        ]


if __name__ == "__main__":
    run(main, Config)
