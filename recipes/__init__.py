"""Recipes of published experiments, each a command line."""

import sys
from types import TracebackType


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted; nothing had begun", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# Importing torch takes seconds, in which nothing of the command line's own can run.
sys.excepthook = _end
