"""A program that is interrupted, at whatever moment, says so in one line."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from adapterkit.system.command_line import one_line_errors
from adapterkit.system.ending import end_when_interrupted

PROJECT = Path(__file__).parents[2]

PROGRAMS = {
    "adapterkit": ("-m", "adapterkit", "methods"),
    "console script": ("-c", "from adapterkit.__main__ import main; main()", "methods"),
    "recipe": ("-m", "recipes.samus_camus", "--checkpoint", "not_there.pth"),
    "module that imports all at its top": ("-m", "recipes.minisam_training"),
    "benchmark": ("-m", "benchmarks.compare", "--data", "not_there"),
}

AT = """
import os, signal, sys

class At:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["AT"]:
            sys.meta_path.remove(self)
            {do}

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, At())
"""
"""What an interpreter runs first: it does something when the package AT is about to be imported."""


def start(folder: Path, arguments: tuple[str, ...], at: str, do: str) -> subprocess.Popen[bytes]:
    (folder / "sitecustomize.py").write_text(AT.format(do=do))
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{PROJECT}", "AT": at},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


# numpy is imported by code of PyTorch's that is written in C too.
@pytest.mark.parametrize("package", ["tyro", "torch", "numpy"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_within_an_import(program: str, package: str, tmp_path: Path):
    if (program, package) == ("module that imports all at its top", "tyro"):
        package = "accelerate"  # It has no command line.
    process = start(tmp_path, PROGRAMS[program], package, "os.kill(os.getpid(), signal.SIGINT)")
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output, errors) == (130, b"", b"interrupted\n")


@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.2, 0.4, 0.8])
def test_at_any_moment_from_the_first_import_on(seconds: float, tmp_path: Path):
    process = start(tmp_path, PROGRAMS["adapterkit"], "tyro", "os.write(1, b'there')")
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 5) == b"there"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output, errors) == (130, b"", b"interrupted\n")


@pytest.fixture
def python_s_own() -> Iterator[None]:
    """Ctrl-C handled as Python does, which a process that a script starts may not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_what_has_begun_can_end_well(python_s_own: None, capsys: pytest.CaptureFixture[str]):
    ended = []

    @one_line_errors()
    def program() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            ended.append("well")

    end_when_interrupted()
    with pytest.raises(SystemExit, match="130"):
        program()
    assert ended == ["well"]
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe that nobody reads."""
    end, pipe = os.pipe()
    os.close(end)
    yield pipe
    os.close(pipe)


def within_one_line_errors(
    code: str, output: int, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    program = f"from adapterkit.system.command_line import *\nwith one_line_errors():\n    {code}"
    arguments = [*before, sys.executable, "-c", program]
    return subprocess.run(arguments, stdout=output, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("lines", [1, 100_000])
def test_what_nobody_reads_on_ends_a_program_without_a_word(lines: int, unread: int):
    done = within_one_line_errors(f"for _ in range({lines}): print('a line')", unread)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_broken_pipe_is_an_error():
    done = within_one_line_errors("raise BrokenPipeError('the server went')", subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, "error: the server went\n")


def test_a_program_needs_no_output():
    closed = ("sh", "-c", 'exec "$0" "$@" >&-')
    done = within_one_line_errors("print(sys.stdout)", subprocess.PIPE, closed)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("other", [signal.SIG_IGN, lambda number, frame: None])
def test_what_is_ignored_or_handled_otherwise_stays_so(python_s_own: None, other: signal.Handlers):
    signal.signal(signal.SIGINT, other)
    end_when_interrupted()
    with one_line_errors():
        assert signal.getsignal(signal.SIGINT) is other
    assert signal.getsignal(signal.SIGINT) is other
