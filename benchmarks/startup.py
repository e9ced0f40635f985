"""How long it takes until adapterkit does something, beside what it cannot do without.

    python -m benchmarks.startup

Each line is a fresh process; the lines take turns, round by round, so that whatever else the
machine does falls on all of them. Medians are printed, and each line's ratio to the first: what is
imported with the core anyway.
"""

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from rich.progress import track

from adapterkit.__main__ import COMMANDS
from adapterkit.system.command_line import check_positive, console, run

CORE = "import adapterkit as ak; ak.inject, ak.save_adapter, ak.Segmenter, ak.load_sam, ak.fast"
MEASURED = {
    "import torch, timm, segment_anything": ("-c", "import torch, timm, segment_anything"),
    "import adapterkit": ("-c", "import adapterkit"),
    "import adapterkit, and use the core's names": ("-c", CORE),
    "adapterkit --help": ("-m", "adapterkit", "--help"),
    **{f"adapterkit {name} --help": ("-m", "adapterkit", name, "--help") for name in COMMANDS},
    "python -m recipes.samus_camus --help": ("-m", "recipes.samus_camus", "--help"),
    "python -m recipes.minisam --help": ("-m", "recipes.minisam", "--help"),
}
"""Arguments of Python, by what they do."""


@dataclass(frozen=True)
class Config:
    rounds: int = 5
    """How often each is started, after a round that fills the disk's cache and does not count."""


def main(config: Config) -> None:
    check_positive(config, "rounds")
    seconds: dict[str, list[float]] = {name: [] for name in MEASURED}
    for number in track(range(config.rounds + 1), "rounds", console=console, transient=True):
        for name, arguments in MEASURED.items():
            took = seconds_of(arguments)
            if number > 0:
                seconds[name].append(took)
    print(table({name: statistics.median(each) for name, each in seconds.items()}))


def seconds_of(arguments: tuple[str, ...]) -> float:
    """From the start of a Python process to its end.

    Raises:
        CalledProcessError: it failed.
    """
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def table(medians: dict[str, float]) -> str:
    """Seconds, and the ratio to the first."""
    from adapterkit.evaluation.tables import markdown

    base = next(iter(medians.values()))
    rows = [[name, f"{took:.2f}", f"{took / base:.2f}"] for name, took in medians.items()]
    return markdown(["", "s", "ratio"], rows)


if __name__ == "__main__":
    run(main, Config)
