"""Processes of their own that start at once.

They are forks of one that has imported PyTorch, timm, segment_anything and MONAI, and with it most
of what a training needs. Neither adapterkit nor the shape checks are in it: they are imported anew
in each.
"""

import os
import runpy
import shutil
import signal
import tempfile
import textwrap
import weakref
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).parents[1]
# Not multiprocessing's own, which imports what the first who asks for it wants.
_SERVER = forkserver.ForkServer()
_SERVER.set_forkserver_preload(["torch", "timm", "segment_anything", "monai"])
_BEFORE = """
import os, sys
sys.argv, sys.path = {arguments!r}, [{root!r}, *sys.path]
os.environ.update({environment!r})
os.chdir({folder!r})
for number, name in ((1, {output!r}), (2, {errors!r})):
    os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
import torch
torch.set_num_threads({threads})
"""


class Process:
    """A Python process; what it prints is in files.

    Attributes:
        status: when it has ended, as of `subprocess.Popen`.
        output: and what it has printed.
        errors: the same.
    """

    def __init__(
        self,
        code: str,
        *arguments: str | Path,
        folder: Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ):
        self._files = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, self._files, ignore_errors=True)
        names = {each: str(self._files / each) for each in ("output", "errors")}
        before = _BEFORE.format(
            arguments=["-c", *map(str, arguments)],
            root=str(ROOT),
            environment={**os.environ, **(environment or {})},
            folder=str(folder),
            threads=torch.get_num_threads(),
            **names,
        )
        script = self._files / "script.py"
        script.write_text(before + textwrap.dedent(code))
        # What pickle has to find in the new process is the standard library's alone: this module
        # would bring the shape checks along.
        self._process = ForkServerProcess(
            target=runpy.run_path, args=(str(script), None, "__main__")
        )
        connect = _SERVER.connect_to_new_process
        with mock.patch.object(forkserver, "connect_to_new_process", connect):
            self._process.start()
        self.pid = self._process.pid

    @classmethod
    def of_module(cls, module: str, *arguments: str | Path, **options: Any) -> "Process":
        """As `python -m`."""
        code = f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
        return cls(code, *arguments, **options)

    @classmethod
    def of_file(cls, path: Path, *arguments: str | Path, **options: Any) -> "Process":
        """As `python path`."""
        code = f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')"
        return cls(code, *arguments, **options)

    def _read(self, name: str) -> str:
        path = self._files / name
        return path.read_text() if path.exists() else ""

    @property
    def output(self) -> str:
        return self._read("output")

    @property
    def errors(self) -> str:
        return self._read("errors")

    @property
    def status(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        assert self.pid is not None
        os.kill(self.pid, number)

    def wait(self, seconds: float = 300) -> int:
        """Until it has ended; its status."""
        self._process.join(seconds)
        if self.status is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"no end within {seconds} s: {self.errors[-3000:]}")
        return self.status


def run(*processes: Process) -> None:
    """Wait until all have ended, and fail if one has failed."""
    for process in processes:
        assert process.wait() == 0, process.errors[-3000:]
