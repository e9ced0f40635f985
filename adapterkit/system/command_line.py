"""What the project's command lines share."""

import os
import re
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

import tyro
from rich.console import Console

from adapterkit.system.ending import INTERRUPTED, interruptions_raised
from adapterkit.system.extras import MissingExtraError

Config = TypeVar("Config")

_UNREAD = 128 + 13
"""The exit status of a program that SIGPIPE has ended."""

console = Console()
"""Where commands print their results."""


def run(main: Callable[[Config], None], config: type[Config]) -> None:
    """Call `main` with the command line's arguments, within `one_line_errors`."""
    with one_line_errors():
        main(tyro.cli(config, description=sys.modules["__main__"].__doc__))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a command line's main program runs within.

    A `ValueError`, `OSError` or `FloatingPointError`, which is what adapterkit raises for bad input
    and what becomes of it, or a `MissingExtraError` is printed as one line and ends the process
    with status 1; an interruption ends it with one line too, and status 130. Where nobody reads on
    what is printed, as after `| head`, it ends without a word, as other programs do.
    """
    output = sys.stdout  # None in a process that has none.
    try:
        with interruptions_raised():
            yield
            if output is not None:
                output.flush()
    except (ValueError, OSError, FloatingPointError, MissingExtraError) as error:
        if isinstance(error, BrokenPipeError) and output is not None and _nobody_reads(output):
            # At its end, Python would write out the rest and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
            sys.exit(_UNREAD)
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt as interruption:
        print(str(interruption) or "interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _nobody_reads(output: TextIO) -> bool:
    """Whether an output is a pipe with a closed end; another one, to a server say, may be too."""
    poll = select.poll()
    poll.register(output.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def check_positive(config: Any, *names: str) -> None:
    """Raises ValueError where one of the options is given and not above 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected a positive number")


def check_free(path: Path, force: bool = False) -> None:
    """Raises FileExistsError where a command's result is in the way of something, unless `force`,
    and FileNotFoundError where there is no folder for it."""
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists; give --force to replace it, or another --out")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first")


def bytes_in_words(text: str) -> int:
    """4 000 000 000 of "4GB"; units are B, kB, MB, GB and TB, in any case, of 1000 each.

    Raises:
        ValueError: it is no such text.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text.lower())
    if found is None:
        raise ValueError(f"--cache {text}: expected an amount of memory, 4GB or 500MB say")
    return int(float(found[1]) * 1000 ** " kmgt".index(found[2] or " "))
