"""How a program ends that is interrupted while it imports what it works with.

A KeyboardInterrupt in the midst of imports would be a long traceback, or be lost: what is written
in C may take it for a package that is not there. So an interruption then ends the process at once,
by one line. This module is light, so that a program can have it before anything else.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""The status of what Ctrl-C ended: as shells have it, 128 and the signal's number."""

Handler = Callable[[int, FrameType | None], object]


def end_when_interrupted() -> None:
    """From now on, until `interruptions_raised`, Ctrl-C ends this process.

    Where Ctrl-C is ignored, as in what a script starts in the background, or is handled otherwise,
    that stays so.
    """
    _replace(signal.default_int_handler, _end)


def end_imports_when_interrupted() -> None:
    """`end_when_interrupted`, where Python is on its way to the module that `python -m` names.

    For a package of programs, that others import without this effect.
    """
    if sys.argv[:1] == ["-m"]:
        end_when_interrupted()


@contextmanager
def interruptions_raised() -> Iterator[None]:
    """Within it Ctrl-C raises KeyboardInterrupt, so that what has begun can end well, or, while
    something is imported, ends this process; afterwards it is handled as Python does."""
    for before in (_end, signal.default_int_handler):
        _replace(before, _raise)
    try:
        yield
    finally:
        _replace(_raise, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _raise(number: int, frame: FrameType | None) -> None:
    within = frame
    while within is not None:
        if within.f_code.co_filename.startswith("<frozen importlib._bootstrap"):
            _end(number, frame)
        within = within.f_back
    raise KeyboardInterrupt


def _replace(old: Handler, new: Handler) -> None:
    if threading.current_thread() is not threading.main_thread():  # Only that one gets signals.
        return
    if signal.getsignal(signal.SIGINT) is old:
        signal.signal(signal.SIGINT, new)
