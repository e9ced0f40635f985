"""A lock on a folder that two processes would otherwise write to at once."""

import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = ".adapterkit-lock"
"""The file in a folder that is locked; it says by whom. One without a living process means nothing:
the lock itself is the system's, and goes when its process ends, however that ends."""


class FolderLockedError(OSError):
    """Another process works in the folder."""


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Have a folder for this process alone while the block runs.

    The lock ends with the block, or with the process and the children that it forked. On a file
    system without locks there is a warning, and nothing is locked.

    Args:
        folder: exists.

    Raises:
        FolderLockedError: another process has it; the message names that process and its machine.
        OSError: the folder does not exist, or cannot be written to.
    """
    descriptor = _locked(folder)
    if descriptor is None:
        warnings.warn(
            f"{folder} lies on a file system without locks: see to it yourself that no other run "
            "writes there",
            stacklevel=3,
        )
        yield
        return
    try:
        os.ftruncate(descriptor, 0)
        holder = {"process": os.getpid(), "machine": socket.gethostname()}
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        # Removed while it is still locked: who opened it meanwhile sees that it is gone.
        with suppress(OSError):
            (folder / LOCK).unlink()
        os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """An open descriptor of the locked file; None where the file system has no locks."""
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise FolderLockedError(
                f"{folder} is in use by {holder}: wait until that has ended, or end it, or name "
                "another folder"
            ) from error
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # The one that had it has removed it since it was opened.


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    try:
        said = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(said['process'])} on the machine {said['machine']}"
    except (ValueError, KeyError, TypeError):  # It has only just got it.
        return "another process"
