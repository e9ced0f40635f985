"""The lock on a folder."""

import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from adapterkit.system import lock
from adapterkit.system.lock import LOCK, FolderLockedError, locked_folder

HOLD = """
import sys, time
from pathlib import Path
from adapterkit.system.lock import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path):
    with hold(tmp_path) as process:
        try:
            with pytest.raises(FolderLockedError) as caught, locked_folder(tmp_path):
                pass
        finally:
            process.send_signal(signal.SIGKILL)
    for part in (str(tmp_path), f"process {process.pid} ", f"machine {socket.gethostname()}"):
        assert part in str(caught.value)
    assert (tmp_path / LOCK).exists()
    with locked_folder(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert list(tmp_path.iterdir()) == []


def test_one_at_a_time(tmp_path: Path):
    """Threads that fight for it with their own descriptors, as processes do."""
    inside, most, taken = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, taken
        for _ in range(50):
            try:
                with locked_folder(tmp_path):
                    with guard:
                        inside, taken = inside + 1, taken + 1
                        most = max(most, inside)
                    with guard:
                        inside -= 1
            except FolderLockedError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert taken > 0


def test_an_error_within_frees_it(tmp_path: Path):
    with pytest.raises(RuntimeError, match="mine"), locked_folder(tmp_path):
        raise RuntimeError("mine")
    assert list(tmp_path.iterdir()) == []


def test_without_locks_there_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unsupported(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with pytest.warns(UserWarning, match="without locks"), locked_folder(tmp_path):
        assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    with warnings.catch_warnings(), locked_folder(tmp_path):
        warnings.simplefilter("error")
