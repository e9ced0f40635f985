"""How the C library treats memory that is freed."""

import ctypes
import functools
import sys
from collections.abc import Callable

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Parameters of glibc's mallopt, from its malloc.h."""


def keep_freed_memory() -> bool:
    """Let this process keep memory that PyTorch frees on the CPU, for its next tensors.

    glibc takes every large buffer from the system and gives it back when it is freed, so that each
    tensor of each step is filled with zeros by the kernel, page by page, before it is written. That
    is up to a third of the time of a training step on a CPU. Kept memory is not shared with other
    programs until the process ends; nothing else changes.

    Returns:
        Whether the C library is glibc and has taken the settings; elsewhere nothing is done.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 256 * 2**20}
    return all(mallopt(name, value) == 1 for name, value in settings.items())


def give_back_freed_memory() -> None:
    """Give all that is free in this process's heap to the system, where the C library is glibc.

    Between tensors of many sizes that come and go lies free memory that fits none of the next: in a
    training step it can be more than the tensors are. Whatever is used of it again is filled with
    zeros by the kernel first.
    """
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


@functools.cache
def _of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
