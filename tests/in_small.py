"""What makes a command or a tutorial short: a tiny base, blank pictures, no further processes."""

import runpy
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


def leave_figures_blank(patch: pytest.MonkeyPatch) -> None:
    """A run's pictures are written and not drawn, which takes as long as a short training; and how
    long an image takes is measured once."""

    def write(*arguments: Any) -> None:
        Image.new("L", (1, 1)).save(arguments[-1])

    of_outcome = "training_curves", "segmentation_figure", "agreement_figure"
    for name in (*(f"outcome.{each}" for each in of_outcome), "runner.batch_figure"):
        patch.setattr(f"adapterkit.training.{name}", write)
    patch.setattr("adapterkit.evaluation.report._curves", lambda history: None)
    patch.setattr("adapterkit.evaluation.cost._REPEATS", 1)


def performed_here(given: Sequence[Any]) -> Iterator[tuple[Any, str]]:
    """Runs of a comparison, in a fraction of the time that processes take to start."""
    from accelerate.state import AcceleratorState

    from benchmarks.compare import runs

    for each in given:
        AcceleratorState._reset_state()
        try:
            runs.perform(*each)
        except SystemExit:  # As `perform` ends a process that is interrupted.
            raise KeyboardInterrupt from None
        yield each, ""


def module_run_here(command: Sequence[str], **options: Any) -> Any:
    """`subprocess.run`, of `python -m` without another process."""
    if command[1] != "-m":
        return _run(command, **options)
    given, sys.argv = sys.argv, list(command[2:])
    try:
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise subprocess.CalledProcessError(1, command, stderr=str(end.code)) from end
    finally:
        sys.argv = given
    return subprocess.CompletedProcess(command, 0)


_run = subprocess.run


def main(script: str) -> None:
    """Run a tutorial's script with ECHO in place of `ak.mini_sam()`; to be called in a process of
    its own, which is left changed."""
    sys.path.insert(0, str(Path(script).resolve().parent))
    patch = pytest.MonkeyPatch()
    # Before anything else has imported it.
    from adapterkit.promptable import stock_sam
    from tests.models import ECHO

    patch.setattr(stock_sam, "mini_sam", lambda: stock_sam.build_sam(ECHO, seed=0))
    leave_figures_blank(patch)
    patch.setattr("benchmarks.compare.engines.on_this_machine", performed_here)
    patch.setattr(subprocess, "run", module_run_here)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
