"""The uploads of a server without a folder: a work list for each browser, in a temporary folder."""

import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from adapterkit.data.image_file import DataError, at_most
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.web.worklist import WorkList
from adapterkit.web.workspace import Workspace

MAX_KEPT = 2 * 2**30
"""Bytes of uploads that may lie on disk at a time, by default."""

MAX_VALUES = 2**28
"""That an uploaded image holds at most: a small file can unpack to far more."""

_MAX_SESSIONS = 32


class NoRoomError(OSError):
    """More uploads would lie on the server than it keeps."""


class Sessions:
    """Work lists by the key that a browser keeps in a cookie. The least used make way for others.

    Args:
        folder: where they lie.
        open_workspace: makes one of a work list.
        max_kept: bytes of all of them at most.
    """

    def __init__(
        self, folder: Path, open_workspace: Callable[[WorkList], Workspace], max_kept: int
    ) -> None:
        self._folder = folder
        self._open = open_workspace
        self._max_kept = max_kept
        self._found: OrderedDict[str, Workspace] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str | None) -> tuple[str, Workspace]:
        """The work list of a key, or with a new key a new one."""
        with self._lock:
            if key is None or key not in self._found:
                key = secrets.token_urlsafe(18)
                folder = self._folder / f"session-{key}"
                (folder / "images").mkdir(parents=True)
                self._found[key] = self._open(WorkList(folder, empty=True))
            self._found.move_to_end(key)
            while len(self._found) > _MAX_SESSIONS:
                self._forget()
            return key, self._found[key]

    def make_room(self, size: int) -> None:
        """Forget work lists until so many bytes more may lie on disk; never the last used one.

        Raises:
            NoRoomError: there is none.
        """
        with self._lock:
            while self._kept() + size > self._max_kept and len(self._found) > 1:
                self._forget()
            if self._kept() + size > self._max_kept:
                raise NoRoomError(
                    f"more than {self._max_kept / 2**20:,.0f} MiB of uploads would lie on the "
                    "server: delete some first"
                )

    def _forget(self) -> None:
        _, workspace = self._found.popitem(last=False)
        shutil.rmtree(workspace.worklist.folder, ignore_errors=True)

    def _kept(self) -> int:
        return sum(
            path.stat().st_size for path in self._folder.glob("session-*/**/*") if path.is_file()
        )


def add_upload(workspace: Workspace, name: str, content: bytes) -> str:
    """Take an uploaded file into a work list, and give the image's name.

    Args:
        workspace: of the browser.
        name: of the file, as the browser says.
        content: of it.

    Raises:
        DataError: it is no image that can be segmented, or too large; it is not kept.
    """
    folder = workspace.worklist.folder / "images"
    plain = Path(name.replace("\\", "/")).name.lstrip(".") or "image"
    path, number = folder / plain, 1
    while path.exists():
        number += 1
        path = folder / f"{number}_{plain}"
    path.write_bytes(content)
    added = workspace.worklist.add(path)
    try:
        with at_most(MAX_VALUES):
            workspace.frames.prepare(added, 0, urgent=True)
    except (DataError, ValueError) as error:
        workspace.worklist.remove(added)
        raise DataError(str(error).replace(str(path), name)) from error
    return added


def add_example(workspace: Workspace) -> str:
    """A synthetic heart of four chambers, by `data.synthetic.phantom`, and the image's name."""
    folder = workspace.worklist.folder
    patient = write_phantom(folder / ".phantom", patients=1) / "database_nifti/patient0001"
    content = (patient / "patient0001_4CH_ED.nii.gz").read_bytes()
    return add_upload(workspace, "synthetic_heart.nii.gz", content)
