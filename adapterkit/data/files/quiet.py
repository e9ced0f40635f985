"""Readers of other libraries without their own lines beside the one error of adapterkit."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the warnings and log lines of Pillow, nibabel, pydicom and highdicom to themselves."""
    loggers = [
        logging.getLogger(name) for name in ("nibabel.global", "pydicom", "PIL", "highdicom")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def without_standard_error() -> Iterator[None]:
    """For ITK, which writes there from C++: of all threads, so around as little as possible."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
